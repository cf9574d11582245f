//! The composition root: each role is a store, a broker, tasks and a way to end well.
//!
//! * [`api`], [`worker`], [`recorder`]: the distributed roles, each a process; [`migrate`]: their schema.
//! * [`serve`]: all of them in one process, on [`gateway`], which `run` uses as well.
//! * [`doors`]: the store, the broker and the logs they share. [`clusters`]: the configured resource managers.
//!
//! Nothing here decides about jobs; nothing outside puts roles together.

mod api;
mod clusters;
mod doors;
mod gateway;
mod listening;
mod metrics;
mod migrate;
mod patience;
mod probe;
mod recorder;
mod serve;
mod signals;
mod worker;

pub(crate) use api::run as api;
pub(crate) use clusters::LOCAL_RUNNER;
pub(crate) use gateway::{Gateway, Place};
pub(crate) use migrate::run as migrate;
pub(crate) use recorder::run as recorder;
pub(crate) use serve::run as serve;
pub(crate) use signals::Interrupts;
pub(crate) use worker::run as worker;
