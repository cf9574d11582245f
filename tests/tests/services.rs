//! The harness keeps its word: corners of the shared servers are separate, and private servers lose nothing they
//! confirmed, however they end.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use jobgate_tests::services::{Database, Postgres, RabbitMq, Shutdown, Vhost};
use jobgate_tests::wait::until;
use lapin::options::{BasicPublishOptions, ConfirmSelectOptions, QueueDeclareOptions};
use lapin::types::{AMQPValue, FieldTable};
use lapin::{BasicProperties, Channel, Confirmation, Connection, ConnectionProperties};
use sqlx::{Connection as _, PgConnection};

const QUEUE: &str = "kept";

async fn quorum_queue(url: &str) -> Result<(Connection, Channel)> {
    let connection = Connection::connect(url, ConnectionProperties::default()).await?;
    let channel = connection.create_channel().await?;
    channel.confirm_select(ConfirmSelectOptions::default()).await?;
    let mut arguments = FieldTable::default();
    arguments.insert("x-queue-type".into(), AMQPValue::LongString("quorum".into()));
    channel.queue_declare(QUEUE.into(), QueueDeclareOptions::durable(), arguments).await?;
    Ok((connection, channel))
}

async fn publish(channel: &Channel) -> Result<()> {
    let options = BasicPublishOptions { mandatory: true, ..BasicPublishOptions::default() };
    let durable = BasicProperties::default().with_delivery_mode(2);
    let confirm = channel.basic_publish("".into(), QUEUE.into(), options, b"fact", durable).await?.await?;
    ensure!(matches!(confirm, Confirmation::Ack(None)), "{confirm:?}");
    Ok(())
}

#[tokio::test]
async fn a_database_does_not_see_the_tables_of_another() -> Result<()> {
    let (mine, other) = (Database::fresh().await?, Database::fresh().await?);
    let (mut here, mut there) =
        (PgConnection::connect(mine.url()).await?, PgConnection::connect(other.url()).await?);
    sqlx::query("-- make_fact\nCREATE TABLE fact (id int)").execute(&mut here).await?;
    sqlx::query("-- read_fact\nSELECT id FROM fact").execute(&mut here).await?;
    let missing = sqlx::query("-- read_fact\nSELECT id FROM fact").execute(&mut there).await.unwrap_err();
    assert_eq!(
        missing.as_database_error().and_then(|error| error.code().map(String::from)).as_deref(),
        Some("42P01")
    );
    Ok(())
}

#[tokio::test]
async fn a_connection_that_outlives_its_test_is_a_failure() -> Result<()> {
    let database = Database::fresh().await?;
    let connection = PgConnection::connect(database.url()).await?;
    let dropped = tokio::task::spawn_blocking(move || {
        std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| drop(database)))
    });
    let complaint = dropped.await?.unwrap_err();
    let complaint = complaint.downcast_ref::<String>().context("a message")?;
    assert!(complaint.contains("1 connections of this test are still open"), "{complaint}");
    Ok(connection.close_hard().await?)
}

#[tokio::test]
async fn a_vhost_does_not_see_the_queues_of_another() -> Result<()> {
    let (mine, other) = (Vhost::fresh().await?, Vhost::fresh().await?);
    let (connection, channel) = quorum_queue(mine.url()).await?;
    publish(&channel).await?;
    assert_eq!(mine.queue_depth(QUEUE).await?, 1);
    assert_eq!(mine.purge(QUEUE).await?, 1);
    assert_eq!(mine.queue_depth(QUEUE).await?, 0);
    other.queue_depth(QUEUE).await.unwrap_err();
    mine.delete_queue(QUEUE).await?;
    mine.queue_depth(QUEUE).await.unwrap_err();
    Ok(connection.close(200, "done".into()).await?)
}

#[tokio::test]
async fn a_confirmed_message_of_a_quorum_queue_survives_a_stop_and_a_kill_of_the_broker() -> Result<()> {
    let mut broker = RabbitMq::start().await?;
    let vhost = broker.vhost().await?;
    let (_connection, channel) = quorum_queue(vhost.url()).await?;
    publish(&channel).await?;
    broker.stop().await?;
    vhost.queue_depth(QUEUE).await.unwrap_err();
    broker.start_again().await?;
    let kept = async || {
        let depth = vhost.queue_depth(QUEUE).await?;
        ensure!(depth == 1, "{depth} messages");
        Ok(())
    };
    until("the queue has a leader again", Duration::from_secs(30), kept).await?;
    broker.kill()?;
    broker.start_again().await?;
    until("the queue has a leader again", Duration::from_secs(30), kept).await
}

#[tokio::test]
async fn a_memory_alarm_blocks_publishers_until_it_is_cleared() -> Result<()> {
    let broker = RabbitMq::start().await?;
    let vhost = broker.vhost().await?;
    let (_connection, channel) = quorum_queue(vhost.url()).await?;
    broker.set_memory_alarm().await?;
    let blocked = tokio::time::timeout(Duration::from_secs(1), publish(&channel));
    blocked.await.unwrap_err();
    broker.clear_memory_alarm().await?;
    // Whether the timed-out message was written is unknown by nature: it may arrive now.
    until("a message arrives", Duration::from_secs(10), async || {
        ensure!(vhost.queue_depth(QUEUE).await? > 0, "nothing yet");
        Ok(())
    })
    .await
}

#[tokio::test]
async fn a_committed_row_survives_an_immediate_end_of_postgres() -> Result<()> {
    let mut server = Postgres::start().await?;
    let database = server.database().await?;
    let mut connection = PgConnection::connect(database.url()).await?;
    sqlx::query("-- make_fact\nCREATE TABLE fact (id int)").execute(&mut connection).await?;
    sqlx::query("-- insert_fact\nINSERT INTO fact VALUES (42)").execute(&mut connection).await?;
    for how in [Shutdown::Immediate, Shutdown::Fast] {
        server.restart(how).await?;
        let mut connection = PgConnection::connect(database.url()).await?;
        let id: i32 =
            sqlx::query_scalar("-- read_fact\nSELECT id FROM fact").fetch_one(&mut connection).await?;
        assert_eq!(id, 42, "after {how:?}");
    }
    server.stop(Shutdown::Immediate).await?;
    PgConnection::connect(database.url()).await.unwrap_err();
    Ok(())
}
