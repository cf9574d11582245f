//! The dispatcher: publishes hints for rows that are due, and for rows whose worker is gone.
//!
//! It never claims and never talks to a resource manager. Any number of dispatchers may run at once.

pub mod budget;

pub use budget::HintBudget;
