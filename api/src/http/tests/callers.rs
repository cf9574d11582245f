//! Who is let in, and what each role may do.

use crate::testing::{Bench, small_job};
use futures::{StreamExt as _, stream::FuturesUnordered};
use jobgate_shared::store::{Role, Scope, Store as _};
use serde_json::json;
use std::{sync::atomic::Ordering, time::Duration};

#[tokio::test]
async fn without_a_valid_token_every_path_of_v1_asks_for_one() {
    let bench = Bench::new();
    let document = bench.call("GET", "/openapi.json").send().await.json();
    let paths = document["paths"].as_object().unwrap();
    assert!(paths.len() > 20);
    for (path, methods) in paths.iter().filter(|(path, _)| path.starts_with("/v1/")) {
        let path = path.replace("{id}", "0196f0a0-0000-7000-8000-000000000000").replace("{stream}", "stdout");
        for method in methods.as_object().unwrap().keys().filter(|key| *key != "parameters") {
            for token in [None, Some("jgt_no_token_x"), Some("")] {
                let call = bench.call(&method.to_uppercase(), &path).without("authorization");
                let call = match token {
                    Some(token) => call.token(token),
                    None => call,
                };
                let answer = call.json(&small_job()).send().await;
                assert_eq!(answer.status.as_u16(), 401, "{method} {path}: {}", answer.text());
                answer.is_problem(401, "unauthenticated", None);
                assert!(answer.header("www-authenticate").starts_with("Bearer"));
            }
        }
    }
}

#[tokio::test]
async fn a_role_that_is_too_small_is_told_which_one_is_needed() {
    let bench = Bench::new();
    let job = bench.posted(small_job()).await;
    let id = job["id"].as_str().unwrap();
    let table = [
        ("GET", "/v1/jobs".to_owned(), Role::Read),
        ("POST", "/v1/jobs".to_owned(), Role::Submit),
        ("POST", "/v1/jobs/batch".to_owned(), Role::Submit),
        ("POST", format!("/v1/jobs/{id}/hold"), Role::Submit),
        ("POST", format!("/v1/jobs/{id}/release"), Role::Submit),
        ("POST", format!("/v1/jobs/{id}/retry"), Role::Submit),
        ("POST", format!("/v1/jobs/{id}/reports"), Role::Submit),
        ("PATCH", format!("/v1/jobs/{id}"), Role::Submit),
        ("DELETE", format!("/v1/jobs/{id}"), Role::Submit),
        ("POST", format!("/v1/jobs/{id}/cancel"), Role::Cancel),
        ("POST", "/v1/jobs/cancel?label=x".to_owned(), Role::Cancel),
        ("GET", "/v1/tokens".to_owned(), Role::Admin),
        ("POST", "/v1/tokens".to_owned(), Role::Admin),
    ];
    for has in [Role::Read, Role::Submit, Role::Cancel, Role::Admin, Role::Work] {
        let token = bench.token(Some("default"), &[has]).await;
        for (method, path, needed) in &table {
            let answer = bench.call(method, path).token(&token).json(&json!({})).send().await;
            let allowed = match needed {
                Role::Read => has != Role::Work,
                Role::Submit => matches!(has, Role::Submit | Role::Admin),
                Role::Cancel => matches!(has, Role::Cancel | Role::Submit | Role::Admin),
                Role::Admin => has == Role::Admin,
                Role::Work => unreachable!("no path of these"),
            };
            if allowed {
                assert_ne!(answer.status.as_u16(), 403, "{has:?} {method} {path}");
            } else {
                answer.is_problem(403, "forbidden", None);
                let role = serde_json::to_value(needed).unwrap();
                let detail = answer.json()["detail"].as_str().unwrap().to_owned();
                assert!(detail.contains(role.as_str().unwrap()), "{detail}");
            }
        }
    }
}

#[tokio::test]
async fn the_administrator_of_one_project_operates_no_clusters_and_opens_no_other_project() {
    let bench = Bench::new();
    let admin = bench.token(Some("a"), &[Role::Admin]).await;
    let pause = bench.call("POST", "/v1/clusters/local/pause").token(&admin).send().await;
    pause.is_problem(403, "forbidden", None);
    for project in ["b", "*"] {
        let wish = json!({"name": "x", "project": project, "roles": ["read"]});
        let made = bench.call("POST", "/v1/tokens").token(&admin).json(&wish).send().await;
        made.is_problem(403, "forbidden", Some("project"));
    }
    let foreign = bench.call("GET", "/v1/jobs?project=b").token(&admin).send().await;
    foreign.is_problem(404, "not-found", None);
    bench.call("GET", "/metrics").token(&admin).send().await.is_problem(403, "forbidden", None);
}

#[tokio::test]
async fn a_token_is_shown_once_works_until_revoked_and_is_listed_without_its_secret() {
    let bench = Bench::new();
    let wish = json!({"name": "nightly", "project": "a", "roles": ["submit", "read", "submit"]});
    let made = bench.call("POST", "/v1/tokens").json(&wish).send().await;
    assert_eq!((made.status.as_u16(), made.header("cache-control")), (201, "no-store"));
    let (text, id) = (made.json()["token"].clone(), made.json()["id"].clone());
    let text = text.as_str().unwrap();
    let posted = bench.call("POST", "/v1/jobs").token(text).json(&small_job()).send().await.json();
    assert_eq!((&posted["project"], &posted["created_by"]), (&json!("a"), &json!("token:nightly")));
    let listed = bench.call("GET", "/v1/tokens").send().await;
    assert_eq!(listed.json()["items"][0]["roles"], json!(["read", "submit"]));
    assert!(!listed.text().contains(text.split('_').nth(2).unwrap()));
    let revoke = bench.call("DELETE", &format!("/v1/tokens/{}", id.as_str().unwrap()));
    assert_eq!(revoke.send().await.status.as_u16(), 204);
    bench.call("GET", "/v1/jobs").token(text).send().await.is_problem(401, "unauthenticated", None);
    let again = bench.call("DELETE", &format!("/v1/tokens/{}", id.as_str().unwrap()));
    again.send().await.is_problem(404, "not-found", None);
    for wish in [
        json!({"name": "", "project": "a", "roles": ["read"]}),
        json!({"name": "x", "roles": ["read"]}),
        json!({"name": "x", "project": "a", "roles": []}),
        json!({"name": "x", "project": "a", "roles": ["king"]}),
        json!({"name": "x", "project": "a", "roles": ["read"], "expires_at": "2020-01-01T00:00:00Z"}),
    ] {
        let refused = bench.call("POST", "/v1/tokens").json(&wish).send().await;
        assert_eq!(refused.status.as_u16(), 400, "{wish}");
        assert!(refused.json()["field"].is_string(), "{wish}");
    }
}

#[tokio::test(start_paused = true)]
async fn what_streams_to_a_token_goes_on_through_an_outage_and_ends_soon_after_it_was_revoked() {
    let bench = Bench::new();
    let token = bench.token(Some("a"), &[Role::Submit]).await;
    let job = bench.call("POST", "/v1/jobs").token(&token).json(&small_job()).send().await.json();
    let id = job["id"].as_str().unwrap();
    let mut open = FuturesUnordered::new();
    for path in [
        "/v1/events".to_owned(),
        format!("/v1/jobs/{id}/events"),
        format!("/v1/jobs/{id}/logs/stdout?follow=true"),
    ] {
        let response = bench.call("GET", &path).token(&token).open().await;
        assert_eq!(response.status().as_u16(), 200, "{path}");
        open.push(response.into_body().into_data_stream().map(drop).collect::<()>());
    }
    for away in [true, false] {
        bench.store.away.store(away, Ordering::SeqCst);
        let early = tokio::time::timeout(Duration::from_mins(1), open.next()).await;
        assert!(early.is_err(), "away: {away}");
    }
    // On another process, and the nudge was lost.
    let revoked = bench.store.inner.tokens(&Scope::All).await.unwrap().remove(0);
    assert!(bench.store.inner.revoke_token(&Scope::All, revoked.id).await.unwrap());
    let ended = tokio::time::timeout(Duration::from_secs(20), open.count()).await;
    assert_eq!(ended, Ok(3));
}

#[tokio::test]
async fn each_project_sees_its_own_jobs_and_the_operator_sees_all_or_the_one_it_names() {
    let bench = Bench::new();
    for project in ["a", "b"] {
        let token = bench.token(Some(project), &[Role::Submit]).await;
        bench.call("POST", "/v1/jobs").token(&token).json(&small_job()).send().await;
    }
    let count = |call: crate::testing::Call<'_>| {
        let sent = futures::executor::block_on(call.send());
        sent.json()["items"].as_array().unwrap().len()
    };
    assert_eq!(count(bench.call("GET", "/v1/jobs")), 2);
    assert_eq!(count(bench.call("GET", "/v1/jobs?project=a")), 1);
    assert_eq!(count(bench.call("GET", "/v1/jobs").header("x-jobgate-project", "b")), 1);
    assert_eq!(count(bench.call("GET", "/v1/jobs?project=c")), 0);
    assert_eq!(count(bench.call("GET", "/v1/jobs?project=b&project=b").header("x-jobgate-project", "b")), 1);
    for (path, header, field) in [
        ("/v1/jobs?project=a", "b", "project"),
        ("/v1/jobs?project=A%20B", "b", "project"),
        ("/v1/jobs?project=a&project=b", "a", "project"),
        ("/v1/jobs", "A B", "x-jobgate-project"),
    ] {
        let torn = bench.call("GET", path).header("x-jobgate-project", header).send().await;
        torn.is_problem(400, "invalid-field", Some(field));
    }
}

#[tokio::test]
async fn nothing_is_decided_about_a_caller_while_the_store_is_away() {
    let bench = Bench::new();
    let token = bench.token(Some("a"), &[Role::Read]).await;
    bench.store.away.store(true, std::sync::atomic::Ordering::SeqCst);
    let answer = bench.call("GET", "/v1/jobs").token(&token).send().await;
    answer.is_problem(503, "store-away", None);
    assert!(!answer.header("retry-after").is_empty());
}
