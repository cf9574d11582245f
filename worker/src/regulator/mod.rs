//! Regulators: how many jobs a worker may hold of one cluster, chosen by configuration.
//!
//! Each is a small pure machine: told the time, what is held and how the manager answers, it says how many may be held
//! in all. The limit is a limit: room is reserved before a claim and never handed out twice. Adoption ignores it.

mod adaptive;
mod rate;

pub(crate) use rate::shared_rate;

use serde::{Deserialize, Serialize};
use std::{fmt::Debug, num::NonZeroU32, time::Duration};

/// How the machine this worker runs on is doing, each 0 to 1.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub struct Load {
    /// Share of processor time in use.
    pub cpu: f64,
    /// Share of memory in use.
    pub memory: f64,
}

/// How one call to the resource manager went.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Answer {
    /// How long it took.
    pub took: Duration,
    /// It was answered, be it with a refusal.
    pub answered: bool,
}

/// The limit on jobs held.
pub trait Regulator: Debug + Send {
    /// How many jobs may be held in all, now, when `held` are (room promised to claims under way included).
    fn allowed(&mut self, now: Duration, held: u32, load: Load) -> u32;

    /// So many were claimed.
    fn claimed(&mut self, _now: Duration, _jobs: u32) {}

    /// So many workers share what is limited for all of them together.
    fn shared(&mut self, _now: Duration, _workers: u32) {}

    /// A create or start was answered, or not.
    fn answered(&mut self, _now: Duration, _answer: Answer) {}
}

/// A share of a whole, in percent.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "u8", into = "u8")]
pub struct Percent(u8);

impl TryFrom<u8> for Percent {
    type Error = String;
    fn try_from(value: u8) -> Result<Self, String> {
        if (1..=100).contains(&value) {
            Ok(Self(value))
        } else {
            Err(format!("{value} is not 1 to 100 percent"))
        }
    }
}

impl From<Percent> for u8 {
    fn from(percent: Percent) -> Self {
        percent.0
    }
}

impl Percent {
    /// As a share, 0 to 1.
    pub fn share(self) -> f64 {
        f64::from(self.0) / 100.0
    }
}

/// Which regulator, and its numbers. Every kind keeps the in-flight cap; the others add to it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case", deny_unknown_fields)]
pub enum RegulatorConfig {
    /// A cap on the jobs a worker holds.
    Fixed {
        /// Most jobs held at once.
        max_in_flight: NonZeroU32,
    },
    /// A cap, and so many claims per second.
    Rate {
        /// Most jobs held at once.
        max_in_flight: NonZeroU32,
        /// Most jobs claimed per second, as a steady rate.
        per_second: NonZeroU32,
    },
    /// A cap, and nothing fresh while this machine is busy: for engines that run jobs where the worker runs.
    Load {
        /// Most jobs held at once.
        max_in_flight: NonZeroU32,
        /// Nothing fresh while more of the processors is in use, in percent.
        max_cpu: Percent,
        /// Nothing fresh while more of the memory is in use, in percent.
        max_memory: Percent,
    },
    /// A cap that falls when the manager errs or slows and rises again while it answers well.
    Adaptive {
        /// Most jobs held at once, however well it goes.
        max_in_flight: NonZeroU32,
        /// The cap never falls below this.
        min_in_flight: NonZeroU32,
        /// An answer slower than this counts as slow, in milliseconds.
        slow_after_ms: NonZeroU32,
    },
}

impl RegulatorConfig {
    /// The machine for this configuration.
    pub fn build(&self) -> Box<dyn Regulator> {
        match *self {
            Self::Fixed { max_in_flight } => Box::new(Fixed(max_in_flight.get())),
            Self::Rate { max_in_flight, per_second } => {
                Box::new(rate::Rate::new(max_in_flight.get(), per_second.get()))
            }
            Self::Load { max_in_flight, max_cpu, max_memory } => Box::new(LoadGuard {
                max: max_in_flight.get(),
                max_cpu: max_cpu.share(),
                max_memory: max_memory.share(),
            }),
            Self::Adaptive { max_in_flight, min_in_flight, slow_after_ms } => {
                let slow_after = Duration::from_millis(slow_after_ms.get().into());
                Box::new(adaptive::Adaptive::new(min_in_flight.get(), max_in_flight.get(), slow_after))
            }
        }
    }
}

/// A cap and nothing else.
#[derive(Debug)]
struct Fixed(u32);

impl Regulator for Fixed {
    fn allowed(&mut self, _now: Duration, _held: u32, _load: Load) -> u32 {
        self.0
    }
}

/// A cap, and no room while the machine is busy.
#[derive(Debug)]
struct LoadGuard {
    max: u32,
    max_cpu: f64,
    max_memory: f64,
}

impl Regulator for LoadGuard {
    fn allowed(&mut self, _now: Duration, held: u32, load: Load) -> u32 {
        // What is held goes on; a busy machine only takes nothing more. One job may always run: a machine kept busy by
        // others must not stop the queue for ever.
        if load.cpu > self.max_cpu || load.memory > self.max_memory {
            held.max(1).min(self.max)
        } else {
            self.max
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn config(toml_like: serde_json::Value) -> Result<RegulatorConfig, serde_json::Error> {
        serde_json::from_value(toml_like)
    }

    #[test]
    fn a_busy_machine_takes_nothing_fresh_and_never_stops_for_ever() {
        let config =
            config(serde_json::json!({"kind":"load","max_in_flight":8,"max_cpu":90,"max_memory":80}))
                .unwrap();
        let mut regulator = config.build();
        let busy = Load { cpu: 0.95, memory: 0.1 };
        assert_eq!(regulator.allowed(Duration::ZERO, 3, Load::default()), 8);
        assert_eq!(regulator.allowed(Duration::ZERO, 3, busy), 3);
        assert_eq!(regulator.allowed(Duration::ZERO, 0, busy), 1);
    }

    #[test]
    fn impossible_numbers_are_refused() {
        assert!(config(serde_json::json!({"kind":"fixed","max_in_flight":0})).is_err());
        assert!(
            config(serde_json::json!({"kind":"load","max_in_flight":1,"max_cpu":101,"max_memory":1}))
                .is_err()
        );
        assert!(config(serde_json::json!({"kind":"fixed","max_in_flight":1,"per_second":1})).is_err());
    }

    proptest! {
        #[test]
        fn no_regulator_ever_allows_more_than_its_cap(
            cap in 1u32..50, per_second in 1u32..1000, steps in prop::collection::vec((0u64..2000, 0u32..60, any::<bool>()), 1..200)
        ) {
            let cap = NonZeroU32::new(cap).unwrap();
            let small = NonZeroU32::MIN;
            let configs = [
                RegulatorConfig::Fixed { max_in_flight: cap },
                RegulatorConfig::Rate { max_in_flight: cap, per_second: NonZeroU32::new(per_second).unwrap() },
                RegulatorConfig::Load { max_in_flight: cap, max_cpu: Percent(50), max_memory: Percent(50) },
                RegulatorConfig::Adaptive { max_in_flight: cap, min_in_flight: small, slow_after_ms: cap },
            ];
            for config in configs {
                let (mut regulator, mut now) = (config.build(), Duration::ZERO);
                for (ms, held, answered) in &steps {
                    now += Duration::from_millis(*ms);
                    let held = (*held).min(cap.get());
                    let allowed = regulator.allowed(now, held, Load { cpu: 0.6, memory: 0.0 });
                    prop_assert!(allowed <= cap.get());
                    regulator.claimed(now, allowed.saturating_sub(held));
                    regulator.answered(now, Answer { took: Duration::from_millis(*ms), answered: *answered });
                }
            }
        }
    }
}
