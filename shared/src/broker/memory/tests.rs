//! What only this broker promises: bounds.

use super::*;
use crate::domain::{JobId, Observation, WorkerId};
use std::time::Duration;

fn jobs(count: usize) -> Hint {
    Hint { jobs: std::iter::repeat_with(JobId::generate).take(count).collect() }
}

fn event() -> StatusEvent {
    StatusEvent {
        job: JobId::generate(),
        attempt: 1,
        epoch: 1,
        seq: 0,
        by: WorkerId::generate(),
        submission: None,
        observation: Observation::Pending { reason: None },
        at: chrono::DateTime::UNIX_EPOCH,
    }
}

#[tokio::test]
async fn a_hint_beyond_the_bound_is_refused_and_there_is_room_again_when_one_is_taken() {
    let broker = Memory::new();
    let route = Route::Cluster("a".parse().unwrap());
    let half = HINTED_JOBS / 2;
    assert_eq!(broker.publish_hint(&route, jobs(half)).await.unwrap(), Published::Routed);
    assert_eq!(broker.publish_hint(&route, jobs(half)).await.unwrap(), Published::Routed);
    assert!(matches!(broker.publish_hint(&route, jobs(1)).await, Err(BrokerError::Blocked)));
    let mut hints = broker.hints(std::slice::from_ref(&route), 1);
    let held = hints.next().await.unwrap();
    assert_eq!(broker.publish_hint(&route, jobs(1)).await.unwrap(), Published::Routed);
    held.ack().await;
}

#[tokio::test(start_paused = true)]
async fn a_publisher_of_events_waits_for_the_recorder_when_too_many_wait() {
    let broker = Memory::new();
    let full = vec![event(); WAITING_EVENTS];
    broker.publish_events(full).await.unwrap();
    let one_more = broker.publish_events(vec![event()]);
    tokio::pin!(one_more);
    tokio::time::timeout(Duration::from_hours(1), &mut one_more).await.unwrap_err();
    let mut events = broker.events(1);
    let taken = events.next().await.unwrap();
    one_more.await.unwrap();
    taken.ack().await;
    // Closed while it waits: it gives up.
    broker.publish_events(vec![event(); MAX_EVENTS - 1]).await.unwrap();
    let refused = tokio::join!(broker.publish_events(vec![event()]), broker.close()).0;
    assert!(matches!(refused, Err(BrokerError::Down(_))));
}

#[tokio::test]
async fn a_listener_that_sleeps_loses_the_oldest_nudges_and_hears_the_newest() {
    let broker = Memory::new();
    let mut nudges = broker.nudges();
    for _ in 0..3 * WAITING_NUDGES {
        broker.nudge(Nudge::Changed).await.unwrap();
    }
    broker.nudge(Nudge::Settings).await.unwrap();
    let mut heard = 0;
    while nudges.next().await.unwrap().body != Nudge::Settings {
        heard += 1;
    }
    assert_eq!(heard, WAITING_NUDGES - 1);
}

#[tokio::test]
async fn what_waited_for_a_worker_goes_with_it() {
    let broker = Memory::new();
    let route = Route::Worker(WorkerId::generate());
    let hints = broker.hints(std::slice::from_ref(&route), 1);
    assert_eq!(broker.publish_hint(&route, jobs(1)).await.unwrap(), Published::Routed);
    drop(hints);
    assert_eq!(broker.publish_hint(&route, jobs(1)).await.unwrap(), Published::Unroutable);
    assert_eq!(broker.hints.waiting(&route), 0);
}

#[tokio::test]
async fn a_busy_queue_does_not_starve_another() {
    let broker = Memory::new();
    let routes = [Route::Cluster("busy".parse().unwrap()), Route::Cluster("quiet".parse().unwrap())];
    let quiet = jobs(1);
    for _ in 0..100 {
        assert_eq!(broker.publish_hint(&routes[0], jobs(1)).await.unwrap(), Published::Routed);
    }
    assert_eq!(broker.publish_hint(&routes[1], quiet.clone()).await.unwrap(), Published::Routed);
    let mut hints = broker.hints(&routes, 10);
    let mut bodies = Vec::new();
    for _ in 0..2 {
        let (body, delivery) = hints.next().await.unwrap().split();
        delivery.ack().await;
        bodies.push(body);
    }
    assert!(bodies.contains(&quiet));
}
