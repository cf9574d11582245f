//! Posting, listing, reading, changing and removing jobs.

use crate::testing::{Bench, small_job};
use bytes::Bytes;
use chrono::TimeDelta;
use futures::StreamExt as _;
use jobgate_shared::{clock::system, logs::LogStream};
use serde_json::{Value, json};
use std::{collections::BTreeSet, sync::atomic::Ordering, time::Duration};

fn path(job: &Value) -> String {
    format!("/v1/jobs/{}", job["id"].as_str().unwrap())
}

#[tokio::test]
async fn the_smallest_job_is_stored_with_every_default() {
    let bench = Bench::new();
    let answer =
        bench.call("POST", "/v1/jobs").json(&json!({"spec": {"command": ["/bin/sleep", "1"]}})).send().await;
    let job = answer.json();
    assert_eq!(answer.status.as_u16(), 201);
    assert_eq!(answer.header("location"), path(&job));
    assert_eq!(bench.call("GET", &path(&job)).send().await.json()["created_at"], job["created_at"]);
    let mut told = job.clone();
    for field in ["id", "created_at"] {
        assert!(told[field].take().is_string(), "{field}");
    }
    assert_eq!(
        told,
        json!({
            "id": null, "project": "default", "name": "sleep", "cluster": "local", "state": "INITIALIZED",
            "reason": null, "attempt": 1, "max_attempts": 1, "priority": 0, "labels": [], "inputs": {},
            "outputs": {}, "progress": null, "stage": null, "message": null, "spec": {"command": ["/bin/sleep", "1"]},
            "retry": {"backoff_seconds": 10, "max_backoff_seconds": 600, "retry_on": ["FAILED", "TIMED_OUT"]},
            "submission_id": null, "exit_code": null, "cancel_requested": false, "created_by": "token:bootstrap",
            "created_at": null, "run_at": null, "claimed_at": null, "submitted_at": null, "started_at": null,
            "finished_at": null
        })
    );
}

#[tokio::test]
async fn a_whole_job_is_told_back_as_it_was_posted() {
    let bench = Bench::new();
    let posted = json!({
        "name": "sum", "cluster": "slurm", "labels": ["nightly", "ü"], "priority": -7, "max_attempts": 3,
        "spec": {"command": ["sha256sum", "data.bin"], "env": {"A": "1"}, "working_dir": "/data", "stdin": "x\u{0}y",
                 "script": "echo", "resources": {"cpus": 1, "memory_mib": 256}, "time_limit_seconds": 600,
                 "engine": {"partition": "long", "nested": [1, {"a": null}]}},
        "inputs": {"url": "s3://bucket/x", "n": 1.5}, "run_at": "2027-01-01T00:00:00Z", "hold": true,
        "retry": {"backoff_seconds": 1, "max_backoff_seconds": 5, "retry_on": ["LOST"]}
    });
    let job = bench.posted(posted.clone()).await;
    for (field, value) in posted.as_object().unwrap().iter().filter(|(field, _)| *field != "hold") {
        assert_eq!(&job[field], value, "{field}");
    }
    assert_eq!(job["state"], "HELD");
}

#[tokio::test]
async fn a_job_is_accepted_while_the_broker_is_down_and_refused_while_the_store_is_away() {
    let bench = Bench::new();
    bench.broker.down.store(true, Ordering::SeqCst);
    bench.posted(small_job()).await;
    bench.store.away.store(true, Ordering::SeqCst);
    let answer = bench.call("POST", "/v1/jobs").json(&small_job()).send().await;
    answer.is_problem(503, "store-away", None);
    assert!(!answer.header("retry-after").is_empty());
    bench.store.away.store(false, Ordering::SeqCst);
    let listed = bench.call("GET", "/v1/jobs").send().await.json();
    assert_eq!(listed["items"].as_array().unwrap().len(), 1, "nothing was kept");
}

#[tokio::test]
async fn concurrent_twins_become_one_job() {
    let bench = Bench::new();
    let twin = || bench.call("POST", "/v1/jobs").header("idempotency-key", "twin").json(&small_job()).send();
    let answers = futures::future::join_all((0..20).map(|_| twin())).await;
    let ids: BTreeSet<String> = answers.iter().map(|a| a.json()["id"].to_string()).collect();
    assert_eq!(ids.len(), 1);
    assert_eq!(answers.iter().filter(|a| a.status.as_u16() == 201).count(), 1);
}

#[tokio::test]
async fn pages_lead_through_a_listing_once_newest_first() {
    let bench = Bench::new();
    let mut posted = Vec::new();
    for i in 0..7 {
        let label = if i % 2 == 0 { "even" } else { "odd" };
        let job = bench.posted(json!({"labels": [label, "all"], "spec": {"command": ["true"]}})).await;
        if i % 2 == 0 {
            posted.insert(0, job["id"].clone());
        }
    }
    let mut found = Vec::new();
    let mut next = "/v1/jobs?label=even&label=all&state=INITIALIZED,HELD&limit=2".to_owned();
    let first = next.clone();
    loop {
        let page = bench.call("GET", &next).send().await.json();
        found.extend(page["items"].as_array().unwrap().iter().map(|job| job["id"].clone()));
        let Some(cursor) = page["next_cursor"].as_str() else { break };
        next = format!("{first}&cursor={cursor}");
    }
    assert_eq!(found, posted);
    let named = bench.call("GET", "/v1/jobs?name=true&cluster=local&state=HELD").send().await.json();
    assert_eq!(named, json!({"items": [], "next_cursor": null}));
}

#[tokio::test(start_paused = true)]
async fn waiting_for_a_job_answers_at_its_end_or_when_the_time_is_up() {
    let bench = Bench::new();
    let job = bench.posted(small_job()).await;
    let began = tokio::time::Instant::now();
    let waited = bench.call("GET", &format!("{}?wait=3s", path(&job))).send().await;
    assert_eq!(waited.json()["state"], "INITIALIZED");
    assert!(began.elapsed() >= Duration::from_secs(3) && began.elapsed() < Duration::from_secs(4));
    let began = tokio::time::Instant::now();
    let path = path(&job);
    let (waited, canceled) = tokio::join!(bench.call("GET", &format!("{path}?wait=60")).send(), async {
        tokio::time::sleep(Duration::from_secs(10)).await;
        bench.call("POST", &format!("{path}/cancel")).send().await
    });
    assert_eq!(canceled.status.as_u16(), 200);
    assert_eq!(waited.json()["state"], "CANCELED");
    assert!(began.elapsed() < Duration::from_secs(11), "{:?}", began.elapsed());
    let ended = bench.call("GET", &format!("{path}?wait=60s")).send().await;
    assert_eq!(ended.json()["state"], "CANCELED");
}

#[tokio::test(start_paused = true)]
async fn a_stop_answers_whoever_waits() {
    let bench = Bench::new();
    let job = bench.posted(small_job()).await;
    let path = format!("{}?wait=60s", path(&job));
    let (waited, ()) = tokio::join!(bench.call("GET", &path).send(), async {
        tokio::time::sleep(Duration::from_secs(1)).await;
        bench.tasks.shutdown().cancel();
    });
    assert_eq!(waited.status.as_u16(), 200);
}

#[tokio::test]
async fn a_patch_changes_what_it_names_and_nothing_else() {
    let bench = Bench::new();
    let job = bench.posted(json!({"labels": ["a"], "spec": {"command": ["true"]}})).await;
    let patch = |document: Value| bench.call("PATCH", &path(&job)).json(&document).send();
    patch(json!({"outputs": {"rows": 1, "gone": true}})).await;
    let changed =
        patch(json!({"progress": 40, "priority": 9, "outputs": {"gone": null, "more": [2]}})).await.json();
    let told = (&changed["labels"], &changed["progress"], &changed["priority"], &changed["outputs"]);
    assert_eq!(told, (&json!(["a"]), &json!(40), &json!(9), &json!({"rows": 1, "more": [2]})));
    for (field, document) in [
        ("progress", json!({"progress": 101})),
        ("progress", json!({"progress": -1})),
        ("priority", json!({"priority": 101})),
        ("labels[0]", json!({"labels": [""]})),
        ("state", json!({"state": "FINISHED"})),
        ("outputs", json!({"outputs": {"a": "x".repeat(512 * 1024)}})),
    ] {
        patch(document).await.is_problem(400, "invalid-field", Some(field));
    }
}

#[tokio::test]
async fn an_ended_job_is_removed_with_its_logs_and_one_that_has_not_ended_is_not() {
    let bench = Bench::new();
    let job = bench.posted(small_job()).await;
    let id = job["id"].as_str().unwrap().parse().unwrap();
    bench.logs.append(id, 1, LogStream::Stdout, 0, Bytes::from("text")).await.unwrap();
    let remove = || bench.call("DELETE", &path(&job)).send();
    remove().await.is_problem(409, "state-conflict", None);
    bench.call("POST", &format!("{}/cancel", path(&job))).send().await;
    assert_eq!(remove().await.status.as_u16(), 204);
    remove().await.is_problem(404, "not-found", None);
    assert_eq!(bench.logs.resume(id, 1, LogStream::Stdout).await.unwrap(), 0);
}

#[tokio::test]
async fn a_removal_whose_answer_is_lost_leaves_no_logs() {
    let bench = Bench::new();
    let job = bench.posted(small_job()).await;
    let id = job["id"].as_str().unwrap().parse().unwrap();
    bench.logs.append(id, 1, LogStream::Stdout, 0, Bytes::from("text")).await.unwrap();
    bench.call("POST", &format!("{}/cancel", path(&job))).send().await;
    bench.store.removed_unheard.store(true, Ordering::SeqCst);
    assert_eq!(bench.call("DELETE", &path(&job)).send().await.status.as_u16(), 204);
    assert_eq!(bench.logs.resume(id, 1, LogStream::Stdout).await.unwrap(), 0);
    let noted = bench.logs.dooms(system().now() + TimeDelta::hours(1)).count().await;
    assert_eq!(noted, 1, "it ended just now, and more may be shipped of it");
}

#[tokio::test]
async fn a_job_that_is_tried_again_while_it_is_removed_keeps_its_logs() {
    let bench = Bench::new();
    let job = bench.posted(small_job()).await;
    let id = job["id"].as_str().unwrap().parse().unwrap();
    bench.logs.append(id, 1, LogStream::Stdout, 0, Bytes::from("text")).await.unwrap();
    bench.call("POST", &format!("{}/cancel", path(&job))).send().await;
    bench.store.overtaken.store(true, Ordering::SeqCst);
    bench.call("DELETE", &path(&job)).send().await.is_problem(409, "state-conflict", None);
    assert_eq!(bench.logs.resume(id, 1, LogStream::Stdout).await.unwrap(), 4);
    let noted = || bench.logs.dooms(system().now() + TimeDelta::hours(1)).count();
    assert_eq!(noted().await, 0, "it stays");
    bench.call("POST", &format!("{}/cancel", path(&job))).send().await;
    bench.call("DELETE", &path(&job)).send().await;
    assert_eq!(bench.logs.resume(id, 1, LogStream::Stdout).await.unwrap(), 0);
    assert_eq!(noted().await, 1, "it ended just now, and more may be shipped of it");
}

#[tokio::test]
async fn a_waiting_job_tells_what_it_waits_for() {
    let bench = Bench::new();
    let job = bench.posted(small_job()).await;
    let reason = |bench: &Bench| {
        let read = futures::executor::block_on(bench.call("GET", &path(&job)).send());
        read.json()["reason"].as_str().unwrap_or_default().to_owned()
    };
    assert_eq!(reason(&bench), "no worker serves cluster local");
    bench.call("POST", "/v1/clusters/local/pause").send().await;
    assert_eq!(reason(&bench), "cluster local is paused by token:bootstrap");
    let run_at = system().now() + TimeDelta::days(1);
    let later = bench.posted(json!({"run_at": run_at, "spec": {"command": ["true"]}})).await;
    let read = bench.call("GET", &path(&later)).send().await.json();
    assert_eq!(read["reason"], format!("waits until {}", run_at.to_rfc3339()));
}

#[tokio::test]
async fn history_begins_with_who_posted_it() {
    let bench = Bench::new();
    let job = bench.posted(small_job()).await;
    bench.call("POST", &format!("{}/hold", path(&job))).send().await;
    let history = bench.call("GET", &format!("{}/history", path(&job))).send().await.json();
    let told: Vec<(&Value, &Value, &Value)> =
        history["items"].as_array().unwrap().iter().map(|e| (&e["from"], &e["to"], &e["by"])).collect();
    let by = json!("token:bootstrap");
    assert_eq!(
        told,
        [(&Value::Null, &json!("INITIALIZED"), &by), (&json!("INITIALIZED"), &json!("HELD"), &by)]
    );
}
