//! What every role of jobgate shares: the domain, the ports and their adapters.
//!
//! * [`domain`]: jobs, states, facts and the one transition function.
//! * [`store`] and [`broker`]: the two ports every role stands on, with their adapters; the crate `jobgate-conformance` beside
//!   this one holds what each adapter must do.
//! * [`logs`]: what jobs print, in an object store. [`reporting`]: what lets a job report on itself.
//! * [`wire`]: what travels through the broker.
//! * [`failpoint`]: where a test ends a process; nothing in a release build.
//! * [`clock`], [`random`], [`retry`], [`supervise`], [`settings`], [`telemetry`]: time, chance, delays, tasks,
//!   configuration values and the description of metrics, in one place each.
//!
//! Nothing here knows HTTP, a resource manager or the command line.

pub mod broker;
pub mod clock;
pub mod domain;
pub mod failpoint;
pub mod logs;
pub mod random;
pub mod reporting;
pub mod retry;
pub mod settings;
pub mod store;
pub mod supervise;
pub mod telemetry;
pub mod wire;
