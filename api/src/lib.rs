//! The API role: HTTP, acceptance, and the loops that publish hints, record events and keep house.

pub mod accept;
pub mod auth;
pub mod claims;
pub mod clusters;
pub mod dispatcher;
pub mod feed;
pub mod housekeeping;
pub mod http;
pub mod recorder;
pub mod telemetry;
pub mod waiting;

#[cfg(test)]
mod stage;
#[cfg(test)]
mod testing;
