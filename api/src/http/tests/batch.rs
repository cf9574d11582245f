//! Many jobs in one request.

use crate::testing::{Bench, small_job};
use axum::body::Body;
use serde_json::{Value, json};
use std::fmt::Write as _;

fn errors(answer: &Value) -> Vec<(usize, &Value, &Value)> {
    let items = answer["items"].as_array().unwrap().iter().enumerate();
    items.filter_map(|(i, item)| Some((i, &item.get("error")?["status"], &item["error"]["field"]))).collect()
}

#[tokio::test]
async fn good_jobs_are_stored_and_bad_ones_told_at_their_index() {
    let bench = Bench::new();
    let bad = json!({"spec": {"command": []}});
    let unknown = json!({"cluster": "nowhere", "spec": {"command": ["true"]}});
    let batch = json!([small_job(), bad, small_job(), 7, unknown]);
    let lines = "{\"spec\":{\"command\":[\"true\"]}}\n\n{\"spec\":{\"command\":[]}}\r\n{\"spec\":{\"command\":[\"true\"]}}\n7\n{\"cluster\":\"nowhere\",\"spec\":{\"command\":[\"true\"]}}";
    for (kind, body) in [("application/json", batch.to_string()), ("application/x-ndjson", lines.to_owned())]
    {
        let answer = bench.call("POST", "/v1/jobs/batch").body(kind, body).send().await;
        assert_eq!(answer.status.as_u16(), 200);
        let (status, answer) = (json!(400), answer.json());
        assert_eq!(
            errors(&answer),
            [
                (1, &status, &json!("spec.command")),
                (3, &status, &Value::Null),
                (4, &status, &json!("cluster"))
            ],
            "{kind}"
        );
        assert_eq!(answer["items"][0]["job"]["state"], "INITIALIZED");
    }
    let listed = bench.call("GET", "/v1/jobs").send().await.json();
    assert_eq!(listed["items"].as_array().unwrap().len(), 4);
}

#[tokio::test]
async fn a_batch_sent_again_under_its_key_is_answered_with_the_same_jobs() {
    let bench = Bench::new();
    let post = |batch: Value| {
        let call = bench.call("POST", "/v1/jobs/batch").header("idempotency-key", "b");
        call.header("prefer", "return=minimal").json(&batch).send()
    };
    let first = post(json!([small_job(), small_job()])).await.json();
    let again = post(json!([small_job(), {"spec": {"command": ["false"]}}])).await.json();
    assert_ne!(first["items"][0], first["items"][1]);
    assert_eq!(first["items"][0], again["items"][0]);
    assert_eq!(errors(&again), [(1, &json!(422), &json!("Idempotency-Key"))]);
    let minimal: Vec<&String> = first["items"][0]["job"].as_object().unwrap().keys().collect();
    assert_eq!(minimal, ["id", "state"]);
    // The second of the batch is one job of its own: the single key stands for nothing else.
    let single =
        bench.call("POST", "/v1/jobs").header("idempotency-key", "b#1").json(&small_job()).send().await;
    assert_eq!((single.status.as_u16(), &single.json()["id"]), (200, &first["items"][1]["job"]["id"]));
}

#[tokio::test]
async fn an_array_with_a_syntax_error_or_too_many_jobs_stores_nothing() {
    let bench = Bench::new();
    let array = |body: String| bench.call("POST", "/v1/jobs/batch").body("application/json", body).send();
    for body in ["[", "{}", "[{\"spec\":{\"command\":[\"true\"]}},", "[] []"] {
        array(body.to_owned()).await.is_problem(400, "malformed-json", None);
    }
    array(format!("[{}]", vec!["1"; 10_001].join(","))).await.is_problem(413, "too-large", None);
    let wrong = bench.call("POST", "/v1/jobs/batch").body("text/csv", "a").send().await;
    wrong.is_problem(415, "unsupported-media-type", Some("Content-Type"));
    let listed = bench.call("GET", "/v1/jobs").send().await.json();
    assert_eq!(listed["items"], json!([]));
}

#[tokio::test]
async fn lines_are_stored_as_they_come_in_any_pieces_up_to_the_limit() {
    let bench = Bench::new();
    let mut lines = String::new();
    for i in 0..10_003 {
        writeln!(lines, "{{\"name\":\"{i}\",\"spec\":{{\"command\":[\"true\"]}}}}").unwrap();
    }
    let pieces: Vec<_> =
        lines.as_bytes().chunks(7_919).map(|p| Ok::<_, std::io::Error>(p.to_vec())).collect();
    let body = Body::from_stream(futures::stream::iter(pieces));
    let call = bench.call("POST", "/v1/jobs/batch").header("prefer", "return=minimal");
    let answer = call.body("application/x-ndjson", body).send().await.json();
    assert_eq!(answer["items"].as_array().unwrap().len(), 10_001);
    assert_eq!(errors(&answer), [(10_000, &json!(413), &Value::Null)]);
    let last = answer["items"][9_999]["job"]["id"].as_str().unwrap();
    assert_eq!(bench.call("GET", &format!("/v1/jobs/{last}")).send().await.json()["name"], "9999");
}

#[tokio::test]
async fn a_body_cut_off_tells_where_and_keeps_what_came_before() {
    let bench = Bench::new();
    let line = format!("{}\n", small_job());
    let pieces = vec![Ok(line.clone()), Ok("{\"spec\":".to_owned()), Err(std::io::Error::other("cut"))];
    let body = Body::from_stream(futures::stream::iter(pieces));
    let answer = bench.call("POST", "/v1/jobs/batch").body("application/x-ndjson", body).send().await.json();
    assert_eq!(errors(&answer), [(1, &json!(400), &Value::Null)]);
    let long = format!("{line}{{\"name\":\"{}\"}}\n{line}", "x".repeat(1024 * 1024));
    let answer = bench.call("POST", "/v1/jobs/batch").body("application/x-ndjson", long).send().await.json();
    assert_eq!(errors(&answer)[0].1, &json!(413));
}

#[tokio::test]
async fn a_batch_in_an_outage_tells_every_job_to_come_back() {
    let bench = Bench::new();
    bench.store.away.store(true, std::sync::atomic::Ordering::SeqCst);
    let answer = bench.call("POST", "/v1/jobs/batch").json(&json!([small_job(), 7])).send().await.json();
    assert_eq!(
        errors(&answer).iter().map(|(_, status, _)| (*status).clone()).collect::<Vec<_>>(),
        [json!(503), json!(400)]
    );
}

#[tokio::test]
async fn jobs_that_take_much_memory_are_stored_a_few_at_a_time() {
    let bench = Bench::new();
    let inputs = json!({"a": vec![json!({"": 0}); 6_000]});
    let heavy = json!({"inputs": inputs, "spec": {"command": ["true"]}});
    let answer = bench.call("POST", "/v1/jobs/batch").json(&json!(vec![heavy; 12])).send().await.json();
    assert_eq!(errors(&answer), []);
    let told = answer["items"].as_array().unwrap();
    assert!(told.len() == 12 && told.iter().all(|item| item["job"]["inputs"] == inputs));
    let most = bench.store.inserts().iter().map(|call| call.ids.len()).max();
    assert!(most <= Some(4), "{most:?} at once");
}
