//! Random operations on two stores that must agree: an adapter, and the reference model ([`MemoryStore`]).
//!
//! [`agree`] draws sequences of calls of the whole port, gives both stores the same ones at the same moments of the same
//! clock, and wants the same answers, times included. What legitimately differs is very little, and each place says why:
//! the order of answers that the port promises none for, which of many stranded jobs an answer with a limit holds, and
//! the numbers inside feed cursors. At the end everything visible is compared and audited.
//!
//! * `pair`: the two stores, what exists in them so far, and how an operation picks from that.
//! * One module for each part a caller plays, with the calls it makes: `producing`, `working`, `telling`, `dispatching`,
//!   `keeping`, `operating`. Each draws its calls, so that they mostly meet jobs, workers and keys that exist.
//! * `audit`: what must hold in the end.
//!
//! A sequence that fails is shrunk and told call by call. Ids and times in it are the same whenever it is run again.

mod audit;
mod dispatching;
mod keeping;
mod operating;
mod pair;
mod producing;
mod telling;
mod working;

use self::{
    dispatching::Dispatching, keeping::Keeping, operating::Operating, pair::Pair, producing::Producing,
    telling::Telling, working::Working,
};
use crate::store::Stage;
use anyhow::{Context as _, Result, anyhow};
#[cfg(doc)]
use jobgate_shared::store::memory::MemoryStore;
use proptest::{
    prelude::*,
    sample::select,
    test_runner::{Config, TestCaseError, TestError, TestRunner},
};
use std::time::Duration;
use tokio::{runtime::Handle, task::block_in_place};

/// Most calls in one sequence.
const LONGEST: usize = 100;
/// How long a failing sequence is made shorter, in milliseconds.
const SHRINK_FOR: u32 = 120_000;

/// One step of a sequence: a call of the port by one who plays that part, or time.
#[derive(Debug, Clone)]
enum Operation {
    Pass(Duration),
    Producer(Producing),
    Worker(Working),
    Watcher(Telling),
    Dispatcher(Dispatching),
    Housekeeper(Keeping),
    Operator(Operating),
}

impl Operation {
    fn any() -> impl Strategy<Value = Self> {
        prop_oneof![
            2 => select(PASSES).prop_map(Self::Pass),
            5 => Producing::any().prop_map(Self::Producer),
            12 => Working::any().prop_map(Self::Worker),
            8 => Telling::any().prop_map(Self::Watcher),
            5 => Dispatching::any().prop_map(Self::Dispatcher),
            3 => Keeping::any().prop_map(Self::Housekeeper),
            1 => Operating::any().prop_map(Self::Operator),
        ]
    }

    async fn perform(&self, pair: &mut Pair<'_>) -> Result<()> {
        match self {
            Self::Pass(by) => pair.pass(*by).await,
            Self::Producer(producing) => producing.perform(pair).await,
            Self::Worker(working) => working.perform(pair).await,
            Self::Watcher(telling) => telling.perform(pair).await,
            Self::Dispatcher(dispatching) => dispatching.perform(pair).await,
            Self::Housekeeper(keeping) => keeping.perform(pair).await,
            Self::Operator(operating) => operating.perform(pair).await,
        }
    }
}

/// Less and more than every lease, hint and back-off that is drawn, and than an adapter's own delays.
const PASSES: &[Duration] = &[
    Duration::from_millis(1),
    Duration::from_millis(1),
    Duration::from_secs(1),
    Duration::from_secs(1),
    Duration::from_secs(15),
    Duration::from_secs(15),
    Duration::from_mins(40),
    Duration::from_hours(2),
];
/// Hints, pauses, leases: over at once, soon, or not soon.
const SPANS: &[Duration] =
    &[Duration::ZERO, Duration::from_secs(1), Duration::from_hours(1), Duration::from_hours(3)];

/// Runs random sequences on the model and on a new stage of `make`'s each, and tells the first on which they differ, as
/// short as it can be made. `usual` sequences, or as many as `PROPTEST_CASES` says. To be called on a runtime of many
/// threads, one of which it keeps.
pub fn agree<S: Stage>(usual: u32, make: impl AsyncFn() -> Result<S>) -> Result<()> {
    let runtime = Handle::current();
    let defaults = Config::default();
    let config = Config {
        // proptest reads the variable, and says this when there is none.
        cases: if defaults.cases == 256 { usual } else { defaults.cases },
        failure_persistence: None,
        max_shrink_iters: u32::MAX,
        max_shrink_time: SHRINK_FOR,
        ..defaults
    };
    let first = (Producing::posts(), Working::registers());
    let then = proptest::collection::vec(Operation::any(), 0..LONGEST);
    // Nothing can happen to jobs without jobs and workers.
    let sequences = (first, then).prop_map(|((posts, registers), then)| {
        let first = [Operation::Producer(posts), Operation::Worker(registers)];
        first.into_iter().chain(then).collect::<Vec<_>>()
    });
    let on_new_stage = |operations: &[Operation]| {
        runtime.block_on(async {
            let stage = make().await?;
            let outcome = run(&stage, operations).await;
            stage.close().await;
            outcome
        })
    };
    block_in_place(|| {
        let outcome = TestRunner::new(config).run(&sequences, |operations| {
            on_new_stage(&operations).map_err(|error| TestCaseError::fail(format!("{error:#}")))
        });
        outcome.map_err(|error| match error {
            TestError::Fail(_, operations) => shortened(operations, on_new_stage),
            TestError::Abort(reason) => anyhow!("no sequences were drawn: {reason}"),
        })
    })
}

/// Why the sequence fails, and its calls but for those it fails without. proptest drops calls first and makes the rest
/// simpler afterwards, and then more can be dropped.
fn shortened(mut operations: Vec<Operation>, run: impl Fn(&[Operation]) -> Result<()>) -> anyhow::Error {
    let mut failure = run(&operations).err();
    let mut at = 0;
    while at < operations.len() {
        let mut fewer = operations.clone();
        fewer.remove(at);
        match run(&fewer) {
            Ok(()) => at += 1,
            Err(error) => (failure, operations, at) = (Some(error), fewer, 0),
        }
    }
    let reason = failure.unwrap_or_else(|| anyhow!("it failed, and does not fail when it is run again"));
    let told = |(n, operation)| format!("{n:3} {operation:?}");
    let calls: Vec<String> = operations.iter().enumerate().map(told).collect();
    anyhow!("{reason:#}\nafter these calls:\n{}", calls.join("\n"))
}

/// One sequence, from two empty stores to the audit.
async fn run(stage: &dyn Stage, operations: &[Operation]) -> Result<()> {
    let mut pair = Pair::of(stage).await?;
    for (n, operation) in operations.iter().enumerate() {
        operation.perform(&mut pair).await.with_context(|| format!("call {n}, {operation:?}"))?;
    }
    audit::audit(&mut pair).await.context("the audit at the end")
}
