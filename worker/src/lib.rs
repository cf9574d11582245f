//! The worker: claims jobs, submits them to a resource manager, watches them, and tells what happened.
//!
//! * [`engine`]: the port to a resource manager; [`engines`]: its adapters and their registry.
//!
//! A worker writes no rows except claim, record, hand-back and its own lease.

pub mod engine;
pub mod engines;
