//! The API role: HTTP, acceptance, and the loops that publish hints, record events and keep house.

pub mod dispatcher;
pub mod housekeeping;
pub mod recorder;

#[cfg(test)]
mod stage;
