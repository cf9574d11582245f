//! What running jobs tell of themselves, and what their own tokens open.

use super::commands::claimed;
use crate::testing::{Answered, Bench, small_job};
use jobgate_shared::{
    clock::system,
    domain::{Ending, JobId, Observation, StatusEvent, WorkerId},
    store::{Applied, Apply as _, Role, Scope, Store as _},
};
use serde_json::{Value, json};

/// A job whose first attempt is under way, and who has it.
async fn begun(bench: &Bench) -> (Value, WorkerId) {
    let job = bench.posted(json!({"spec": {"command": ["true"]}, "max_attempts": 2, "labels": ["a"]})).await;
    let worker = claimed(bench, &[&job]).await;
    (job, worker)
}

fn path(job: &Value) -> String {
    format!("/v1/jobs/{}", job["id"].as_str().unwrap())
}

async fn report(bench: &Bench, job: &Value, token: &str, document: Value) -> Answered {
    bench.call("POST", &format!("{}/reports", path(job))).token(token).json(&document).send().await
}

/// The attempt under way ends so.
async fn ends(bench: &Bench, job: &Value, by: WorkerId, ending: Ending) {
    let id: JobId = job["id"].as_str().unwrap().parse().unwrap();
    let life = bench.store.inner.get(&Scope::All, id).await.unwrap().unwrap().life;
    let observation = Observation::Ended { ending, exit_code: None, reason: None, began: None, at: None };
    let (attempt, epoch, at) = (life.attempt, life.epoch, system().now());
    let event = StatusEvent { job: id, attempt, epoch, seq: 1, by, submission: None, observation, at };
    assert_eq!(bench.store.inner.apply(&[event]).await.unwrap(), [Applied::Advanced]);
}

#[tokio::test]
async fn a_job_reports_with_its_own_token_and_everybody_sees_it() {
    let bench = Bench::new();
    let (job, _) = begun(&bench).await;
    let own = bench.own_token(&job, 1);
    let told = json!({
        "seq": 1, "progress": 40, "stage": "sorting", "message": "row 7", "labels": ["b", "a"],
        "outputs": {"rows": 7}
    });
    let answer = report(&bench, &job, &own, told.clone()).await;
    let stands = json!({
        "job": job["id"], "attempt": 1, "progress": 40, "stage": "sorting", "message": "row 7",
        "cancel_requested": false
    });
    assert_eq!((answer.status.as_u16(), answer.json()), (200, stands));
    let shown = bench.call("GET", &path(&job)).send().await.json();
    for field in ["progress", "stage", "message", "outputs"] {
        assert_eq!(shown[field], told[field], "{field}");
    }
    assert_eq!((&shown["labels"], &shown["state"]), (&json!(["a", "b"]), &json!("CLAIMED")));
    assert!(!shown.to_string().contains("jgj_"));
    bench.call("POST", &format!("{}/cancel", path(&job))).send().await;
    let last = report(&bench, &job, &own, json!({"message": "", "progress": 10})).await.json();
    let told = (&last["cancel_requested"], &last["message"], &last["progress"], &last["stage"]);
    assert_eq!(told, (&json!(true), &Value::Null, &json!(40), &json!("sorting")));
}

#[tokio::test]
async fn a_report_that_comes_late_or_twice_moves_nothing_back() {
    let bench = Bench::new();
    let (job, _) = begun(&bench).await;
    let own = bench.own_token(&job, 1);
    let of = |seq: u64| json!({"seq": seq, "progress": seq * 10, "stage": seq.to_string(), "outputs": {"at": seq}});
    for seq in [5, 2, 5, 5, 3] {
        assert_eq!(report(&bench, &job, &own, of(seq)).await.status.as_u16(), 200);
    }
    let shown = bench.call("GET", &path(&job)).send().await.json();
    let told = (&shown["progress"], &shown["stage"], &shown["outputs"]);
    assert_eq!(told, (&json!(50), &json!("5"), &json!({"at": 5})));
}

#[tokio::test]
async fn an_attempts_token_is_good_while_it_is_under_way_and_no_longer() {
    let bench = Bench::new();
    let (job, worker) = begun(&bench).await;
    let (first, second) = (bench.own_token(&job, 1), bench.own_token(&job, 2));
    let early = report(&bench, &job, &second, json!({"progress": 1})).await;
    early.is_problem(409, "state-conflict", None);
    report(&bench, &job, &first, json!({"progress": 90, "outputs": {"a": 1}})).await;
    ends(&bench, &job, worker, Ending::Failed).await;
    let waiting = bench.call("GET", &path(&job)).send().await.json();
    assert_eq!(
        (&waiting["attempt"], &waiting["progress"], &waiting["outputs"]),
        (&json!(2), &Value::Null, &json!({"a": 1}))
    );
    let late = report(&bench, &job, &first, json!({"progress": 95})).await;
    late.is_problem(409, "state-conflict", None);
    assert_eq!(late.json()["detail"], "attempt 1 is over; the job is at attempt 2");
    let early = report(&bench, &job, &second, json!({"progress": 1})).await;
    assert_eq!(early.json()["detail"], "the attempt has not begun");
    bench.call("POST", &format!("{}/cancel", path(&job))).send().await;
    let late = report(&bench, &job, &second, json!({"progress": 1})).await;
    late.is_problem(409, "state-conflict", None);
    assert_eq!(late.json()["detail"], "the job has ended");
}

#[tokio::test]
async fn a_jobs_own_token_opens_its_reports_and_nothing_else() {
    let bench = Bench::new();
    let (job, _) = begun(&bench).await;
    let (other, _) = begun(&bench).await;
    let own = bench.own_token(&job, 1);
    let elsewhere = report(&bench, &other, &own, json!({"progress": 1})).await;
    elsewhere.is_problem(403, "forbidden", None);
    let attempt = report(&bench, &job, &own, json!({"progress": 1, "attempt": 2})).await;
    attempt.is_problem(403, "forbidden", Some("attempt"));
    let priority = report(&bench, &job, &own, json!({"priority": 100})).await;
    priority.is_problem(400, "invalid-field", Some("priority"));
    let document = bench.call("GET", "/openapi.json").send().await.json();
    for (place, methods) in document["paths"].as_object().unwrap() {
        if !place.starts_with("/v1/") || place.ends_with("/reports") {
            continue;
        }
        let place = place.replace("{id}", job["id"].as_str().unwrap()).replace("{stream}", "stdout");
        for method in methods.as_object().unwrap().keys().filter(|key| *key != "parameters") {
            let call = bench.call(&method.to_uppercase(), &place).token(&own).json(&small_job());
            call.send().await.is_problem(403, "forbidden", None);
        }
    }
    let id: JobId = job["id"].as_str().unwrap().parse().unwrap();
    for forged in [
        own.replace("_1_", "_2_"),
        own.replace(&id.0.simple().to_string(), &JobId::generate().0.simple().to_string()),
        "jgj_".to_owned(),
    ] {
        report(&bench, &job, &forged, json!({"progress": 1})).await.is_problem(401, "unauthenticated", None);
        let call = bench.call("GET", &path(&job)).token(&forged);
        call.send().await.is_problem(401, "unauthenticated", None);
    }
    let shown = bench.call("GET", &path(&job)).send().await.json();
    assert_eq!((&shown["progress"], &shown["priority"]), (&Value::Null, &json!(0)));
}

#[tokio::test]
async fn whoever_may_act_on_a_job_may_report_of_its_attempt() {
    let bench = Bench::new();
    let (job, _) = begun(&bench).await;
    let submit = bench.token(Some("default"), &[Role::Submit]).await;
    let told = report(&bench, &job, &submit, json!({"progress": 3, "attempt": 1})).await;
    assert_eq!((told.status.as_u16(), &told.json()["progress"]), (200, &json!(3)));
    let other = report(&bench, &job, &submit, json!({"progress": 5, "attempt": 2})).await;
    other.is_problem(409, "state-conflict", None);
    let read = bench.token(Some("default"), &[Role::Read]).await;
    report(&bench, &job, &read, json!({"progress": 5})).await.is_problem(403, "forbidden", None);
    let waiting = bench.posted(small_job()).await;
    let early = report(&bench, &waiting, &submit, json!({"progress": 5})).await;
    early.is_problem(409, "state-conflict", None);
}

#[tokio::test]
async fn a_report_is_refused_by_the_field_that_is_wrong() {
    let bench = Bench::new();
    let (job, _) = begun(&bench).await;
    let own = bench.own_token(&job, 1);
    let labels: Vec<String> = (0..64).map(|n| n.to_string()).collect();
    for (field, document) in [
        ("progress", json!({"progress": 101})),
        ("progress", json!({"progress": "half"})),
        ("seq", json!({"seq": -1})),
        ("seq", json!({"seq": 1_u64 << 53})),
        ("attempt", json!({"attempt": -1})),
        ("stage", json!({"stage": "x".repeat(101)})),
        ("message", json!({"message": "two\nlines"})),
        ("message", json!({"message": "x".repeat(501)})),
        ("labels[0]", json!({"labels": [""]})),
        ("labels", json!({"labels": labels})),
        ("outputs.a", json!({"outputs": {"a": null}})),
        ("outputs", json!({"outputs": {"a": "x".repeat(512 * 1024)}})),
        ("state", json!({"state": "FINISHED"})),
    ] {
        report(&bench, &job, &own, document).await.is_problem(400, "invalid-field", Some(field));
    }
    let most = json!({"outputs": {"a": "x".repeat(400 * 1024)}});
    for _ in 0..2 {
        assert_eq!(report(&bench, &job, &own, most.clone()).await.status.as_u16(), 200, "again is no more");
    }
}

#[tokio::test]
async fn a_report_is_made_again_while_the_store_is_away() {
    let bench = Bench::new();
    let (job, _) = begun(&bench).await;
    let own = bench.own_token(&job, 1);
    bench.store.away.store(true, std::sync::atomic::Ordering::SeqCst);
    let away = report(&bench, &job, &own, json!({"progress": 1})).await;
    away.is_problem(503, "store-away", None);
    assert!(!away.header("retry-after").is_empty());
}

#[tokio::test]
async fn the_document_says_what_a_report_may_hold() {
    let bench = Bench::new();
    let document = bench.call("GET", "/openapi.json").send().await.json();
    let schema = &document["components"]["schemas"]["ReportRequest"];
    assert_eq!(schema["required"], Value::Null, "every field is optional");
    let output = &schema["properties"]["outputs"]["additionalProperties"]["type"];
    assert_eq!(*output, json!(["string", "number", "boolean", "object", "array"]), "no output is null");
    assert_eq!(schema["properties"]["seq"]["maximum"], json!(9_007_199_254_740_991_u64));
}
