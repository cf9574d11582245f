//! Whatever is wrong with a request is told as a problem document that names the field.

use crate::testing::{Bench, small_job};
use chrono::{DateTime, SecondsFormat, TimeDelta, Utc};
use jobgate_shared::{
    clock::system,
    domain::JobId,
    store::{Filter, PageRequest, Role, Scope, Store as _},
};
use serde_json::{Value, json};

/// The smallest job, with `pointer` set to `value`.
fn job_with(pointer: &str, value: Value) -> Value {
    let mut job = small_job();
    let (parent, key) = pointer.rsplit_once('/').unwrap();
    job.pointer_mut(parent).unwrap()[key] = value;
    job
}

fn from_now(days: i64) -> String {
    let time: DateTime<Utc> = system().now() + TimeDelta::days(days);
    time.to_rfc3339_opts(SecondsFormat::Millis, true)
}

#[tokio::test]
async fn a_wrong_value_is_refused_by_the_path_of_its_field() {
    let long = |n: usize| "x".repeat(n);
    let retry_on = |ending: &str| json!({"retry_on": ["FAILED", ending]});
    let deep = (0..110).fold(json!(1), |inner, _| json!([inner]));
    let many = || json!({"a": vec![json!({"": 0}); 25_000]});
    let table = [
        ("name", job_with("/name", json!(long(201)))),
        ("name", job_with("/name", json!("two\nlines"))),
        ("name", job_with("/name", json!(7))),
        ("cluster", job_with("/cluster", json!("nowhere"))),
        ("cluster", job_with("/cluster", json!(""))),
        ("labels", job_with("/labels", json!("nightly"))),
        ("labels", job_with("/labels", json!({"a": "b"}))),
        ("labels", job_with("/labels", json!(vec!["x"; 65]))),
        ("labels[1]", job_with("/labels", json!(["a", 1]))),
        ("labels[1]", job_with("/labels", json!(["a", long(201)]))),
        ("labels[0]", job_with("/labels", json!([""]))),
        ("labels[0]", job_with("/labels", json!(["nul\u{0}"]))),
        ("priority", job_with("/priority", json!(101))),
        ("priority", job_with("/priority", json!(-101))),
        ("priority", job_with("/priority", json!(70_000))),
        ("priority", job_with("/priority", json!("high"))),
        ("max_attempts", job_with("/max_attempts", json!(0))),
        ("max_attempts", job_with("/max_attempts", json!(101))),
        ("run_at", job_with("/run_at", json!("tomorrow"))),
        ("run_at", job_with("/run_at", json!(from_now(6 * 365)))),
        ("run_at", job_with("/run_at", json!("1969-12-31T23:59:59Z"))),
        ("hold", job_with("/hold", json!("yes"))),
        ("inputs", job_with("/inputs", json!([1]))),
        ("inputs", job_with("/inputs", json!({"a": deep}))),
        ("inputs", job_with("/inputs", many())),
        ("spec.engine", job_with("/spec/engine", many())),
        ("retry.retry_on[1]", job_with("/retry", retry_on("FINISHED"))),
        ("retry.retry_on[1]", job_with("/retry", retry_on("FAILED"))),
        ("retry.retry_on[1]", job_with("/retry", retry_on("SOMETIMES"))),
        ("retry.backoff_seconds", job_with("/retry", json!({"backoff_seconds": 10_000_000}))),
        ("retry", job_with("/retry", json!([1, 2, []]))),
        ("spec", json!({"spec": [["true"]]})),
        ("spec.resources", job_with("/spec/resources", json!([1]))),
        ("retry.backoff", job_with("/retry", json!({"backoff": 1}))),
        ("comand", job_with("/comand", json!(["true"]))),
        ("spec", json!({"name": "no spec"})),
        ("spec.command", json!({"spec": {}})),
        ("spec.command", job_with("/spec/command", json!([]))),
        ("spec.command", job_with("/spec/command", json!("sleep 1"))),
        ("spec.command[0]", job_with("/spec/command", json!([""]))),
        ("spec.command[1]", job_with("/spec/command", json!(["echo", "\u{0}"]))),
        ("spec.command[1]", job_with("/spec/command", json!(["echo", 1]))),
        ("spec.shell", job_with("/spec/shell", json!("sh"))),
        ("spec.env.A=B", job_with("/spec/env", json!({"A=B": "x"}))),
        ("spec.env.1A", job_with("/spec/env", json!({"1A": "x"}))),
        ("spec.env.", job_with("/spec/env", json!({"": "x"}))),
        ("spec.env.A", job_with("/spec/env", json!({"A": "nul\u{0}"}))),
        ("spec.env.A\\0", job_with("/spec/env", json!({"A\u{0}": "x"}))),
        ("spec.working_dir", job_with("/spec/working_dir", json!("data"))),
        ("spec.time_limit_seconds", job_with("/spec/time_limit_seconds", json!(0))),
        ("spec.time_limit_seconds", job_with("/spec/time_limit_seconds", json!(-5))),
        ("spec.resources.cpus", job_with("/spec/resources", json!({"cpus": 0}))),
        ("spec.resources.cpu", job_with("/spec/resources", json!({"cpu": 1}))),
        ("spec", job_with("/spec/env", (0..300).map(|i| (format!("V{i}"), json!(long(1_000)))).collect())),
        ("spec.image", json!({"cluster": "slurm", "spec": {"command": ["true"], "image": "debian"}})),
    ];
    let bench = Bench::new();
    for (field, document) in table {
        let answer = bench.call("POST", "/v1/jobs").json(&document).send().await;
        assert_eq!(answer.status.as_u16(), 400, "{document} was answered {}", answer.text());
        answer.is_problem(400, "invalid-field", Some(field));
    }
    let page = PageRequest { after: None, limit: 1 };
    let stored = bench.store.inner.list(&Scope::All, &Filter::default(), page).await.unwrap();
    assert!(stored.jobs.is_empty(), "nothing wrong becomes a row");
}

#[tokio::test]
async fn what_is_no_json_or_nested_too_deeply_is_malformed() {
    let bench = Bench::new();
    let deep = format!("{{\"inputs\":{{\"a\":{}{}}}}}", "[".repeat(200), "]".repeat(200));
    for body in ["", "{", "nonsense", "{\"spec\":{\"command\":[\"true\"]}} and more", "[]", "null", &deep] {
        let answer = bench.call("POST", "/v1/jobs").body("application/json", body.to_owned()).send().await;
        assert_eq!(answer.status.as_u16(), 400, "{body}");
        answer.is_problem(400, "malformed-json", None);
    }
}

#[tokio::test]
async fn a_body_that_is_too_large_is_refused_whether_its_length_is_told_or_not() {
    let bench = Bench::new();
    let large = vec![b' '; 1024 * 1024 + 1];
    let told = bench.call("POST", "/v1/jobs").body("application/json", large.clone()).send().await;
    told.is_problem(413, "too-large", None);
    let pieces =
        large.chunks(10_000).map(|piece| Ok::<_, std::io::Error>(piece.to_vec())).collect::<Vec<_>>();
    let streamed = axum::body::Body::from_stream(futures::stream::iter(pieces));
    bench.call("POST", "/v1/jobs").body("application/json", streamed).send().await.is_problem(
        413,
        "too-large",
        None,
    );
    let patch = bench.call("PATCH", &format!("/v1/jobs/{}", JobId::generate()));
    patch.body("application/json", large).send().await.is_problem(413, "too-large", None);
}

#[tokio::test]
async fn a_time_in_the_past_means_now() {
    let bench = Bench::new();
    let job = bench.posted(job_with("/run_at", json!(from_now(-1)))).await;
    assert_eq!(job["state"], "INITIALIZED");
    // Hinted at once, like any job that is due.
    let mut hints = bench.broker.hints.subscribe();
    hints.wait_for(|hints| !hints.is_empty()).await.unwrap();
}

#[tokio::test]
async fn an_unknown_id_and_a_foreign_one_are_equally_absent() {
    let bench = Bench::new();
    let theirs = bench.call("POST", "/v1/jobs?project=theirs").json(&small_job()).send().await.json();
    let own = bench.token(Some("own"), &[Role::Submit]).await;
    let foreign = theirs["id"].as_str().unwrap();
    for id in [foreign, &JobId::generate().to_string(), "17", "%FF"] {
        for (method, tail) in [
            ("GET", ""),
            ("GET", "/history"),
            ("GET", "/logs/stdout"),
            ("GET", "/events"),
            ("POST", "/cancel"),
            ("POST", "/hold"),
            ("POST", "/release"),
            ("POST", "/retry"),
            ("DELETE", ""),
        ] {
            let accept = if tail == "/events" { "text/event-stream" } else { "*/*" };
            let call =
                bench.call(method, &format!("/v1/jobs/{id}{tail}")).token(&own).header("accept", accept);
            call.send().await.is_problem(404, "not-found", None);
        }
        let patch = bench.call("PATCH", &format!("/v1/jobs/{id}")).token(&own).json(&json!({"progress": 1}));
        patch.send().await.is_problem(404, "not-found", None);
        let told =
            bench.call("POST", &format!("/v1/jobs/{id}/reports")).token(&own).json(&json!({"progress": 1}));
        told.send().await.is_problem(404, "not-found", None);
    }
    let untouched = bench.call("GET", &format!("/v1/jobs/{foreign}")).send().await.json();
    assert_eq!((&untouched["state"], &untouched["cancel_requested"]), (&json!("INITIALIZED"), &json!(false)));
}

#[tokio::test]
async fn a_cursor_from_elsewhere_is_refused() {
    let bench = Bench::new();
    for _ in 0..3 {
        bench.posted(job_with("/labels", json!(["a"]))).await;
    }
    let page = bench.call("GET", "/v1/jobs?label=a&limit=1").send().await.json();
    let cursor = page["next_cursor"].as_str().unwrap();
    let same = format!("/v1/jobs?label=a&limit=2&cursor={cursor}");
    assert_eq!(bench.call("GET", &same).send().await.json()["items"].as_array().unwrap().len(), 2);
    for other in [
        format!("/v1/jobs?label=b&cursor={cursor}"),
        format!("/v1/jobs?cursor={cursor}"),
        format!("/v1/jobs?label=a&cursor={cursor}&project=other"),
        "/v1/jobs?label=a&cursor=AAAA".to_owned(),
        "/v1/jobs?label=a&cursor=not%20one".to_owned(),
    ] {
        bench.call("GET", &other).send().await.is_problem(400, "invalid-cursor", Some("cursor"));
    }
}

#[tokio::test]
async fn a_wrong_or_unknown_parameter_is_refused_by_its_name() {
    let bench = Bench::new();
    for (query, field) in [
        ("limit=0", "limit"),
        ("limit=1001", "limit"),
        ("limit=many", "limit"),
        ("state=DONE", "state"),
        ("created_after=yesterday", "created_after"),
        ("cluster=NOT%20ONE", "cluster"),
        ("name=a&name=b", "name"),
        ("lable=nightly", "lable"),
    ] {
        let answer = bench.call("GET", &format!("/v1/jobs?{query}")).send().await;
        answer.is_problem(400, "invalid-field", Some(field));
    }
    let job = bench.posted(small_job()).await;
    let path = format!("/v1/jobs/{}?wait=long", job["id"].as_str().unwrap());
    bench.call("GET", &path).send().await.is_problem(400, "invalid-field", Some("wait"));
    bench.call("GET", "/v1/jobs?project=NOT%20ONE").send().await.is_problem(
        400,
        "invalid-field",
        Some("project"),
    );
}

#[tokio::test]
async fn a_key_that_stands_for_another_body_is_refused() {
    let bench = Bench::new();
    let post = |document: Value| {
        let bench = &bench;
        async move {
            bench.call("POST", "/v1/jobs").header("idempotency-key", "mine").json(&document).send().await
        }
    };
    let first = post(small_job()).await;
    assert_eq!(first.status.as_u16(), 201);
    let again = post(small_job()).await;
    assert_eq!((again.status.as_u16(), &again.json()["id"]), (200, &first.json()["id"]));
    let other = post(job_with("/name", json!("another"))).await;
    other.is_problem(422, "idempotency-key-reused", Some("Idempotency-Key"));
    for key in ["", "with space", "é", &"k".repeat(201)] {
        let call = bench.call("POST", "/v1/jobs").header("idempotency-key", key).json(&small_job());
        call.send().await.is_problem(400, "invalid-field", Some("Idempotency-Key"));
    }
}

#[tokio::test]
async fn what_axum_itself_refuses_is_a_problem_too() {
    let bench = Bench::new();
    bench.call("GET", "/v2/jobs").send().await.is_problem(404, "no-such-path", None);
    let wrong_method = bench.call("PUT", "/v1/jobs").send().await;
    wrong_method.is_problem(405, "method-not-allowed", None);
    assert_eq!(wrong_method.header("allow"), "GET,HEAD,POST");
    let form = bench.call("POST", "/v1/jobs").body("application/x-www-form-urlencoded", "a=b");
    form.send().await.is_problem(415, "unsupported-media-type", Some("Content-Type"));
    let untyped = bench.call("POST", "/v1/jobs").json(&small_job()).without("content-type");
    untyped.send().await.is_problem(415, "unsupported-media-type", Some("Content-Type"));
    let html = bench.call("GET", "/v1/jobs").header("accept", "text/html");
    html.send().await.is_problem(406, "not-acceptable", Some("Accept"));
    let json_events = bench.call("GET", "/v1/events").header("accept", "application/json");
    json_events.send().await.is_problem(406, "not-acceptable", Some("Accept"));
}

#[tokio::test]
async fn a_request_for_another_host_is_turned_away() {
    let bench = Bench::new();
    for host in ["evil.example", "evil.example:7070", "127.0.0.1.evil.example", "10.0.0.1", "not a host"] {
        let answer = bench.call("GET", "/v1/jobs").header("host", host).send().await;
        answer.is_problem(421, "misdirected", Some("Host"));
    }
    bench.call("GET", "/v1/jobs").without("host").send().await.is_problem(421, "misdirected", Some("Host"));
    let twice = bench.call("GET", "http://evil.example/v1/jobs");
    twice.send().await.is_problem(421, "misdirected", Some("Host"));
    for host in ["localhost:7070", "127.0.0.1", "[::1]:7070", "jobs.example.org:443"] {
        assert_eq!(
            bench.call("GET", "/v1/jobs").header("host", host).send().await.status.as_u16(),
            200,
            "{host}"
        );
    }
    let probe = bench.call("GET", "/livez").header("host", "10.1.2.3:7070").send().await;
    assert_eq!(probe.status.as_u16(), 200, "probes call a server by any address");
}

#[tokio::test]
async fn a_document_is_bounded_by_what_it_takes_parsed_and_not_by_its_text_alone() {
    let bench = Bench::new();
    let numbers: Vec<u32> = (0..170_000).map(|n| n % 100_000).collect();
    let objects: Vec<Value> = (0..20_000).map(|n| json!({"id": n, "size": 12_345})).collect();
    let job = bench.posted(job_with("/inputs", json!({"numbers": numbers}))).await;
    bench.posted(job_with("/inputs", json!({"objects": objects}))).await;
    let path = format!("/v1/jobs/{}", job["id"].as_str().unwrap());
    let hand_out = async |key: &str| {
        let some = vec![json!({"": 0}); 12_000];
        bench.call("PATCH", &path).json(&json!({"outputs": {key: some}})).send().await
    };
    assert_eq!(hand_out("a").await.status.as_u16(), 200);
    hand_out("b").await.is_problem(400, "invalid-field", Some("outputs"));
}
