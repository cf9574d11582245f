//! The client against a server that answers from a list.

use super::{
    canned::{Canned, answer},
    *,
};

#[tokio::test]
async fn a_request_carries_token_key_and_parameters() {
    let server = Canned::answering(vec![Some(answer("201 Created", r#"{"id":"1"}"#))]).await;
    let body = serde_json::json!({"spec": {"command": ["true"]}});
    let request = Request::post("/v1/jobs").query([("label", "a b&c".to_owned())]).json(&body).key("k-1");
    assert_eq!(server.client().send(request).await.unwrap(), serde_json::json!({"id": "1"}));
    let asked = &server.asked()[0];
    assert!(asked.starts_with("POST /v1/jobs?label=a+b%26c HTTP/1.1\r\n"), "{asked}");
    for line in ["authorization: Bearer jgt_secret", "idempotency-key: k-1", "content-type: application/json"]
    {
        assert!(asked.contains(line), "{line} in {asked}");
    }
    assert!(asked.ends_with(r#"{"spec":{"command":["true"]}}"#), "{asked}");
}

#[tokio::test]
async fn a_refusal_is_the_problem_the_gateway_told() {
    let problem =
        r#"{"title":"Bad Request","status":400,"detail":"must be absolute","field":"spec.working_dir"}"#;
    let server = Canned::answering(vec![Some(answer("400 Bad Request", problem))]).await;
    let error = server.client().send(Request::post("/v1/jobs")).await.unwrap_err();
    assert_eq!(error.to_string(), "spec.working_dir: must be absolute");
    assert!(!error.is_transient());
}

#[tokio::test]
async fn a_fault_of_the_gateway_tells_what_its_log_knows_the_request_by() {
    let faulty = answer("500 Internal Server Error\r\nx-request-id: r-1", r#"{"title":"Internal"}"#);
    let server = Canned::answering(vec![Some(faulty)]).await;
    let error = server.client().send(Request::post("/v1/jobs")).await.unwrap_err();
    assert_eq!(error.to_string(), "Internal (request r-1)");
}

#[tokio::test]
async fn what_can_be_made_again_is_made_again_with_the_same_key() {
    let busy = answer("503 Service Unavailable", r#"{"title":"the store is away"}"#);
    let server = Canned::answering(vec![None, Some(busy), Some(answer("201 Created", "{}"))]).await;
    server.client().send(Request::post("/v1/jobs").key("k-1")).await.unwrap();
    let asked = server.asked();
    assert_eq!(asked.len(), 3);
    assert!(asked.iter().all(|request| request.contains("idempotency-key: k-1")));
}

#[tokio::test]
async fn what_cannot_is_made_once() {
    let server = Canned::answering(vec![None, Some(answer("200 OK", "{}"))]).await;
    let error = server.client().send(Request::post("/v1/clusters/a/pause")).await.unwrap_err();
    assert!(matches!(error, ClientError::Unreachable { .. }), "{error}");
    assert_eq!(error.to_string(), format!("cannot reach the gateway at {}/", server.address));
    assert_eq!(server.asked().len(), 1);
}

#[tokio::test]
async fn an_answer_that_is_no_document_is_told_as_such() {
    let server = Canned::answering(vec![Some(answer("200 OK", "<html>"))]).await;
    let error = server.client().send(Request::get("/v1/queues")).await.unwrap_err();
    assert!(matches!(error, ClientError::Unreadable { .. }), "{error}");
}

#[tokio::test]
async fn a_redirect_is_not_followed() {
    let elsewhere = "HTTP/1.1 302 Found\r\nlocation: http://127.0.0.1:1/\r\ncontent-length: 0\r\n\r\n";
    let server = Canned::answering(vec![Some(elsewhere.to_owned())]).await;
    let error = server.client().send(Request::post("/v1/jobs")).await.unwrap_err();
    assert!(matches!(&error, ClientError::Refused(problem) if problem.status == 302), "{error}");
}

#[tokio::test]
async fn a_feed_goes_on_where_its_connection_broke() {
    let head = "HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\n\r\n";
    let first = format!("{head}id: 1\ndata: a\n\nid: 2\ndata: b\n\nid: 3\nda");
    let second = format!("{head}id: 3\ndata: c\n\n");
    let server = Canned::answering(vec![Some(first), Some(second)]).await;
    let mut events = Events::follow(&server.client(), "/v1/events", Vec::new()).await.unwrap();
    let mut seen = Vec::new();
    for _ in 0..3 {
        seen.push(events.next().await.unwrap().data);
    }
    assert_eq!(seen, ["a", "b", "c"]);
    assert!(server.asked()[1].contains("last-event-id: 2\r\n"), "{}", server.asked()[1]);
}
