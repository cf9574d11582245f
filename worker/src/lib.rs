//! The worker: claims jobs, submits them to a resource manager, watches them, and tells what happened.
//!
//! * [`core`]: what decides, sans-IO.
//! * [`engine`]: the port to a resource manager; [`engines`]: its adapters and their registry.
//!
//! * [`regulator`]: how much it takes on. [`telemetry`]: what it measures.
//!
//! A worker writes no rows except claim, record, hand-back and its own lease.

pub mod core;
pub mod engine;
pub mod engines;
pub mod pace;
pub mod regulator;
mod session;
pub mod telemetry;

pub use session::{Served, Timing, Worker};
