//! The faults by name, and which come when, alone or two at once: that follows from the seed.

use super::deployment::LEASE;
use clap::ValueEnum;
use rand::{RngExt as _, SeedableRng as _, rngs::StdRng, seq::SliceRandom as _};
use serde::Serialize;
use std::time::Duration;

/// A fault.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, ValueEnum)]
#[serde(rename_all = "kebab-case")]
pub enum Fault {
    /// `kill -9` of one worker after another.
    KillWorkers,
    /// `kill -9` of APIs and recorders.
    KillGateway,
    /// Workers are stopped for twice their lease, then go on.
    FreezeWorkers,
    /// APIs and recorders are stopped for a while.
    FreezeGateway,
    /// RabbitMQ ends, in order or by `kill -9`, and comes back.
    BrokerRestart,
    /// RabbitMQ blocks every publisher.
    MemoryAlarm,
    /// Queues are purged again and again, and deleted once.
    QueuePurge,
    /// PostgreSQL ends at once, as in a crash, and comes back.
    DatabaseRestart,
    /// Server processes of PostgreSQL are ended under their clients.
    BackendKills,
    /// PostgreSQL can be connected to and says nothing, for longer than a lease.
    DatabaseSilent,
    /// Commits whose answer nobody hears, half of them carried out.
    UnknownCommits,
    /// RabbitMQ hears nothing, or is not heard.
    BrokerSilent,
    /// Connections to both servers end at random, amid messages.
    Cuts,
    /// The network is slow.
    Delays,
    /// Clocks of workers jump by up to ten minutes.
    Clocks,
    /// The disk under the spool is full.
    DiskFull,
    /// Every job is canceled at a moment of chance, while workers are killed.
    CancelRace,
}

/// What a fault acts on; two on the same are not done at once.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Ground {
    Workers,
    Gateway,
    Broker,
    Database,
    Network,
    Clocks,
    Disk,
}

impl Fault {
    /// Its name on the command line and in reports.
    pub fn name(self) -> String {
        self.to_possible_value().map(|value| value.get_name().to_owned()).unwrap_or_default()
    }

    fn ground(self) -> Ground {
        match self {
            Self::KillWorkers | Self::FreezeWorkers | Self::CancelRace => Ground::Workers,
            Self::KillGateway | Self::FreezeGateway => Ground::Gateway,
            Self::BrokerRestart | Self::MemoryAlarm | Self::QueuePurge => Ground::Broker,
            Self::DatabaseRestart | Self::BackendKills => Ground::Database,
            Self::DatabaseSilent | Self::UnknownCommits | Self::BrokerSilent | Self::Cuts | Self::Delays => {
                Ground::Network
            }
            Self::Clocks => Ground::Clocks,
            Self::DiskFull => Ground::Disk,
        }
    }

    /// How long it lasts, about.
    pub fn lasts(self) -> Duration {
        let seconds = match self {
            Self::KillWorkers | Self::CancelRace => 10,
            Self::FreezeWorkers | Self::DatabaseSilent => 2 * LEASE.as_secs() + 1,
            Self::MemoryAlarm | Self::UnknownCommits | Self::BrokerSilent | Self::Clocks => 8,
            Self::KillGateway | Self::FreezeGateway | Self::BackendKills | Self::Delays => 6,
            Self::BrokerRestart | Self::DatabaseRestart | Self::QueuePurge | Self::Cuts | Self::DiskFull => 5,
        };
        Duration::from_secs(seconds)
    }
}

/// One or two faults at once.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Step {
    /// Which.
    pub faults: Vec<Fault>,
    /// What decides everything about them.
    pub seed: u64,
}

/// Steps without end. With `only` just those faults, each alone; otherwise every fault comes once before one comes again.
pub fn schedule(seed: u64, only: &[Fault]) -> impl Iterator<Item = Step> {
    let mut rng = StdRng::seed_from_u64(seed);
    let all: Vec<Fault> = if only.is_empty() { Fault::value_variants().to_vec() } else { only.to_vec() };
    let alone = !only.is_empty();
    let mut left: Vec<Fault> = Vec::new();
    std::iter::from_fn(move || {
        if left.is_empty() {
            left.clone_from(&all);
            left.shuffle(&mut rng);
        }
        let first = left.pop()?;
        let mut faults = vec![first];
        if !alone && rng.random_bool(0.5) {
            let fits = |other: &Fault| other.ground() != first.ground();
            if let Some(place) = left.iter().rposition(fits) {
                faults.push(left.remove(place));
            }
        }
        Some(Step { faults, seed: rng.random() })
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeSet;

    #[test]
    fn every_fault_comes_before_one_comes_again_and_the_seed_decides() {
        let all = Fault::value_variants().len();
        let (mut seen, mut taken) = (BTreeSet::new(), 0);
        for step in schedule(7, &[]) {
            taken += step.faults.len();
            seen.extend(step.faults);
            if taken >= all {
                break;
            }
        }
        assert_eq!((seen.len(), taken), (all, all));
        let steps = |seed| schedule(seed, &[]).take(40).collect::<Vec<_>>();
        assert_eq!(steps(7), steps(7));
        assert_ne!(steps(7), steps(8));
        for step in steps(7) {
            let grounds: Vec<Ground> = step.faults.iter().map(|fault| fault.ground()).collect();
            assert!(grounds.len() < 2 || grounds[0] != grounds[1], "{step:?}");
        }
    }

    #[test]
    fn only_the_named_faults_come_each_alone() {
        for step in schedule(7, &[Fault::Clocks, Fault::Cuts]).take(20) {
            assert_eq!(step.faults.len(), 1);
            assert!(matches!(step.faults[0], Fault::Clocks | Fault::Cuts));
        }
    }
}
