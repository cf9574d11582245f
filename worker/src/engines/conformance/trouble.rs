//! What a manager that cannot be reached, or whose answers are lost, leaves an engine to say and to make good.

use super::{Bench, Made, Trouble};
use crate::engine::{Engine, EngineError, EngineResult, Stream};
use jobgate_shared::domain::{Ending, Submission, SubmissionTag};
use std::{fmt::Debug, sync::Arc, time::Duration};

/// The only honest answer: nobody knows whether it was carried out.
#[track_caller]
fn is_away<T: Debug>(call: &str, answer: &EngineResult<T>) {
    assert!(matches!(answer, Err(EngineError::Away(_))), "{call}: {answer:?}");
}

pub(super) async fn what_did_not_reach_its_manager_can_be_asked_again(bench: Bench) {
    let cut = bench.troubled(Trouble::Cut);
    let made = bench.create(bench.job(":")).await;
    is_away("poll", &cut.poll(&[(made.tag(), made.submission.clone())]).await);
    is_away("inert", &cut.inert(Duration::ZERO).await);
    // Logs may lie where the manager is not asked; that they are complete, it alone knows.
    match cut.read_log(made.tag(), &made.submission, Stream::Stdout, 0, 1).await {
        Ok(chunk) => assert!(chunk.bytes.is_empty() && !chunk.last, "{chunk:?}"),
        Err(EngineError::Away(_)) => {}
        Err(EngineError::Refused(_)) if !cut.capabilities().logs => {}
        Err(EngineError::Refused(why) | EngineError::NotNow(why)) => panic!("read_log: {why}"),
    }
    asked_again(&bench, &cut).await;
}

pub(super) async fn what_was_done_and_never_answered_can_be_asked_again(bench: Bench) {
    let mute = bench.troubled(Trouble::Mute);
    asked_again(&bench, &mute).await;
}

/// Every call that does something, first in trouble, then by another worker.
async fn asked_again(bench: &Bench, troubled: &Arc<dyn Engine>) {
    let job = bench.job(":");
    is_away("create", &troubled.create(&job).await);
    let made = bench.create(job).await;
    for (tag, leftover) in listed(bench, made.tag()).await {
        if leftover != made.submission {
            bench.engine.discard(tag, Some(&leftover)).await.expect("discard");
        }
    }
    is_away("start", &troubled.start(made.tag(), &made.submission).await);
    bench.start(&made).await;
    bench.ends(&made, Ending::Finished).await;

    let canceled = bench.create(bench.job(":")).await;
    is_away("cancel", &troubled.cancel(canceled.tag(), &canceled.submission).await);
    bench.cancel(&canceled).await;
    bench.ends(&canceled, Ending::Canceled).await;
    bench.start(&canceled).await;

    let by_name = bench.create(bench.job(":")).await;
    is_away("discard", &troubled.discard(by_name.tag(), Some(&by_name.submission)).await);
    bench.engine.discard(by_name.tag(), Some(&by_name.submission)).await.expect("discard");
    let by_tag = bench.create(bench.job(":")).await;
    is_away("discard", &troubled.discard(by_tag.tag(), None).await);
    bench.engine.discard(by_tag.tag(), None).await.expect("discard");

    // May need nobody but the engine's own files.
    drop(troubled.forget(made.tag(), &made.submission).await);
    bench.engine.forget(made.tag(), &made.submission).await.expect("forget");

    for gone in [&by_name, &by_tag] {
        assert_eq!(listed(bench, gone.tag()).await, []);
        drop(bench.engine.start(gone.tag(), &gone.submission).await);
    }
    bench.fence().await;
    let runs = |made: &Made| bench.runs(made.tag());
    assert_eq!([&made, &canceled, &by_name, &by_tag].map(runs), [1, 0, 0, 0]);
}

async fn listed(bench: &Bench, tag: SubmissionTag) -> Vec<(SubmissionTag, Submission)> {
    let mut inert = bench.engine.inert(Duration::ZERO).await.expect("inert");
    inert.retain(|(found, _)| *found == tag);
    inert
}
