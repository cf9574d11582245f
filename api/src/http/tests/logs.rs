//! What jobs print.

use crate::testing::{Answered, Bench, small_job};
use bytes::Bytes;
use futures::StreamExt as _;
use jobgate_shared::{domain::JobId, logs::LogStream};
use serde_json::Value;
use std::time::Duration;

const OUT: LogStream = LogStream::Stdout;

async fn job(bench: &Bench) -> (JobId, String) {
    let job: Value = bench.posted(small_job()).await;
    let id = job["id"].as_str().unwrap();
    (id.parse().unwrap(), format!("/v1/jobs/{id}/logs/stdout"))
}

fn told(answer: &Answered) -> (String, String, String) {
    let header = |name| answer.header(name).to_owned();
    (answer.text(), header("x-jobgate-next-offset"), header("x-jobgate-complete"))
}

fn expect(text: &str, next: &str, complete: &str) -> (String, String, String) {
    (text.to_owned(), next.to_owned(), complete.to_owned())
}

#[tokio::test]
async fn a_log_is_read_piece_by_piece_as_plain_text() {
    let bench = Bench::new();
    let (id, path) = job(&bench).await;
    let read = |query: &str| bench.call("GET", &format!("{path}{query}")).send();
    let empty = bench.call("GET", &path).send().await;
    assert_eq!(told(&empty), expect("", "0", "false"));
    assert_eq!(empty.header("content-type"), "text/plain; charset=utf-8");
    assert_eq!(empty.header("x-content-type-options"), "nosniff");
    bench.logs.append(id, 1, OUT, 0, Bytes::from("hello ")).await.unwrap();
    bench.logs.append(id, 1, OUT, 6, Bytes::from("world")).await.unwrap();
    assert_eq!(told(&read("").await), expect("hello world", "11", "false"));
    assert_eq!(told(&read("?offset=4&limit=4").await), expect("o wo", "8", "false"));
    assert_eq!(told(&read("?offset=99").await), expect("", "99", "false"));
    bench.logs.finish(id, 1, OUT, 11).await.unwrap();
    assert_eq!(told(&read("?offset=6").await), expect("world", "11", "true"));
    assert_eq!(told(&read("?limit=5").await), expect("hello", "5", "false"));
    let json = bench.call("GET", &path).header("accept", "application/json").send().await;
    json.is_problem(406, "not-acceptable", Some("Accept"));
    read("?attempt=2").await.is_problem(404, "not-found", Some("attempt"));
    read("?offset=-1").await.is_problem(400, "invalid-field", Some("offset"));
    read("?follow=true&limit=1").await.is_problem(400, "invalid-field", Some("limit"));
    let other = path.replace("stdout", "stdlog");
    bench.call("GET", &other).send().await.is_problem(404, "not-found", None);
}

#[tokio::test(start_paused = true)]
async fn following_goes_on_as_the_job_prints_and_ends_at_the_marker() {
    let bench = Bench::new();
    let (id, path) = job(&bench).await;
    bench.logs.append(id, 1, OUT, 0, Bytes::from("one ")).await.unwrap();
    let path = format!("{path}?follow=true");
    let (answer, ()) = tokio::join!(bench.call("GET", &path).send(), async {
        tokio::time::sleep(Duration::from_mins(5)).await;
        bench.logs.append(id, 1, OUT, 4, Bytes::from("two")).await.unwrap();
        tokio::time::sleep(Duration::from_secs(5)).await;
        bench.logs.finish(id, 1, OUT, 7).await.unwrap();
    });
    assert_eq!(answer.text(), "one two");
}

#[tokio::test(start_paused = true)]
async fn following_a_job_whose_log_never_ends_ends_some_time_after_the_job() {
    let bench = Bench::new();
    let (id, path) = job(&bench).await;
    // Canceled before any resource manager had it: nothing can follow.
    bench.logs.append(id, 1, OUT, 0, Bytes::from("what there is")).await.unwrap();
    let cancel = format!("/v1/jobs/{id}/cancel");
    let path = format!("{path}?follow=true");
    let began = tokio::time::Instant::now();
    let (answer, _) = tokio::join!(bench.call("GET", &path).send(), async {
        tokio::time::sleep(Duration::from_mins(1)).await;
        bench.call("POST", &cancel).send().await
    });
    assert_eq!(answer.text(), "what there is");
    assert!(began.elapsed() < Duration::from_secs(65), "{:?}", began.elapsed());
}

#[tokio::test(start_paused = true)]
async fn a_stop_ends_whoever_follows() {
    let bench = Bench::new();
    let (_, path) = job(&bench).await;
    let response = bench.call("GET", &format!("{path}?follow=true")).open().await;
    let mut body = response.into_body().into_data_stream();
    let (ended, ()) = tokio::join!(body.next(), async {
        tokio::time::sleep(Duration::from_secs(1)).await;
        bench.tasks.shutdown().cancel();
    });
    assert!(ended.is_none());
}
