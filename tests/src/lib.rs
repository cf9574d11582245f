//! What the tests that need real servers stand on: PostgreSQL and RabbitMQ of this run, and processes that can be broken.
//!
//! * [`environment`]: what the runner (`with-services`) told this test process; the only reader of variables.
//! * [`services`]: a database or a vhost per test on the run's servers, or a private server a test may break.
//! * [`process`]: child processes with a log, a readiness probe and a certain end.
//! * [`containment`]: a command whose every descendant is accounted for at its end.
//! * [`gateway`]: the product itself as real processes, a client, and the ledger its jobs write.
//! * [`crash`]: the matrix of every point at which a process can end, and what must hold after each.
//! * [`drill`]: one outage at a time, at the size production meets it, with figures.
//! * [`fuzzing`]: the API in this process, and what must hold of whatever it is sent.
//! * [`proxy`]: the network between a process and a server, to be cut, slowed and silenced; knows a commit when it passes.
//! * [`scrape`]: what the product says it measures.
//! * [`torture`]: all of it at once, with faults that follow from a seed and a checker of what is left.
//! * [`wait`]: polling with a bound, for what gives no signal. [`ports`]: free loopback ports.
//!
//! Nothing here may skip a test because a server is missing.

pub mod containment;
pub mod crash;
pub mod drill;
pub mod environment;
pub mod fuzzing;
pub mod gateway;
pub mod ports;
pub mod process;
pub mod proxy;
pub mod scrape;
pub mod services;
pub mod torture;
pub mod wait;
