//! Tells what was seen: status events to the broker in batches, and straight to the rows when the broker stays away.

use super::Worker;
use jobgate_shared::{
    domain::{JobId, Observation, StatusEvent},
    failpoint,
    retry::Delays,
};
use std::{collections::BTreeMap, sync::Arc};
use tokio::{sync::mpsc, time::Instant};

/// Most events handed over at once.
const MAX_BATCH: usize = 2000;

/// Publishes until the channel closes; then hands over what is left, to the rows if need be.
pub(super) async fn run(worker: Arc<Worker>, mut waiting: mpsc::UnboundedReceiver<StatusEvent>) {
    let mut batch = Vec::new();
    let mut delays = Delays::network();
    let mut away_since: Option<Instant> = None;
    while !batch.is_empty() || waiting.recv_many(&mut batch, MAX_BATCH).await > 0 {
        // What came while the broker was away joins, and of each job only the newest report is worth telling.
        while let Ok(event) = waiting.try_recv() {
            batch.push(event);
            if batch.len() >= MAX_BATCH && away_since.is_none() {
                break;
            }
        }
        let closing = waiting.is_closed() && waiting.is_empty();
        let patience = away_since.is_some_and(|since| since.elapsed() >= worker.timing.broker_patience);
        if away_since.is_some() && (closing || patience) && apply(&worker, &mut batch, closing).await {
            continue;
        }
        failpoint::pass("publish.begins");
        match worker.broker.publish_events(batch.clone()).await {
            Ok(()) => {
                failpoint::pass("publish.confirmed");
                batch.clear();
                delays.reset();
                away_since = None;
            }
            Err(error) => {
                if away_since.is_none() {
                    tracing::warn!(
                        events = batch.len(),
                        error = format!("{:#}", anyhow::Error::new(error)),
                        "status events not taken by the broker"
                    );
                }
                away_since.get_or_insert_with(Instant::now);
                batch = newest(batch);
                if !closing {
                    tokio::time::sleep(delays.next_delay()).await;
                } else if !apply(&worker, &mut batch, closing).await {
                    // The rows are away too. Whoever adopts these jobs sees the same and tells it again.
                    tracing::warn!(events = batch.len(), "stopping with events nobody took");
                    return;
                }
            }
        }
    }
}

/// Writes the events to the rows themselves, at the end (`closing`) or before; true when they are there.
async fn apply(worker: &Worker, batch: &mut Vec<StatusEvent>, closing: bool) -> bool {
    let [before, behind] =
        if closing { ["hand_over.begins", "hand_over.done"] } else { ["apply.begins", "apply.done"] };
    failpoint::pass(before);
    match worker.leases.apply(batch).await {
        Ok(_) => {
            failpoint::pass(behind);
            metrics::counter!("jobgate_events_applied_directly_total").increment(batch.len() as u64);
            batch.clear();
            true
        }
        Err(error) => {
            tracing::warn!(
                events = batch.len(),
                error = format!("{:#}", anyhow::Error::new(error)),
                "the rows do not take status events either"
            );
            false
        }
    }
}

/// The newest report of each job, its end if it has one.
fn newest(events: Vec<StatusEvent>) -> Vec<StatusEvent> {
    let mut kept: BTreeMap<(JobId, u32), StatusEvent> = BTreeMap::new();
    for event in events {
        let key = (event.job, event.attempt);
        let ended = kept.get(&key).is_some_and(|e| matches!(e.observation, Observation::Ended { .. }));
        if !ended {
            kept.insert(key, event);
        }
    }
    kept.into_values().collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use chrono::DateTime;
    use jobgate_shared::domain::{Ending, WorkerId};

    #[test]
    fn while_the_broker_is_away_each_job_keeps_its_newest_report_and_an_end_is_never_replaced() {
        let (job, other, by) = (JobId::generate(), JobId::generate(), WorkerId::generate());
        let event = |job, seq, observation| StatusEvent {
            job,
            attempt: 1,
            epoch: 1,
            seq,
            by,
            submission: None,
            observation,
            at: DateTime::UNIX_EPOCH,
        };
        let running = || Observation::Running { since: None, reason: None };
        let ended = Observation::Ended {
            ending: Ending::Finished,
            exit_code: Some(0),
            reason: None,
            began: None,
            at: None,
        };
        let all = vec![
            event(job, 1, running()),
            event(other, 1, running()),
            event(job, 2, ended),
            event(job, 3, running()),
        ];
        let kept: Vec<_> = newest(all).into_iter().map(|e| (e.job, e.seq)).collect();
        assert_eq!(kept, [(job, 2), (other, 1)]);
    }
}
