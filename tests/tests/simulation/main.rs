//! The product itself, simulated: real workers, dispatchers, recorders and acceptance over a store, a broker, resource
//! managers, clocks and processes that fail as a seed says, in paused time.
//!
//! Everything of a run follows from its seed, so whatever fails once fails again: `make simulate SEED=…` prints what
//! happened. `SIMULATE_SEEDS` and `SIMULATE_FROM` say which seeds are run otherwise.

mod broker;
mod city;
mod cluster;
mod dice;
mod plan;
mod port;
mod process;
mod run;
mod store;
mod users;
mod watch;
mod world;

use plan::{Fault, Flaw, Outcome};
use run::{Verdict, run};
use std::{
    collections::BTreeMap,
    sync::{
        Mutex,
        atomic::{AtomicU64, Ordering},
    },
    time::Instant,
};

/// How many seeds are run when nobody says otherwise.
const SEEDS: u64 = 10_000;

#[allow(clippy::disallowed_methods, reason = "the flags of this test, read here alone")]
fn flag(name: &str) -> Option<u64> {
    let value = std::env::var(name).ok().filter(|value| !value.is_empty())?;
    Some(value.parse().unwrap_or_else(|_| panic!("{name} is {value:?}, not a number")))
}

/// Runs seeds on all cores and hands each verdict over, in no order.
fn run_all(seeds: std::ops::Range<u64>, flaw: Flaw, each: impl Fn(Verdict) + Sync) {
    let next = AtomicU64::new(seeds.start);
    std::thread::scope(|scope| {
        for _ in 0..std::thread::available_parallelism().map_or(2, usize::from) {
            scope.spawn(|| {
                loop {
                    let seed = next.fetch_add(1, Ordering::Relaxed);
                    if seed >= seeds.end {
                        return;
                    }
                    each(run(seed, flaw, false));
                }
            });
        }
    });
}

#[test]
fn every_job_runs_once_and_settles_whatever_fails() {
    if let Some(seed) = flag("SIMULATE_SEED") {
        let verdict = run(seed, Flaw::None, true);
        verdict.trace.iter().for_each(|line| println!("{line}"));
        println!("{:?}\nlasted {:?}", verdict.seen, verdict.lasted);
        assert_eq!(verdict.wrongs, Vec::<String>::new(), "seed {seed}");
        return;
    }
    let (from, count) = (flag("SIMULATE_FROM").unwrap_or(0), flag("SIMULATE_SEEDS").unwrap_or(SEEDS));
    let began = Instant::now();
    let failed: Mutex<BTreeMap<u64, Vec<String>>> = Mutex::default();
    let faults: Mutex<BTreeMap<Fault, u64>> = Mutex::default();
    let outcomes: Mutex<BTreeMap<Outcome, u64>> = Mutex::default();
    let lasted = AtomicU64::new(0);
    run_all(from..from + count, Flaw::None, |verdict| {
        lasted.fetch_add(verdict.lasted.as_secs(), Ordering::Relaxed);
        let (mut faults, mut outcomes) = (world::lock(&faults), world::lock(&outcomes));
        verdict.seen.faults.keys().for_each(|fault| *faults.entry(*fault).or_default() += 1);
        verdict.seen.outcomes.keys().for_each(|outcome| *outcomes.entry(*outcome).or_default() += 1);
        if !verdict.wrongs.is_empty() {
            world::lock(&failed).insert(verdict.seed, verdict.wrongs);
        }
    });
    let (faults, outcomes) = (world::lock(&faults).clone(), world::lock(&outcomes).clone());
    let simulated = lasted.into_inner() / count.max(1);
    println!("{count} seeds of {simulated} s each from {from} in {:?}; seeds that met it:", began.elapsed());
    for (fault, seeds) in &faults {
        println!("  {fault:?} {seeds}");
    }
    for (outcome, seeds) in &outcomes {
        println!("  {outcome:?} {seeds}");
    }
    let failed = world::lock(&failed).clone();
    let first: Vec<String> = failed
        .iter()
        .take(10)
        .map(|(seed, wrongs)| format!("seed {seed}: {}", wrongs.join("\n    ")))
        .collect();
    assert!(failed.is_empty(), "{} of {count} seeds fail\n{}", failed.len(), first.join("\n"));
    if count >= SEEDS {
        let unmet: Vec<_> = Fault::ALL.iter().filter(|fault| !faults.contains_key(fault)).collect();
        let unseen: Vec<_> = Outcome::ALL.iter().filter(|outcome| !outcomes.contains_key(outcome)).collect();
        assert!(unmet.is_empty() && unseen.is_empty(), "nobody met {unmet:?}, nobody saw {unseen:?}");
    }
}

#[test]
fn a_seed_runs_the_same_way_again_to_the_last_line() {
    let seeds = 1_000_000..1_000_200;
    let first: Vec<Verdict> = seeds.clone().map(|seed| run(seed, Flaw::None, true)).collect();
    let again = std::thread::spawn(move || seeds.map(|seed| run(seed, Flaw::None, true)).collect::<Vec<_>>());
    for (first, again) in first.iter().zip(again.join().expect("a second time")) {
        let differs = first.trace.iter().zip(&again.trace).find(|(a, b)| a != b);
        assert_eq!(differs, None, "seed {}", first.seed);
        assert_eq!(*first, again);
    }
}

/// Some seed shows the flaw.
#[track_caller]
fn is_caught(flaw: Flaw, by: &str) {
    const WITHIN: u64 = 500;
    let shows = |seed: &u64| run(*seed, flaw, false).wrongs.iter().any(|wrong| wrong.contains(by));
    let caught = (0..WITHIN).find(shows);
    assert!(caught.is_some(), "{flaw:?} shows with none of {WITHIN} seeds");
}

#[test]
fn a_store_that_lets_every_record_win_is_caught() {
    is_caught(Flaw::EveryRecordWins, "is recorded twice");
}

#[test]
fn a_store_that_lets_a_late_event_replace_an_end_is_caught() {
    is_caught(Flaw::EventsReplaceEnds, "its manager says");
}

#[test]
fn a_claim_that_ignores_the_owner_is_caught() {
    is_caught(Flaw::ClaimsIgnoreOwners, "began 2 times");
}

#[test]
fn a_cancel_that_is_called_done_too_early_is_caught() {
    is_caught(Flaw::CancelsAtOnce, "is called CANCELED while it runs");
}

#[test]
fn a_manager_that_runs_what_should_be_inert_is_caught() {
    is_caught(Flaw::CreateStarts, "began 2 times");
}

#[test]
fn a_manager_that_forgets_names_is_caught() {
    is_caught(Flaw::NamesAreForgotten, "began 2 times");
}

#[test]
fn hints_that_are_lost_and_never_given_again_are_caught() {
    is_caught(Flaw::HintsAreLost, "not settled");
}

#[test]
fn a_claim_that_lands_unheard_and_is_never_found_is_caught() {
    is_caught(Flaw::NothingIsHeld, "not settled");
}

#[test]
fn a_feed_that_leaves_out_ends_is_caught() {
    is_caught(Flaw::EndsAreNotTold, "not settled");
}
