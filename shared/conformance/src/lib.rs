//! What every store and every broker must do, as cases to run against each adapter: the contracts of the two ports, made
//! executable.
//!
//! * [`store`] and [`broker`]: one case per sentence of a contract; a macro makes a test of every case.
//! * [`differential`]: random calls, which a store must answer as the reference model does.
//!
//! A crate of its own, so that no product is built with it. The adapters that need no server are run by the tests beside
//! it, the others by those of the `tests` crate.

pub mod broker;
pub mod differential;
pub mod store;
