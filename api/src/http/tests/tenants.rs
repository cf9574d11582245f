//! What belongs to another project does not exist: over every operation of the document, so that a new one is not forgotten.

use crate::testing::{Answered, Bench, small_job};
use jobgate_shared::store::Role;
use serde_json::{Value, json};

/// Method and path of every operation that takes an id of a project. Claims are a cluster's, whose token belongs to no project.
async fn operations(bench: &Bench) -> Vec<(String, String)> {
    let document = bench.call("GET", "/openapi.json").send().await.json();
    let is_a_projects = |path: &str| path.contains("{id}") && !path.starts_with("/v1/clusters/");
    let mut found = Vec::new();
    for (path, methods) in document["paths"].as_object().unwrap() {
        for method in methods.as_object().unwrap().keys().filter(|_| is_a_projects(path)) {
            found.push((method.to_uppercase(), path.clone()));
        }
    }
    found
}

/// Something of the holder of `token` that `path` can name by its id: a held job, or a token.
async fn made(bench: &Bench, path: &str, token: &str) -> Value {
    let (path, document) = if path.starts_with("/v1/tokens/") {
        ("/v1/tokens", json!({"name": "theirs", "roles": ["read"]}))
    } else {
        assert!(path.starts_with("/v1/jobs/"), "whose id does {path} take?");
        ("/v1/jobs", json!({"hold": true, "labels": ["theirs"], "spec": {"command": ["true"]}}))
    };
    let made = bench.call("POST", path).token(token).json(&document).send().await;
    assert_eq!(made.status.as_u16(), 201, "{}", made.text());
    made.json()
}

/// Calls it, with something to change where it takes that. A stream is not read to its end, which never comes.
async fn call(bench: &Bench, method: &str, path: &str, token: &str) -> Answered {
    let call = bench.call(method, path).token(token);
    let changes = method == "PATCH" || path.contains("/reports");
    let call = if changes { call.json(&json!({"progress": 7, "labels": ["ours"]})) } else { call };
    let response = call.open().await;
    if response.headers().get("content-type").is_some_and(|kind| kind == "text/event-stream") {
        return Answered { status: response.status(), headers: response.headers().clone(), body: Vec::new() };
    }
    Answered::read(response).await
}

#[tokio::test]
async fn a_foreign_id_is_absent_for_every_operation_and_nothing_is_done_to_it() {
    let bench = Bench::new();
    let ours = bench.token(Some("ours"), &[Role::Admin]).await;
    let theirs = bench.token(Some("theirs"), &[Role::Admin]).await;
    let operations = operations(&bench).await;
    assert!(operations.len() >= 11, "{operations:?}");
    for (method, path) in operations {
        let thing = made(&bench, &path, &theirs).await;
        let named = path.replace("{id}", thing["id"].as_str().unwrap()).replace("{stream}", "stdout");
        let events = bench.broker.nudges.borrow().len();
        for query in ["", "?project=theirs", "?project=ours"] {
            let answer = call(&bench, &method, &format!("{named}{query}"), &ours).await;
            answer.is_problem(404, "not-found", None);
        }
        assert_eq!(bench.broker.nudges.borrow().len(), events, "{method} {path} told somebody");
        let list = if path.starts_with("/v1/tokens/") { "/v1/tokens" } else { "/v1/jobs" };
        let left = bench.call("GET", list).token(&theirs).send().await.json();
        let mut expected = thing;
        expected.as_object_mut().unwrap().remove("token");
        let left = left["items"].as_array().unwrap().iter().find(|item| item["id"] == expected["id"]);
        assert_eq!(left, Some(&expected), "{method} {path} changed it");
        // For whom it is, it is there.
        let own = call(&bench, &method, &named, &theirs).await;
        assert_ne!(own.status.as_u16(), 404, "{method} {path}: {}", own.text());
    }
}

#[tokio::test]
async fn what_means_many_means_nothing_of_another_project() {
    let bench = Bench::new();
    let ours = bench.token(Some("ours"), &[Role::Admin]).await;
    let theirs = bench.token(Some("theirs"), &[Role::Admin]).await;
    let job = made(&bench, "/v1/jobs/", &theirs).await;
    for command in ["cancel", "hold", "release", "retry"] {
        for filter in ["all=true", "label=theirs", "state=HELD"] {
            let told = bench.call("POST", &format!("/v1/jobs/{command}?{filter}")).token(&ours).send().await;
            assert_eq!(
                (told.status.as_u16(), &told.json()["matched"]),
                (200, &json!(0)),
                "{command} {filter}"
            );
        }
    }
    for list in ["/v1/jobs", "/v1/tokens"] {
        let listed = bench.call("GET", list).token(&ours).send().await;
        assert!(!listed.text().contains("theirs"), "{list}: {}", listed.text());
    }
    let queues = bench.call("GET", "/v1/queues").token(&ours).send().await.json();
    assert!(queues["items"].as_array().unwrap().iter().all(|queue| queue["depths"] == json!([])), "{queues}");
    let path = format!("/v1/jobs/{}", job["id"].as_str().unwrap());
    assert_eq!(bench.call("GET", &path).token(&theirs).send().await.json(), job);
}

#[tokio::test]
async fn a_key_of_one_project_means_nothing_in_another() {
    let bench = Bench::new();
    let mut jobs = Vec::new();
    for (project, document) in [("ours", small_job()), ("theirs", json!({"spec": {"command": ["false"]}}))] {
        let token = bench.token(Some(project), &[Role::Submit]).await;
        let call = bench.call("POST", "/v1/jobs").token(&token).header("idempotency-key", "same");
        let posted = call.json(&document).send().await;
        assert_eq!(posted.status.as_u16(), 201, "{}", posted.text());
        jobs.push(posted.json());
    }
    assert_ne!(jobs[0]["id"], jobs[1]["id"]);
}
