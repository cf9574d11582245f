//! Changes as they happen.

use crate::testing::{Bench, small_job};
use axum::{body::BodyDataStream, response::Response};
use futures::StreamExt as _;
use jobgate_shared::store::Role;
use serde_json::{Value, json};
use std::time::Duration;

/// A client of an event stream.
struct Ear {
    body: BodyDataStream,
    read: String,
}

#[derive(Debug, Default)]
struct Told {
    id: Option<String>,
    event: String,
    data: Value,
}

impl Ear {
    fn at(response: Response) -> Self {
        assert_eq!(response.status().as_u16(), 200);
        assert_eq!(response.headers()["content-type"], "text/event-stream");
        Self { body: response.into_body().into_data_stream(), read: String::new() }
    }

    /// The next event with data; nothing at the end of the stream.
    async fn next(&mut self) -> Option<Told> {
        loop {
            while let Some((block, rest)) = self.read.split_once("\n\n") {
                let (block, rest) = (block.to_owned(), rest.to_owned());
                self.read = rest;
                let mut told = Told::default();
                for line in block.lines() {
                    match line.split_once(": ").or_else(|| line.split_once(':')) {
                        Some(("id", id)) => told.id = Some(id.to_owned()),
                        Some(("event", event)) => event.clone_into(&mut told.event),
                        Some(("data", data)) => told.data = serde_json::from_str(data).unwrap(),
                        _ => {}
                    }
                }
                if !told.event.is_empty() {
                    return Some(told);
                }
            }
            let piece = self.body.next().await?.unwrap();
            self.read.push_str(std::str::from_utf8(&piece).unwrap());
        }
    }
}

#[tokio::test(start_paused = true)]
async fn a_client_hears_the_changes_of_its_own_project_and_goes_on_where_it_was_cut_off() {
    let bench = Bench::new();
    let token = bench.token(Some("a"), &[Role::Submit]).await;
    let mut ear = Ear::at(bench.call("GET", "/v1/events").token(&token).open().await);
    bench.posted(small_job()).await;
    let own = bench.call("POST", "/v1/jobs").token(&token).json(&small_job()).send().await.json();
    let heard = ear.next().await.unwrap();
    assert_eq!((heard.event.as_str(), &heard.data["job"]), ("change", &own["id"]), "not the other project's");
    assert_eq!(heard.data["to"], "INITIALIZED");
    drop(ear);
    let path = format!("/v1/jobs/{}/cancel", own["id"].as_str().unwrap());
    bench.call("POST", &path).send().await;
    let again = bench.call("GET", "/v1/events").token(&token).header("last-event-id", &heard.id.unwrap());
    let missed = Ear::at(again.open().await).next().await.unwrap();
    assert_eq!((&missed.data["job"], &missed.data["to"]), (&own["id"], &json!("CANCELED")));
}

#[tokio::test(start_paused = true)]
async fn the_stream_of_one_job_begins_with_its_history() {
    let bench = Bench::new();
    let job = bench.posted(small_job()).await;
    let path = format!("/v1/jobs/{}", job["id"].as_str().unwrap());
    bench.call("POST", &format!("{path}/hold")).send().await;
    let mut ear = Ear::at(bench.call("GET", &format!("{path}/events")).open().await);
    bench.posted(small_job()).await;
    bench.call("POST", &format!("{path}/release")).send().await;
    let mut states = Vec::new();
    for _ in 0..3 {
        states.push(ear.next().await.unwrap().data["to"].clone());
    }
    assert_eq!(states, ["INITIALIZED", "HELD", "INITIALIZED"]);
}

#[tokio::test(start_paused = true)]
async fn a_silent_stream_beats_and_tells_how_far_it_has_come() {
    let bench = Bench::new();
    let token = bench.token(Some("a"), &[Role::Read]).await;
    let mut body = bench.call("GET", "/v1/events").token(&token).open().await.into_body().into_data_stream();
    bench.posted(small_job()).await;
    let mut read = String::new();
    while !read.contains("id: ") {
        read.push_str(std::str::from_utf8(&body.next().await.unwrap().unwrap()).unwrap());
    }
    assert!(read.contains(":still here") || read.contains(": still here"), "{read}");
    let id = read.lines().find_map(|line| line.strip_prefix("id: ")).unwrap();
    assert_ne!(id, "0-0", "past what was not meant for it");
}

#[tokio::test(start_paused = true)]
async fn a_stop_ends_every_stream() {
    let bench = Bench::new();
    let mut ear = Ear::at(bench.call("GET", "/v1/events").open().await);
    let (ended, ()) = tokio::join!(ear.next(), async {
        tokio::time::sleep(Duration::from_secs(1)).await;
        bench.tasks.shutdown().cancel();
    });
    assert!(ended.is_none());
}

#[tokio::test]
async fn an_id_of_no_event_is_refused_and_so_is_one_stream_too_many() {
    let config = crate::http::HttpConfig { max_streams: "1".parse().unwrap(), ..Default::default() };
    let bench = Bench::with(config);
    for id in ["x", "1", "1-x", "-"] {
        let answer = bench.call("GET", "/v1/events").header("last-event-id", id).send().await;
        answer.is_problem(400, "invalid-cursor", Some("Last-Event-ID"));
    }
    let first = bench.call("GET", "/v1/events").open().await;
    bench.call("GET", "/v1/events").send().await.is_problem(503, "overloaded", None);
    drop(first);
    assert_eq!(bench.call("GET", "/v1/events").open().await.status().as_u16(), 200);
}
