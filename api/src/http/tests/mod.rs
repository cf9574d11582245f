//! Every path over the reference store, and real sockets where the server itself is what is tested.

mod bad_input;
mod batch;
mod callers;
mod claims;
mod commands;
mod documented;
mod events;
mod jobs;
mod logs;
mod operations;
mod reports;
mod server;
mod tenants;
