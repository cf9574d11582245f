//! What the tests that need real servers stand on: PostgreSQL and RabbitMQ of this run, and processes that can be broken.
//!
//! * [`environment`]: what the runner (`with-services`) told this test process; the only reader of variables.
//! * [`services`]: a database or a vhost per test on the run's servers, or a private server a test may break.
//! * [`process`]: child processes with a log, a readiness probe and a certain end.
//! * [`containment`]: a command whose every descendant is accounted for at its end.
//! * [`wait`]: polling with a bound, for what gives no signal. [`ports`]: free loopback ports.
//!
//! Nothing here knows jobs; nothing here may skip a test because a server is missing.

pub mod containment;
pub mod environment;
pub mod ports;
pub mod process;
pub mod services;
pub mod wait;
