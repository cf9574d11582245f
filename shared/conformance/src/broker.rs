//! What every broker must do, one case per sentence of the contract. Each adapter's tests run all of them through
//! [`broker_conformance!`](crate::broker_conformance).
//!
//! A subscription becomes effective at some time after it was made, and messages travel; so the cases wait for signals
//! with a bound, and show that something does *not* happen by something else that happens instead.

use anyhow::{Context as _, Result, ensure};
use async_trait::async_trait;
use jobgate_shared::{
    broker::{Broker, BrokerHealth, Delivery, Published, Route, Subscription},
    domain::{ClusterName, JobId, Observation, StatusEvent, WorkerId},
    wire::{Hint, MAX_EVENTS, Nudge},
};
use std::{collections::HashSet, fmt::Debug, future::Future, sync::Arc, time::Duration};

/// Longer than any broker takes for one step, reconnecting included.
const BOUND: Duration = Duration::from_secs(20);
/// Between two tries of what becomes true at some time.
const PAUSE: Duration = Duration::from_millis(20);

/// An empty broker and the processes that use it.
#[async_trait]
pub trait Stage: Send + Sync {
    /// The broker as another process sees it.
    fn process(&self, name: &str) -> Arc<dyn Broker>;

    /// Why each dead letter is one, oldest first.
    async fn dead_letters(&self) -> Result<Vec<String>>;
}

/// Makes a test of every case. `$make` is an expression of an async closure that gives `anyhow::Result<impl Stage>`.
#[macro_export]
macro_rules! broker_conformance {
    ($make:expr) => {
        $crate::broker_conformance!(@ $make;
            a_hint_goes_to_one_of_two_processes,
            a_hint_waits_for_its_first_consumer,
            no_more_than_the_prefetch_are_out_at_once,
            ack_through_settles_what_came_before_and_nothing_after,
            ack_through_reaches_over_queues_but_not_ahead,
            a_retried_delivery_comes_again_and_says_so,
            a_dropped_delivery_comes_again,
            a_dropped_subscription_gives_back_what_it_has_out,
            what_a_gone_subscription_gave_back_can_be_settled_no_more,
            a_rejected_delivery_is_kept_with_its_reason_and_not_given_again,
            a_hint_for_a_worker_that_is_not_there_is_unroutable,
            the_hints_that_wait_can_be_counted,
            a_nudge_reaches_every_subscription,
            events_arrive_in_order_and_in_few_messages,
            retried_events_come_again,
            close_ends_every_subscription_and_every_publish,
        );
    };
    (@ $make:expr; $($case:ident),* $(,)?) => {
        $(
            #[tokio::test(flavor = "multi_thread")]
            async fn $case() -> anyhow::Result<()> {
                let stage = ($make)().await?;
                $crate::broker::$case(&stage).await
            }
        )*
    };
}

async fn within<T>(what: &str, step: impl Future<Output = T>) -> Result<T> {
    tokio::time::timeout(BOUND, step).await.with_context(|| format!("{what}: not within {BOUND:?}"))
}

async fn next<T>(subscription: &mut Subscription<T>) -> Result<Delivery<T>> {
    within("the next delivery", subscription.next()).await?.context("the subscription ended")
}

/// Waits for the bodies of `count` deliveries and acknowledges each.
async fn take<T>(subscription: &mut Subscription<T>, count: usize) -> Result<Vec<T>> {
    let mut bodies = Vec::new();
    for _ in 0..count {
        let (body, delivery) = next(subscription).await?.split();
        delivery.ack().await;
        bodies.push(body);
    }
    Ok(bodies)
}

/// One cluster, as the routes of a subscription.
fn cluster(name: &str) -> Result<[Route; 1]> {
    Ok([Route::Cluster(name.parse()?)])
}

fn hint() -> Hint {
    Hint { jobs: vec![JobId::generate()] }
}

async fn publish(broker: &Arc<dyn Broker>, route: &Route, hint: &Hint) -> Result<()> {
    let published = within("a publish", broker.publish_hint(route, hint.clone())).await??;
    ensure!(published == Published::Routed, "{route:?}: {published:?}");
    Ok(())
}

async fn publish_some(broker: &Arc<dyn Broker>, route: &Route, count: usize) -> Result<Vec<Hint>> {
    let hints: Vec<Hint> = std::iter::repeat_with(hint).take(count).collect();
    for hint in &hints {
        publish(broker, route, hint).await?;
    }
    Ok(hints)
}

/// Publishes to a worker until its queue is there.
async fn publish_when_there(broker: &Arc<dyn Broker>, route: &Route, hint: &Hint) -> Result<()> {
    within("the worker's queue", async {
        while broker.publish_hint(route, hint.clone()).await? == Published::Unroutable {
            tokio::time::sleep(PAUSE).await;
        }
        Ok(())
    })
    .await?
}

fn same<T: PartialEq + Debug>(seen: &T, expected: &T) -> Result<()> {
    ensure!(seen == expected, "{seen:?} instead of {expected:?}");
    Ok(())
}

fn ids<'a>(hints: impl IntoIterator<Item = &'a Hint>) -> HashSet<JobId> {
    hints.into_iter().flat_map(|hint| hint.jobs.iter().copied()).collect()
}

/// Each of two workers of a cluster gets hints, and none is given to both.
pub async fn a_hint_goes_to_one_of_two_processes(stage: &impl Stage) -> Result<()> {
    let (api, one, two) = (stage.process("api"), stage.process("one"), stage.process("two"));
    let routes = cluster("shared")?;
    let mut first = one.hints(&routes, 1);
    let mut second = two.hints(&routes, 1);
    let sent = publish_some(&api, &routes[0], 20).await?;
    // Neither settles what it has, and each may have one: both have got one of their own.
    let (held, other) = (next(&mut first).await?, next(&mut second).await?);
    let mut seen = vec![held.body.clone(), other.body.clone()];
    held.ack().await;
    other.ack().await;
    while seen.len() < sent.len() {
        let delivery = within("the next delivery", async {
            tokio::select! {
                delivery = first.next() => delivery,
                delivery = second.next() => delivery,
            }
        });
        let (body, delivery) = delivery.await?.context("a subscription ended")?.split();
        delivery.ack().await;
        seen.push(body);
    }
    same(&ids(&seen), &ids(&sent))
}

/// A cluster's queue is made by its first hint, not by its first worker.
pub async fn a_hint_waits_for_its_first_consumer(stage: &impl Stage) -> Result<()> {
    let (api, worker) = (stage.process("api"), stage.process("worker"));
    let routes = cluster("new")?;
    let sent = publish_some(&api, &routes[0], 3).await?;
    let mut hints = worker.hints(&routes, 10);
    same(&take(&mut hints, 3).await?, &sent)
}

/// Once the prefetch is out, the next message goes to somebody else; an ack makes room again.
pub async fn no_more_than_the_prefetch_are_out_at_once(stage: &impl Stage) -> Result<()> {
    let broker = stage.process("worker");
    let routes = cluster("shared")?;
    let sent = publish_some(&broker, &routes[0], 4).await?;
    let mut first = broker.hints(&routes, 2);
    let held = [next(&mut first).await?, next(&mut first).await?];
    let mut second = broker.hints(&routes, 1);
    let third = next(&mut second).await?;
    same(&third.body, &sent[2])?;
    // The fourth is free now; only the first reader's next ack lets it have it, for the second is full as well.
    let [one, two] = held;
    one.ack().await;
    let fourth = next(&mut first).await?;
    same(&fourth.body, &sent[3])?;
    two.ack().await;
    third.ack().await;
    fourth.ack().await;
    Ok(())
}

/// `ack_through` on the third of five leaves exactly the last two.
pub async fn ack_through_settles_what_came_before_and_nothing_after(stage: &impl Stage) -> Result<()> {
    let broker = stage.process("worker");
    let routes = cluster("shared")?;
    let sent = publish_some(&broker, &routes[0], 5).await?;
    let mut hints = broker.hints(&routes, 5);
    let mut held = Vec::new();
    for _ in 0..5 {
        held.push(next(&mut hints).await?);
    }
    let rest = held.split_off(3);
    let third = held.pop().context("three deliveries")?;
    third.ack_through().await;
    // Settled with the third: dropping them gives nothing back.
    drop(held);
    drop((rest, hints));
    let end = publish_some(&broker, &routes[0], 1).await?;
    let mut hints = broker.hints(&routes, 5);
    let seen = take(&mut hints, 3).await?;
    same(&ids(&seen), &ids(sent[3..].iter().chain(&end)))
}

/// On a subscription over several queues, `ack_through` settles what was handed out, whichever queue it came from,
/// and nothing that was not.
pub async fn ack_through_reaches_over_queues_but_not_ahead(stage: &impl Stage) -> Result<()> {
    let broker = stage.process("worker");
    let routes =
        [Route::Cluster("a".parse()?), Route::Cluster("b".parse()?), Route::Worker(WorkerId::generate())];
    let mut hints = broker.hints(&routes, 30);
    publish_when_there(&broker, &routes[2], &hint()).await?;
    let mut sent = Vec::new();
    for _ in 0..4 {
        for route in &routes {
            sent.extend(publish_some(&broker, route, 1).await?);
        }
    }
    // The first is the one that tried whether the worker's queue is there.
    let mut held = Vec::new();
    for _ in 0..=6 {
        held.push(next(&mut hints).await?);
    }
    let seen: Vec<Hint> = held.iter().map(|delivery| delivery.body.clone()).collect();
    held.pop().context("seven deliveries")?.ack_through().await;
    drop(held);
    // All twelve are with the subscription or on their way; the rest of them must still come, once.
    let rest = take(&mut hints, 6).await?;
    let all = ids(seen.iter().chain(&rest));
    ensure!(ids(&sent).is_subset(&all), "lost: {:?}", ids(&sent).difference(&all));
    drop(hints);
    // Everything was settled: a new reader of the clusters gets what is new, at once.
    let end = [publish_some(&broker, &routes[0], 1).await?, publish_some(&broker, &routes[1], 1).await?];
    let mut hints = broker.hints(&routes[..2], 30);
    same(&ids(&take(&mut hints, 2).await?), &ids(end.iter().flatten()))
}

/// `retry` gives a message again, to anyone, marked as given before.
pub async fn a_retried_delivery_comes_again_and_says_so(stage: &impl Stage) -> Result<()> {
    let broker = stage.process("worker");
    let routes = cluster("shared")?;
    let sent = publish_some(&broker, &routes[0], 1).await?;
    let mut hints = broker.hints(&routes, 1);
    let delivery = next(&mut hints).await?;
    ensure!(!delivery.redelivered, "given out before it was given out");
    delivery.retry().await;
    let again = next(&mut hints).await?;
    same(&again.body, &sent[0])?;
    ensure!(again.redelivered, "not marked as given before");
    again.ack().await;
    Ok(())
}

/// Dropping a delivery is a retry.
pub async fn a_dropped_delivery_comes_again(stage: &impl Stage) -> Result<()> {
    let broker = stage.process("worker");
    let routes = cluster("shared")?;
    let sent = publish_some(&broker, &routes[0], 1).await?;
    let mut hints = broker.hints(&routes, 1);
    drop(next(&mut hints).await?);
    // Split off, too: the half that settles is what counts.
    let (body, settles) = next(&mut hints).await?.split();
    drop(settles);
    same(&body, &sent[0])?;
    same(&take(&mut hints, 1).await?, &sent)
}

/// What a subscription has out goes to another when it is dropped, taken or not.
pub async fn a_dropped_subscription_gives_back_what_it_has_out(stage: &impl Stage) -> Result<()> {
    let (one, two) = (stage.process("one"), stage.process("two"));
    let routes = cluster("shared")?;
    let sent = publish_some(&one, &routes[0], 5).await?;
    let mut first = one.hints(&routes, 5);
    let held = [next(&mut first).await?, next(&mut first).await?];
    drop(first);
    let mut second = two.hints(&routes, 5);
    same(&ids(&take(&mut second, 5).await?), &ids(&sent))?;
    drop(held);
    Ok(())
}

/// A delivery outlives its subscription as a value, not as a claim on the message.
pub async fn what_a_gone_subscription_gave_back_can_be_settled_no_more(stage: &impl Stage) -> Result<()> {
    let broker = stage.process("worker");
    let routes = cluster("shared")?;
    let sent = publish_some(&broker, &routes[0], 2).await?;
    let mut first = broker.hints(&routes, 2);
    let gone = [next(&mut first).await?, next(&mut first).await?];
    drop(first);
    let mut second = broker.hints(&routes, 2);
    let held = [next(&mut second).await?, next(&mut second).await?];
    let [one, two] = gone;
    one.ack_through().await;
    two.ack_through().await;
    drop((held, second));
    let mut third = broker.hints(&routes, 2);
    same(&ids(&take(&mut third, 2).await?), &ids(&sent))
}

/// A rejected message is kept where it can be looked at, with the reason, and is not given again.
pub async fn a_rejected_delivery_is_kept_with_its_reason_and_not_given_again(
    stage: &impl Stage,
) -> Result<()> {
    let broker = stage.process("worker");
    let routes = cluster("shared")?;
    let sent = publish_some(&broker, &routes[0], 2).await?;
    let mut hints = broker.hints(&routes, 1);
    let first = next(&mut hints).await?;
    same(&first.body, &sent[0])?;
    first.reject("it makes no sense").await;
    // The prefetch is one: the second comes when the first is settled for good.
    let second = next(&mut hints).await?;
    same(&second.body, &sent[1])?;
    ensure!(!second.redelivered, "the rejected one came again");
    second.ack().await;
    let dead = within("the dead letter", async {
        loop {
            let dead = stage.dead_letters().await?;
            if !dead.is_empty() {
                return anyhow::Ok(dead);
            }
            tokio::time::sleep(PAUSE).await;
        }
    });
    same(&dead.await??, &vec!["it makes no sense".to_owned()])
}

/// A worker's own queue comes and goes with the worker.
pub async fn a_hint_for_a_worker_that_is_not_there_is_unroutable(stage: &impl Stage) -> Result<()> {
    let (api, process) = (stage.process("api"), stage.process("worker"));
    let (route, sent) = (Route::Worker(WorkerId::generate()), hint());
    let published = within("a publish", api.publish_hint(&route, sent.clone())).await??;
    same(&published, &Published::Unroutable)?;
    let mut hints = process.hints(std::slice::from_ref(&route), 1);
    publish_when_there(&api, &route, &sent).await?;
    same(&take(&mut hints, 1).await?, &vec![sent.clone()])?;
    drop(hints);
    within("the end of the worker's queue", async {
        while api.publish_hint(&route, sent.clone()).await? == Published::Routed {
            tokio::time::sleep(PAUSE).await;
        }
        anyhow::Ok(())
    })
    .await?
}

/// Hints nobody has taken are counted; those with a worker are not, nor those of a queue that never was.
pub async fn the_hints_that_wait_can_be_counted(stage: &impl Stage) -> Result<()> {
    let broker = stage.process("api");
    let (counted, unknown): (ClusterName, ClusterName) = ("counted".parse()?, "unknown".parse()?);
    same(&broker.hints_waiting(&unknown).await, &Some(0))?;
    let routes = [Route::Cluster(counted.clone())];
    publish_some(&broker, &routes[0], 3).await?;
    let waiting = async |expected| {
        within("the count", async {
            while broker.hints_waiting(&counted).await != Some(expected) {
                tokio::time::sleep(PAUSE).await;
            }
        })
        .await
    };
    waiting(3).await?;
    let mut hints = broker.hints(&routes, 2);
    let held = [next(&mut hints).await?, next(&mut hints).await?];
    waiting(1).await?;
    drop((held, hints));
    waiting(3).await
}

/// Every process hears a nudge, the one that gave it included.
pub async fn a_nudge_reaches_every_subscription(stage: &impl Stage) -> Result<()> {
    let (one, two) = (stage.process("one"), stage.process("two"));
    // Nobody listens yet: that is no error.
    within("a nudge", one.nudge(Nudge::Settings)).await??;
    let mut listeners = [one.nudges(), one.nudges(), two.nudges()];
    // A subscription hears from some time on; from then on it hears everything.
    let first = Nudge::Changed;
    for listener in &mut listeners {
        within("a nudge is heard", async {
            loop {
                one.nudge(first.clone()).await?;
                if let Ok(heard) = tokio::time::timeout(PAUSE, listener.next()).await {
                    return heard.context("the subscription ended");
                }
            }
        })
        .await??;
    }
    let last = Nudge::Cancel { worker: WorkerId::generate() };
    within("a nudge", two.nudge(last.clone())).await??;
    for listener in &mut listeners {
        while next(listener).await?.body != last {}
    }
    Ok(())
}

/// `count` events that can be told apart and put in order by `seq`.
fn events(count: u32) -> Vec<StatusEvent> {
    let (job, by) = (JobId::generate(), WorkerId::generate());
    let event = |seq| StatusEvent {
        job,
        attempt: 1,
        epoch: 1,
        seq,
        by,
        submission: Some("17".to_owned()),
        observation: Observation::Running { since: None, reason: None },
        at: chrono::DateTime::UNIX_EPOCH,
    };
    (0..count).map(event).collect()
}

/// Events of one publisher come in its order, and many of them share a message.
pub async fn events_arrive_in_order_and_in_few_messages(stage: &impl Stage) -> Result<()> {
    let (worker, recorder) = (stage.process("worker"), stage.process("recorder"));
    let sent = events(1_001);
    for batch in sent.chunks(450) {
        within("a publish", worker.publish_events(batch.to_vec())).await??;
    }
    let mut subscription = recorder.events(100);
    let mut seen: Vec<StatusEvent> = Vec::new();
    let mut messages = 0;
    let mut last = None;
    while seen.len() < sent.len() {
        let (body, delivery) = next(&mut subscription).await?.split();
        ensure!(body.len() <= MAX_EVENTS, "{} events in one message", body.len());
        seen.extend(body);
        messages += 1;
        // Kept until the next is here: dropping it unsettled would give it back.
        if let Some(earlier) = last.replace(delivery) {
            Delivery::ack(earlier).await;
        }
    }
    if let Some(delivery) = last {
        delivery.ack_through().await;
    }
    same(&messages, &7)?;
    same(&seen, &sent)?;
    within("an empty queue", async {
        while recorder.events_behind().await.is_some_and(|behind| behind > 0) {
            tokio::time::sleep(PAUSE).await;
        }
    })
    .await
}

/// What the recorder could not write comes again.
pub async fn retried_events_come_again(stage: &impl Stage) -> Result<()> {
    let broker = stage.process("recorder");
    let sent = events(3);
    within("a publish", broker.publish_events(sent.clone())).await??;
    let mut subscription = broker.events(10);
    next(&mut subscription).await?.retry().await;
    same(&take(&mut subscription, 1).await?, &vec![sent])
}

/// After `close` nothing is given out and nothing taken.
pub async fn close_ends_every_subscription_and_every_publish(stage: &impl Stage) -> Result<()> {
    let broker = stage.process("all");
    let routes = cluster("shared")?;
    let mut hints = broker.hints(&routes, 1);
    let (mut events, mut nudges) = (broker.events(1), broker.nudges());
    let sent = publish_some(&broker, &routes[0], 2).await?;
    let held = next(&mut hints).await?;
    same(&held.body, &sent[0])?;
    let ends = async { tokio::join!(hints.next(), events.next(), nudges.next()) };
    let (ends, ()) = within("close", async { tokio::join!(ends, broker.close()) }).await?;
    ensure!(ends.0.is_none() && ends.1.is_none() && ends.2.is_none(), "{ends:?}");
    within("settling afterwards", held.ack()).await?;
    ensure!(within("the end", broker.nudges().next()).await?.is_none(), "a new subscription after the end");
    let refused = within("a publish", broker.nudge(Nudge::Changed)).await?;
    ensure!(refused.is_err(), "a publish after the end");
    same(&*broker.health().borrow(), &BrokerHealth::Down)
}
