//! Cancel, hold, release and retry; for one job and for many.

use crate::testing::{Bench, small_job};
use chrono::DateTime;
use futures::FutureExt as _;
use jobgate_shared::{
    domain::{JobId, WorkerId},
    store::{Claimed, Leases as _, Worker, WorkerCluster},
    wire::Nudge,
};
use serde_json::{Value, json};
use std::time::Duration;

async fn act(bench: &Bench, job: &Value, command: &str) -> crate::testing::Answered {
    bench.call("POST", &format!("/v1/jobs/{}/{command}", job["id"].as_str().unwrap())).send().await
}

/// A worker that has these jobs.
pub(super) async fn claimed(bench: &Bench, jobs: &[&Value]) -> WorkerId {
    let clusters = vec![WorkerCluster { name: "local".parse().unwrap(), reach: None, parked: None }];
    let worker = Worker {
        id: WorkerId::generate(),
        host: "here".to_owned(),
        clusters: clusters.clone(),
        registered_at: DateTime::UNIX_EPOCH,
        expires_at: DateTime::UNIX_EPOCH,
        alive: true,
        draining: false,
        jobs: 0,
    };
    bench.store.inner.register(&worker, Duration::from_mins(1)).await.unwrap();
    let ids: Vec<JobId> = jobs.iter().map(|job| job["id"].as_str().unwrap().parse().unwrap()).collect();
    let claims = bench.store.inner.claim(worker.id, &clusters, &ids).await.unwrap();
    assert!(claims.iter().all(|claim| matches!(claim, Claimed::Granted(_))));
    worker.id
}

#[tokio::test]
async fn a_command_is_carried_out_or_refused_with_the_reason() {
    let bench = Bench::new();
    let job = bench.posted(small_job()).await;
    assert_eq!(act(&bench, &job, "hold").await.json()["state"], "HELD");
    assert_eq!(act(&bench, &job, "hold").await.json()["state"], "HELD", "again changes nothing");
    while bench.budget.wanted().now_or_never().is_some() {}
    assert_eq!(act(&bench, &job, "release").await.json()["state"], "INITIALIZED");
    assert!(bench.budget.wanted().now_or_never().is_some(), "the dispatcher hears of it");
    act(&bench, &job, "retry").await.is_problem(409, "state-conflict", None);
    assert_eq!(act(&bench, &job, "cancel").await.json()["state"], "CANCELED");
    act(&bench, &job, "hold").await.is_problem(409, "state-conflict", None);
    let again = act(&bench, &job, "retry").await.json();
    assert_eq!((&again["state"], &again["attempt"]), (&json!("INITIALIZED"), &json!(2)));
}

#[tokio::test]
async fn canceling_a_job_a_worker_has_is_recorded_and_the_worker_is_tapped() {
    let bench = Bench::new();
    let job = bench.posted(small_job()).await;
    let worker = claimed(&bench, &[&job]).await;
    let canceled = act(&bench, &job, "cancel").await.json();
    assert_eq!((&canceled["state"], &canceled["cancel_requested"]), (&json!("CLAIMED"), &json!(true)));
    let mut nudges = bench.broker.nudges.subscribe();
    let told = nudges.wait_for(|nudges| !nudges.is_empty()).await.unwrap().clone();
    assert_eq!(told, [Nudge::Cancel { worker }]);
    act(&bench, &job, "hold").await.is_problem(409, "state-conflict", None);
}

#[tokio::test]
async fn a_command_for_many_tells_how_many_and_who_refused() {
    let bench = Bench::new();
    let mut jobs = Vec::new();
    for i in 0..1_203 {
        let label = if i % 3 == 0 { "third" } else { "other" };
        jobs.push(json!({"labels": [label], "spec": {"command": ["true"]}}));
    }
    let posted = bench.call("POST", "/v1/jobs/batch").json(&json!(jobs)).send().await.json();
    let thirds: Vec<&Value> = (0..3).map(|i| &posted["items"][i * 3]["job"]).collect();
    let worker = claimed(&bench, &thirds).await;
    let told = |answer: &Value| {
        let n = |field: &str| answer[field].as_u64().unwrap();
        (n("matched"), n("done"), n("refused"))
    };
    // Waiting jobs only, unless states are named.
    let held = bench.call("POST", "/v1/jobs/hold?label=third").send().await.json();
    assert_eq!((told(&held), &held["next_cursor"]), ((398, 398, 0), &Value::Null));
    let refused = bench.call("POST", "/v1/jobs/hold?label=third&state=CLAIMED").send().await.json();
    assert_eq!(told(&refused), (3, 0, 3));
    assert!(refused["refusals"][0]["reason"].as_str().unwrap().contains("a worker has it"));
    let released = bench.call("POST", "/v1/jobs/release?all=true").send().await.json();
    assert_eq!(told(&released), (398, 398, 0));
    let canceled = bench.call("POST", "/v1/jobs/cancel?all=true").send().await.json();
    assert_eq!(told(&canceled), (1_203, 1_203, 0));
    let mut nudges = bench.broker.nudges.subscribe();
    assert_eq!(*nudges.wait_for(|n| !n.is_empty()).await.unwrap(), [Nudge::Cancel { worker }], "once");
    let retried = bench.call("POST", "/v1/jobs/retry?label=other").send().await.json();
    assert_eq!(told(&retried), (802, 802, 0));
}

#[tokio::test]
async fn a_command_for_many_needs_a_filter_or_the_word_all() {
    let bench = Bench::new();
    let job = bench.posted(small_job()).await;
    for command in ["cancel", "hold", "release", "retry"] {
        let answer = bench.call("POST", &format!("/v1/jobs/{command}")).send().await;
        answer.is_problem(400, "invalid-field", Some("all"));
        let mistyped = bench.call("POST", &format!("/v1/jobs/{command}?lable=x&all=true")).send().await;
        mistyped.is_problem(400, "invalid-field", Some("lable"));
    }
    let path = format!("/v1/jobs/{}", job["id"].as_str().unwrap());
    assert_eq!(bench.call("GET", &path).send().await.json()["state"], "INITIALIZED");
}
