//! The broker behind RabbitMQ: the contract every broker keeps, and what only a real broker can do to us: stop, raise an
//! alarm, lose a queue, carry bytes nobody understands.

use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use async_trait::async_trait;
use futures::future::join_all;
use jobgate_conformance::broker::Stage;
use jobgate_conformance::broker_conformance;
use jobgate_shared::broker::rabbitmq::{QueueKind, RabbitMqConfig};
use jobgate_shared::broker::{
    Broker, BrokerError, BrokerHealth, Delivery, Published, Route, Subscription, rabbitmq,
};
use jobgate_shared::domain::{JobId, Observation, StatusEvent, WorkerId};
use jobgate_shared::settings::{Number, Period};
use jobgate_shared::wire::{Hint, Nudge};
use jobgate_tests::services::{RabbitMq, Vhost};
use jobgate_tests::wait::until;
use lapin::message::BasicGetMessage;
use lapin::options::{
    BasicGetOptions, BasicPublishOptions, ConfirmSelectOptions, QueueBindOptions, QueueDeclareOptions,
};
use lapin::types::{AMQPValue, FieldTable};
use lapin::{BasicProperties, Channel, Confirmation, Connection, ConnectionProperties};

/// Longer than a reconnect takes, with its delay.
const RECONNECT: Duration = Duration::from_mins(1);
const STEP: Duration = Duration::from_secs(20);
const DISPATCH: &str = "jobgate.dispatch.shared";
const DEAD: &str = "jobgate.dead";

struct Rig(Vhost);

#[async_trait]
impl Stage for Rig {
    fn process(&self, name: &str) -> Arc<dyn Broker> {
        Arc::new(connect(self.0.url(), name))
    }

    async fn dead_letters(&self) -> Result<Vec<String>> {
        dead_letters(&self.0).await?.iter().map(|letter| header(letter, "jobgate-reason")).collect()
    }
}

broker_conformance!(async || anyhow::Ok(Rig(Vhost::fresh().await?)));

fn config(url: &str) -> RabbitMqConfig {
    RabbitMqConfig { url: url.parse().expect("the harness's address"), ..RabbitMqConfig::default() }
}

fn connect(url: &str, process: &str) -> rabbitmq::RabbitMq {
    rabbitmq::RabbitMq::connect_lazily(config(url), process)
}

fn shared() -> Route {
    Route::Cluster("shared".parse().expect("a name"))
}

fn hint() -> Hint {
    Hint { jobs: vec![JobId::generate()] }
}

async fn next<T>(subscription: &mut Subscription<T>, within: Duration) -> Result<Delivery<T>> {
    let next = tokio::time::timeout(within, subscription.next()).await;
    next.with_context(|| format!("no delivery within {within:?}"))?.context("the subscription ended")
}

async fn publish(broker: &impl Broker, route: &Route) -> Result<Hint> {
    let hint = hint();
    match broker.publish_hint(route, hint.clone()).await? {
        Published::Routed => Ok(hint),
        Published::Unroutable => anyhow::bail!("no queue takes it"),
    }
}

/// Publishes until it succeeds: a queue that just came back may have no leader yet.
async fn publish_again(broker: &impl Broker, route: &Route) -> Result<Hint> {
    until("a publish succeeds again", RECONNECT, async || publish(broker, route).await).await
}

async fn is(broker: &impl Broker, health: BrokerHealth) -> Result<()> {
    let mut watch = broker.health();
    let becomes = watch.wait_for(|now| *now == health);
    tokio::time::timeout(RECONNECT, becomes).await.with_context(|| format!("not {health:?}"))??;
    Ok(())
}

/// A channel with confirms, past the adapter.
async fn raw(url: &str) -> Result<(Connection, Channel)> {
    let connection = Connection::connect(url, ConnectionProperties::default()).await?;
    let channel = connection.create_channel().await?;
    channel.confirm_select(ConfirmSelectOptions::default()).await?;
    Ok((connection, channel))
}

async fn publish_raw(channel: &Channel, queue: &str, body: &[u8]) -> Result<()> {
    let options = BasicPublishOptions { mandatory: true, ..BasicPublishOptions::default() };
    let properties = BasicProperties::default();
    let confirm = channel.basic_publish("".into(), queue.into(), options, body, properties).await?.await?;
    ensure!(matches!(confirm, Confirmation::Ack(None)), "{confirm:?}");
    Ok(())
}

/// What is in the queue of dead letters; it stays there.
async fn dead_letters(vhost: &Vhost) -> Result<Vec<BasicGetMessage>> {
    let (connection, channel) = raw(vhost.url()).await?;
    let mut letters = Vec::new();
    while let Some(letter) = channel.basic_get(DEAD.into(), BasicGetOptions::default()).await? {
        letters.push(letter);
    }
    connection.close(200, "seen".into()).await?;
    Ok(letters)
}

fn header(letter: &BasicGetMessage, name: &str) -> Result<String> {
    let headers = letter.properties.headers().as_ref().context("headers")?;
    match headers.inner().get(name) {
        Some(AMQPValue::LongString(text)) => Ok(text.to_string()),
        other => bail!("{name}: {other:?}"),
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn subscriptions_outlive_the_broker_and_publishes_fail_at_once_while_it_is_away() -> Result<()> {
    let mut server = RabbitMq::start().await?;
    let vhost = server.vhost().await?;
    let broker = connect(vhost.url(), "before");
    let mut hints = broker.hints(&[shared()], 10);
    let mut nudges = broker.nudges();
    for kill in [false, true] {
        let sent = publish_again(&broker, &shared()).await?;
        let held = next(&mut hints, STEP).await?;
        ensure!(held.body == sent, "{held:?}");
        if kill {
            server.kill()?;
        } else {
            server.stop().await?;
        }
        is(&broker, BrokerHealth::Down).await?;
        let asked = Instant::now();
        let refused = broker.publish_hint(&shared(), hint()).await;
        ensure!(matches!(refused, Err(BrokerError::Down(_))), "{refused:?}");
        ensure!(asked.elapsed() < Duration::from_secs(1), "refused after {:?}", asked.elapsed());
        ensure!(broker.hints_waiting(&"shared".parse()?).await.is_none(), "a depth nobody can know");
        // A process that begins while the broker is away is no worse off.
        let late = connect(vhost.url(), "during");
        let mut late_events = late.events(1);

        server.start_again().await?;
        is(&broker, BrokerHealth::Up).await?;
        // What was out comes again; settling it under its old tag means nothing.
        let again = next(&mut hints, RECONNECT).await?;
        ensure!(again.body == sent && again.redelivered, "{again:?}");
        held.ack().await;
        again.ack().await;
        let event = event();
        until("events are taken again", RECONNECT, async || {
            Ok(late.publish_events(vec![event.clone()]).await?)
        })
        .await?;
        let told = next(&mut late_events, RECONNECT).await?;
        ensure!(told.body == [event], "{told:?}");
        told.ack().await;
        let heard = async {
            loop {
                broker.nudge(Nudge::Changed).await.ok();
                if let Ok(heard) = tokio::time::timeout(Duration::from_millis(50), nudges.next()).await {
                    return heard;
                }
            }
        };
        ensure!(tokio::time::timeout(RECONNECT, heard).await?.is_some(), "the nudges ended");
        late.close().await;
    }
    broker.close().await;
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn an_alarm_blocks_publishers_at_once_and_consumers_not_at_all() -> Result<()> {
    let server = RabbitMq::start().await?;
    let vhost = server.vhost().await?;
    let broker = connect(vhost.url(), "worker");
    for _ in 0..20 {
        publish(&broker, &shared()).await?;
    }
    server.set_memory_alarm().await?;
    // The broker only tells a connection that publishes; the first message may be written before it does.
    let asked = Instant::now();
    let first = broker.publish_hint(&shared(), hint()).await;
    ensure!(matches!(first, Err(BrokerError::Blocked)), "{first:?}");
    ensure!(asked.elapsed() < Duration::from_secs(1), "refused after {:?}", asked.elapsed());
    is(&broker, BrokerHealth::Blocked).await?;
    let asked = Instant::now();
    let others = join_all((0..100).map(async |_| broker.publish_hint(&shared(), hint()).await)).await;
    ensure!(others.iter().all(|other| matches!(other, Err(BrokerError::Blocked))), "{others:?}");
    ensure!(asked.elapsed() < Duration::from_secs(1), "refused after {:?}", asked.elapsed());

    // Acknowledged while blocked: with a prefetch of one, each needs the ack of the one before.
    let mut hints = broker.hints(&[shared()], 1);
    for _ in 0..20 {
        next(&mut hints, STEP).await?.ack().await;
    }
    server.clear_memory_alarm().await?;
    is(&broker, BrokerHealth::Up).await?;
    let sent = publish(&broker, &shared()).await?;
    // The one written before the alarm was known may come first.
    loop {
        let delivery = next(&mut hints, STEP).await?;
        let last = delivery.body == sent;
        delivery.ack().await;
        if last {
            break;
        }
    }
    broker.close().await;
    Ok(())
}

/// A quorum queue without a majority takes messages and confirms none; here its process is put to sleep.
#[tokio::test(flavor = "multi_thread")]
async fn a_queue_that_confirms_nothing_holds_up_nobody_else() -> Result<()> {
    let server = RabbitMq::start().await?;
    let vhost = server.vhost().await?;
    let config = RabbitMqConfig {
        publish_timeout: Period::new(Duration::from_millis(500)),
        publish_window: Number::new(10),
        ..config(vhost.url())
    };
    let broker = rabbitmq::RabbitMq::connect_lazily(config, "api");
    let other = Route::Cluster("other".parse()?);
    publish(&broker, &shared()).await?;
    publish(&broker, &other).await?;
    let name = vhost.url().rsplit_once('/').context("a vhost")?.1.to_owned();
    let process = format!("'{name}_{DISPATCH}'");
    server.rabbitmqctl(&["eval", &format!("sys:suspend({process}).")]).await?;

    let refused = broker.publish_hint(&shared(), hint()).await;
    ensure!(matches!(refused, Err(BrokerError::Blocked)), "{refused:?}");
    publish(&broker, &other).await.context("beside one that waits for ever")?;
    // With more than half of the window lost to the sleeper, the publisher begins anew.
    let lost = join_all((0..8).map(async |_| broker.publish_hint(&shared(), hint()).await)).await;
    ensure!(lost.iter().all(Result::is_err), "{lost:?}");
    is(&broker, BrokerHealth::Down).await?;
    publish_again(&broker, &other).await?;

    server.rabbitmqctl(&["eval", &format!("sys:resume({process}).")]).await?;
    publish_again(&broker, &shared()).await?;
    broker.close().await;
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_tag_of_an_old_channel_settles_nothing_on_a_new_one() -> Result<()> {
    let server = RabbitMq::start().await?;
    let vhost = server.vhost().await?;
    let broker = connect(vhost.url(), "worker");
    let sent = [publish(&broker, &shared()).await?, publish(&broker, &shared()).await?];
    let mut hints = broker.hints(&[shared()], 10);
    let (one, two) = (next(&mut hints, STEP).await?, next(&mut hints, STEP).await?);
    server.rabbitmqctl(&["close_all_connections", "--global", "of a test"]).await?;
    let again = [next(&mut hints, RECONNECT).await?, next(&mut hints, RECONNECT).await?];
    one.ack().await;
    two.ack_through().await;
    drop((again, hints));
    let mut hints = broker.hints(&[shared()], 10);
    let mut seen = Vec::new();
    for _ in &sent {
        let (body, delivery) = next(&mut hints, RECONNECT).await?.split();
        delivery.ack().await;
        seen.push(body);
    }
    ensure!(sent.iter().all(|hint| seen.contains(hint)), "{seen:?}");
    broker.close().await;
    Ok(())
}

/// What the cut channel gave still fills the inbox of a reader that takes nothing when it comes again on the new channel.
#[tokio::test(flavor = "multi_thread")]
async fn a_cut_under_a_busy_reader_gives_its_messages_back_only_once() -> Result<()> {
    let server = RabbitMq::start().await?;
    let vhost = server.vhost().await?;
    let (connection, channel) = raw(vhost.url()).await?;
    let mut arguments = FieldTable::default();
    arguments.insert("x-queue-type".into(), AMQPValue::LongString("quorum".into()));
    // The broker drops what is given back more often.
    arguments.insert("x-delivery-limit".into(), AMQPValue::LongInt(2));
    channel.queue_declare(DISPATCH.into(), QueueDeclareOptions::durable(), arguments).await?;
    connection.close(200, "done".into()).await?;
    let broker = connect(vhost.url(), "worker");
    let mut sent = Vec::new();
    for _ in 0..8 {
        sent.push(publish(&broker, &shared()).await?);
    }
    let mut hints = broker.hints(&[shared()], 4);
    until("half of them are out", STEP, async || {
        let ready = vhost.queue_depth(DISPATCH).await?;
        ensure!(ready == 4, "{ready} are ready");
        Ok(())
    })
    .await?;
    let name = vhost.url().rsplit_once('/').context("a vhost")?.1;
    let consumers = async || {
        let listed =
            server.rabbitmqctl(&["--quiet", "list_consumers", "--vhost", name, "channel_pid"]).await?;
        anyhow::Ok(listed.lines().filter(|line| line.contains('<')).map(str::to_owned).collect::<Vec<_>>())
    };
    let before = consumers().await?;
    server.rabbitmqctl(&["close_all_connections", "--global", "of a test"]).await?;
    let consumed_again = async {
        loop {
            let now = consumers().await?;
            if !now.is_empty() && now != before {
                return anyhow::Ok(());
            }
        }
    };
    tokio::time::timeout(RECONNECT, consumed_again).await??;

    let mut seen = Vec::new();
    while !sent.iter().all(|hint| seen.contains(hint)) {
        let (body, delivery) = next(&mut hints, STEP).await?.split();
        delivery.ack().await;
        seen.push(body);
    }
    broker.close().await;
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_queue_deleted_under_its_consumer_is_made_and_consumed_again() -> Result<()> {
    let vhost = Vhost::fresh().await?;
    let broker = connect(vhost.url(), "all");
    let mut hints = broker.hints(&[shared()], 10);
    let mut events = broker.events(10);
    for _ in 0..3 {
        let sent = publish(&broker, &shared()).await?;
        let delivery = next(&mut hints, STEP).await?;
        ensure!(delivery.body == sent, "{delivery:?}");
        delivery.ack().await;
        vhost.delete_queue(DISPATCH).await?;
        broker.publish_events(vec![event()]).await?;
        next(&mut events, STEP).await?.ack().await;
        vhost.delete_queue("jobgate.events").await?;
    }
    broker.close().await;
    Ok(())
}

/// The client library hangs returns on whichever confirm comes next; the caller must not notice.
#[tokio::test(flavor = "multi_thread")]
async fn of_messages_in_flight_together_exactly_the_unroutable_one_is_told_so() -> Result<()> {
    let vhost = Vhost::fresh().await?;
    let broker = connect(vhost.url(), "api");
    publish(&broker, &shared()).await?;
    let absent = Route::Worker(WorkerId::generate());
    for round in 0..200 {
        let together = (0..5).map(async |place| {
            let route = if place == round % 5 { absent.clone() } else { shared() };
            broker.publish_hint(&route, hint()).await
        });
        for (place, published) in (0..5).zip(join_all(together).await) {
            let expected = if place == round % 5 { Published::Unroutable } else { Published::Routed };
            let published = published?;
            ensure!(published == expected, "round {round}, {place}: {published:?}");
        }
    }
    ensure!(vhost.queue_depth(DISPATCH).await? == 801, "not every routed message arrived");
    broker.close().await;
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn bytes_nobody_understands_go_to_the_dead_letters_and_hold_nothing_up() -> Result<()> {
    let vhost = Vhost::fresh().await?;
    let broker = connect(vhost.url(), "worker");
    publish(&broker, &shared()).await?;
    let (connection, channel) = raw(vhost.url()).await?;
    let newer = br#"{"v":7,"kind":"hint","jobs":[]}"#;
    publish_raw(&channel, DISPATCH, b"\xff\x00 garbage").await?;
    publish_raw(&channel, DISPATCH, newer).await?;
    connection.close(200, "done".into()).await?;
    let last = publish(&broker, &shared()).await?;

    let mut hints = broker.hints(&[shared()], 4);
    let first = next(&mut hints, STEP).await?;
    let second = next(&mut hints, STEP).await?;
    ensure!(second.body == last, "{second:?}");
    // Reaches over the two bad ones, whether they are among the dead letters yet or not.
    second.ack_through().await;
    drop(first);
    let letters = until("both are among the dead letters", STEP, async || {
        let letters = dead_letters(&vhost).await?;
        ensure!(letters.len() >= 2, "{}", letters.len());
        Ok(letters)
    })
    .await?;
    ensure!(letters.len() == 2, "{letters:?}");
    for (bytes, reason) in [(&b"\xff\x00 garbage"[..], "malformed message"), (newer, "message version 7")] {
        let letter = letters.iter().find(|letter| letter.data == bytes).context("the bytes as they were")?;
        ensure!(header(letter, "jobgate-queue")? == DISPATCH, "{letter:?}");
        ensure!(header(letter, "jobgate-reason")?.contains(reason), "{letter:?}");
    }
    // Nothing comes again.
    drop(hints);
    let mut hints = broker.hints(&[shared()], 4);
    let end = publish(&broker, &shared()).await?;
    let delivery = next(&mut hints, STEP).await?;
    ensure!(delivery.body == end, "{delivery:?}");
    delivery.ack().await;
    broker.close().await;
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_queue_that_exists_with_other_arguments_is_used_as_it_is() -> Result<()> {
    let vhost = Vhost::fresh().await?;
    let (connection, channel) = raw(vhost.url()).await?;
    for queue in [DISPATCH, "jobgate.events", DEAD] {
        let mut arguments = FieldTable::default();
        arguments.insert("x-max-length".into(), AMQPValue::LongInt(1_000));
        channel.queue_declare(queue.into(), QueueDeclareOptions::durable(), arguments).await?;
    }
    connection.close(200, "done".into()).await?;
    let broker = connect(vhost.url(), "all");
    let (mut hints, mut events) = (broker.hints(&[shared()], 1), broker.events(1));
    for _ in 0..2 {
        let sent = publish(&broker, &shared()).await?;
        let delivery = next(&mut hints, STEP).await?;
        ensure!(delivery.body == sent, "{delivery:?}");
        delivery.ack().await;
        broker.publish_events(vec![event()]).await?;
        next(&mut events, STEP).await?.ack().await;
    }
    broker.close().await;
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn classic_dispatch_queues_and_another_prefix_are_a_matter_of_configuration() -> Result<()> {
    let vhost = Vhost::fresh().await?;
    let config = RabbitMqConfig {
        dispatch_queue: QueueKind::Classic,
        prefix: "gate-b".to_owned().try_into()?,
        ..config(vhost.url())
    };
    let broker = rabbitmq::RabbitMq::connect_lazily(config, "worker");
    publish(&broker, &shared()).await?;
    let (connection, channel) = raw(vhost.url()).await?;
    let mut classic = FieldTable::default();
    classic.insert("x-queue-type".into(), AMQPValue::LongString("classic".into()));
    // The same declaration, or the broker would refuse it.
    let declared =
        channel.queue_declare("gate-b.dispatch.shared".into(), QueueDeclareOptions::durable(), classic);
    ensure!(declared.await?.message_count() == 1, "the hint is not there");
    connection.close(200, "done".into()).await?;
    broker.close().await;
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn anyone_may_listen_to_status_events() -> Result<()> {
    let vhost = Vhost::fresh().await?;
    let broker = connect(vhost.url(), "worker");
    let mut events = broker.events(1);
    broker.publish_events(vec![event()]).await?;
    next(&mut events, STEP).await?.ack().await;
    let (connection, channel) = raw(vhost.url()).await?;
    let own = QueueDeclareOptions { exclusive: true, ..QueueDeclareOptions::default() };
    channel.queue_declare("mine".into(), own, FieldTable::default()).await?;
    let (options, arguments) = (QueueBindOptions::default(), FieldTable::default());
    channel.queue_bind("mine".into(), "jobgate.events".into(), "job.#".into(), options, arguments).await?;
    let told = event();
    broker.publish_events(vec![told.clone()]).await?;
    let mine =
        channel.basic_get("mine".into(), BasicGetOptions { no_ack: true }).await?.context("an event")?;
    let mine: serde_json::Value = serde_json::from_slice(&mine.data)?;
    ensure!(mine["events"][0]["job"] == told.job.to_string(), "{mine}");
    let delivery = next(&mut events, STEP).await?;
    ensure!(delivery.body == [told], "{delivery:?}");
    delivery.ack().await;
    connection.close(200, "done".into()).await?;
    broker.close().await;
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_process_had_out_when_it_ended_goes_to_another() -> Result<()> {
    let vhost = Vhost::fresh().await?;
    let (ending, other) = (connect(vhost.url(), "ending"), connect(vhost.url(), "other"));
    let worker = Route::Worker(WorkerId::generate());
    let mut hints = ending.hints(&[shared(), worker.clone()], 2);
    let sent = publish(&other, &shared()).await?;
    let held = next(&mut hints, STEP).await?;
    until("the worker's queue", STEP, async || publish(&other, &worker).await).await?;
    ending.close().await;
    let mut taken_over = other.hints(&[shared()], 2);
    let delivery = next(&mut taken_over, STEP).await?;
    ensure!(delivery.body == sent && delivery.redelivered, "{delivery:?}");
    delivery.ack().await;
    drop(held);
    until("the worker's queue goes with it", STEP, async || {
        let published = other.publish_hint(&worker, hint()).await?;
        ensure!(published == Published::Unroutable, "{published:?}");
        Ok(())
    })
    .await?;
    other.close().await;
    Ok(())
}

/// A peer that takes the connection and says nothing: worse than one that refuses it.
#[tokio::test(flavor = "multi_thread")]
async fn a_silent_peer_makes_nobody_hang() -> Result<()> {
    let silent = tokio::net::TcpListener::bind("127.0.0.1:0").await?;
    let config = RabbitMqConfig {
        connect_timeout: Period::new(Duration::from_millis(100)),
        publish_timeout: Period::new(Duration::from_millis(500)),
        ..config(&format!("amqp://127.0.0.1:{}", silent.local_addr()?.port()))
    };
    let broker = rabbitmq::RabbitMq::connect_lazily(config, "api");
    let mut hints = broker.hints(&[shared()], 1);
    for _ in 0..3 {
        let asked = Instant::now();
        let refused = broker.publish_hint(&shared(), hint()).await;
        ensure!(matches!(refused, Err(BrokerError::Down(_))), "{refused:?}");
        ensure!(asked.elapsed() < Duration::from_secs(1), "refused after {:?}", asked.elapsed());
    }
    ensure!(broker.hints_waiting(&"shared".parse()?).await.is_none(), "a depth nobody can know");
    let ends = async { tokio::join!(hints.next(), broker.close()).0 };
    let ended = tokio::time::timeout(Duration::from_secs(5), ends).await.context("close hangs")?;
    ensure!(ended.is_none(), "{ended:?}");
    Ok(())
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
