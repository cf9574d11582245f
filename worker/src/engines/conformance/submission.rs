//! How attempts come to run, or never do.

use super::{Bench, Made};
use crate::engine::{EngineError, Sighting, Stream};
use futures::future::join_all;
use jobgate_shared::domain::{Ending, Observation};
use std::time::Duration;

pub(super) async fn what_is_created_does_not_run_until_it_is_started(bench: Bench) {
    let made = bench.create(bench.job(":")).await;
    bench.fence().await;
    assert_eq!(bench.sight(&made).await, Sighting::Inert);
    assert_eq!(bench.runs(made.tag()), 0);
    bench.start(&made).await;
    bench.ends(&made, Ending::Finished).await;
    assert_eq!(bench.runs(made.tag()), 1);
}

pub(super) async fn created_twice_under_one_tag_and_started_twice_it_runs_once(bench: Bench) {
    let job = bench.job(":");
    let first = bench.create(job.clone()).await;
    let second = bench.create(job).await;
    bench.fence().await;
    assert_eq!(bench.runs(first.tag()), 0);
    bench.start(&first).await;
    bench.start(&first).await;
    bench.ends(&first, Ending::Finished).await;
    bench.fence().await;
    assert_eq!(bench.runs(first.tag()), 1);
    if second.submission != first.submission {
        assert_eq!(bench.sight(&second).await, Sighting::Inert, "only the recorded one is started");
    }
}

pub(super) async fn of_two_that_were_started_one_runs(bench: Bench) {
    let job = bench.job(":");
    let both = [bench.create(job.clone()).await, bench.create(job).await];
    assert_ne!(both[0].submission, both[1].submission, "which is more than was declared");
    for made in &both {
        bench.start(made).await;
    }
    let ends = [bench.end(&both[0]).await.ending, bench.end(&both[1]).await.ending];
    assert_eq!(ends.iter().filter(|ending| **ending == Ending::Finished).count(), 1, "{ends:?}");
    assert_eq!(bench.runs(both[0].tag()), 1);
}

pub(super) async fn what_is_created_begins_by_itself(bench: Bench) {
    let made = bench.create(bench.job(":")).await;
    bench.ends(&made, Ending::Finished).await;
    bench.start(&made).await;
    bench.fence().await;
    assert_eq!(bench.runs(made.tag()), 1);
}

pub(super) async fn a_name_is_taken_once_and_one_that_is_buried_never(bench: Bench) {
    let job = bench.job(":");
    let both = [bench.create(job.clone()).await, bench.create(job).await];
    assert_eq!(both[0].submission, both[1].submission);
    bench.ends(&both[0], Ending::Finished).await;
    let buried = bench.job(":");
    bench.engine.discard(buried.tag, None).await.expect("discard");
    let created = bench.engine.create(&buried).await;
    assert!(matches!(created, Err(EngineError::Refused(_))), "{created:?}");
    bench.fence().await;
    assert_eq!([both[0].tag(), buried.tag].map(|tag| bench.runs(tag)), [1, 0]);
}

pub(super) async fn created_twice_it_runs_twice(bench: Bench) {
    let job = bench.job(":");
    let both = [bench.create(job.clone()).await, bench.create(job).await];
    for made in &both {
        bench.ends(made, Ending::Finished).await;
    }
    assert_eq!(bench.runs(both[0].tag()), 2, "once is more than was declared");
}

pub(super) async fn created_and_started_by_many_at_once_it_runs_once(bench: Bench) {
    let other = Bench { engine: bench.rig.engine(), rig: bench.rig.clone() };
    for _ in 0..5 {
        let job = bench.job(":");
        let creates = [&bench, &other, &bench, &other].map(|by| by.create(job.clone()));
        let made = join_all(creates).await.swap_remove(0);
        join_all([&bench, &other, &bench, &other].map(|by| by.start(&made))).await;
        bench.ends(&made, Ending::Finished).await;
        bench.fence().await;
        assert_eq!(bench.runs(made.tag()), 1);
    }
}

pub(super) async fn started_again_after_its_end_it_does_not_run_again(bench: Bench) {
    let made = bench.run(bench.job(":")).await;
    bench.ends(&made, Ending::Finished).await;
    bench.start(&made).await;
    bench.fence().await;
    bench.ends(&made, Ending::Finished).await;
    assert_eq!(bench.runs(made.tag()), 1);
}

pub(super) async fn canceled_before_its_start_it_never_runs(bench: Bench) {
    let made = bench.create(bench.job(":")).await;
    bench.cancel(&made).await;
    bench.ends(&made, Ending::Canceled).await;
    bench.start(&made).await;
    bench.fence().await;
    bench.cancel(&made).await;
    bench.ends(&made, Ending::Canceled).await;
    assert_eq!(bench.runs(made.tag()), 0);
}

pub(super) async fn canceled_while_it_waits_it_never_runs(bench: Bench) {
    let mut job = bench.job(":");
    bench.rig.has_to_wait(&mut job);
    let made = bench.run(job).await;
    let waits = || async {
        match bench.sight(&made).await {
            Sighting::Seen(Observation::Pending { reason }) => reason,
            Sighting::Inert => None,
            other @ (Sighting::Seen(Observation::Running { .. } | Observation::Ended { .. })
            | Sighting::Absent
            | Sighting::Unseen
            | Sighting::Gone { .. }) => panic!("{other:?}"),
        }
    };
    bench.until("what it waits for", waits).await;
    bench.cancel(&made).await;
    bench.ends(&made, Ending::Canceled).await;
    bench.start(&made).await;
    bench.fence().await;
    bench.ends(&made, Ending::Canceled).await;
    assert_eq!(bench.runs(made.tag()), 0);
}

pub(super) async fn a_start_and_a_cancel_at_once_leave_one_truth(bench: Bench) {
    for _ in 0..10 {
        let made = bench.create(bench.job(":")).await;
        tokio::join!(bench.start(&made), bench.cancel(&made));
        let end = bench.end(&made).await;
        bench.fence().await;
        assert_eq!(bench.end(&made).await, end, "an end does not change");
        match end.ending {
            Ending::Finished => assert_eq!(bench.runs(made.tag()), 1),
            // It may have been ended before or after its first line.
            Ending::Canceled => assert!(bench.runs(made.tag()) <= 1),
            Ending::Failed | Ending::TimedOut | Ending::Lost => panic!("{end:?}"),
        }
    }
}

pub(super) async fn canceled_after_its_end_its_finish_stands(bench: Bench) {
    let made = bench.run(bench.job(":")).await;
    bench.ends(&made, Ending::Finished).await;
    bench.cancel(&made).await;
    bench.fence().await;
    bench.ends(&made, Ending::Finished).await;
}

async fn is_inert(bench: &Bench, made: &Made) -> bool {
    let inert = bench.engine.inert(Duration::ZERO).await.expect("inert");
    inert.contains(&(made.tag(), made.submission.clone()))
}

pub(super) async fn what_is_inert_is_listed_and_once_discarded_never_runs(bench: Bench) {
    let made = bench.create(bench.job(":")).await;
    assert!(is_inert(&bench, &made).await);
    let old = bench.engine.inert(Duration::from_hours(1)).await.expect("inert");
    assert!(old.is_empty(), "made just now, listed as an hour old: {old:?}");
    for _ in 0..2 {
        bench.engine.discard(made.tag(), Some(&made.submission)).await.expect("discard");
    }
    assert!(!is_inert(&bench, &made).await);
    // Whether a start of what is no more is refused or does nothing is the engine's choice.
    drop(bench.engine.start(made.tag(), &made.submission).await);
    bench.fence().await;
    assert_eq!(bench.runs(made.tag()), 0);
}

pub(super) async fn a_discard_without_an_id_removes_what_stands_under_the_tag(bench: Bench) {
    let made = bench.create(bench.job(":")).await;
    bench.engine.discard(made.tag(), None).await.expect("discard");
    assert!(!is_inert(&bench, &made).await);
    drop(bench.engine.start(made.tag(), &made.submission).await);
    bench.fence().await;
    assert_eq!(bench.runs(made.tag()), 0);
    let never_made = bench.job(":");
    bench.engine.discard(never_made.tag, None).await.expect("a discard of nothing is done");
}

pub(super) async fn a_discard_does_not_touch_what_was_started(bench: Bench) {
    let made = bench.run(bench.job(":")).await;
    bench.until("a beginning", || async { (bench.runs(made.tag()) == 1).then_some(()) }).await;
    bench.engine.discard(made.tag(), Some(&made.submission)).await.expect("discard");
    bench.engine.discard(made.tag(), None).await.expect("discard");
    assert!(!is_inert(&bench, &made).await);
    bench.ends(&made, Ending::Finished).await;
    bench.engine.discard(made.tag(), None).await.expect("discard");
    bench.ends(&made, Ending::Finished).await;
}

pub(super) async fn a_poll_of_many_answers_each_in_its_place(bench: Bench) {
    let unknown = bench.create(bench.job(":")).await;
    bench.engine.discard(unknown.tag(), Some(&unknown.submission)).await.expect("discard");
    let (mut asked, mut expected) = (Vec::new(), Vec::new());
    for n in 0..30 {
        let made = match n % 3 {
            0 => {
                expected.push(None);
                unknown.clone()
            }
            1 => {
                expected.push(Some(false));
                bench.create(bench.job(":")).await
            }
            _ => {
                expected.push(Some(true));
                let made = bench.run(bench.job(":")).await;
                bench.ends(&made, Ending::Finished).await;
                made
            }
        };
        asked.push((made.tag(), made.submission));
    }
    let sightings = bench.engine.poll(&asked).await.expect("poll");
    let ended = sightings.iter().map(|sighting| match sighting {
        Sighting::Absent => None,
        Sighting::Inert => Some(false),
        Sighting::Seen(Observation::Ended { .. }) => Some(true),
        Sighting::Seen(Observation::Pending { .. } | Observation::Running { .. })
        | Sighting::Gone { .. }
        | Sighting::Unseen => {
            panic!("{sighting:?}")
        }
    });
    assert_eq!(ended.collect::<Vec<_>>(), expected);
    assert_eq!(bench.engine.poll(&[]).await.expect("poll"), []);
}

pub(super) async fn what_one_instance_began_another_ends(bench: Bench) {
    let fresh = || Bench { engine: bench.rig.engine(), rig: bench.rig.clone() };
    let made = bench.create(bench.job(":")).await;
    assert_eq!(fresh().sight(&made).await, Sighting::Inert);
    fresh().start(&made).await;
    fresh().ends(&made, Ending::Finished).await;
    assert_eq!(bench.runs(made.tag()), 1);
    let canceled = bench.create(bench.job(":")).await;
    fresh().cancel(&canceled).await;
    bench.start(&canceled).await;
    fresh().fence().await;
    bench.ends(&canceled, Ending::Canceled).await;
    let reaches = [bench.engine.capabilities().reach, fresh().engine.capabilities().reach];
    assert_eq!(reaches[0], reaches[1]);
    assert_eq!(made.submission.reach, reaches[0]);
}

pub(super) async fn what_was_forgotten_never_runs_again(bench: Bench) {
    let job = bench.job(":");
    let made = bench.run(job.clone()).await;
    bench.ends(&made, Ending::Finished).await;
    for _ in 0..2 {
        bench.engine.forget(made.tag(), &made.submission).await.expect("forget");
    }
    assert_eq!(bench.sight(&made).await, Sighting::Absent);
    let log = bench.engine.read_log(made.tag(), &made.submission, Stream::Stdout, 0, 1).await;
    assert!(matches!(log, Err(EngineError::Refused(_))), "{log:?}");
    // A zombie that starts what it recorded long ago, and one that creates under the tag again.
    drop(bench.engine.start(made.tag(), &made.submission).await);
    let again = bench.create(job).await;
    assert_ne!(again.submission.id, made.submission.id, "a record of the first would take the second for it");
    drop(bench.engine.start(made.tag(), &made.submission).await);
    bench.fence().await;
    assert_eq!(bench.sight(&again).await, Sighting::Inert);
    assert_eq!(bench.runs(made.tag()), 1);
    bench.engine.forget(made.tag(), &made.submission).await.expect("forget");
    assert_eq!(bench.sight(&again).await, Sighting::Inert, "another life is not touched");
    bench.engine.discard(again.tag(), Some(&again.submission)).await.expect("discard");
    assert_eq!(bench.sight(&again).await, Sighting::Absent);
}

pub(super) async fn an_option_it_does_not_know_is_refused_by_name(bench: Bench) {
    let mut spec = bench.spec(&["true"]);
    bench.engine.validate(&spec).expect("a plain command");
    spec.engine.insert("no_such_option".into(), true.into());
    let fault = bench.engine.validate(&spec).expect_err("an unknown option");
    assert_eq!(fault.field, "spec.engine.no_such_option");
}
