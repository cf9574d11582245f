//! What operators look at, and what probes and tools ask.

use crate::testing::{Bench, small_job};
use jobgate_shared::{
    broker::BrokerHealth,
    domain::WorkerId,
    store::{Leases as _, Role, Store as _, Worker, WorkerCluster},
};
use metrics_exporter_prometheus::PrometheusBuilder;
use serde_json::{Value, json};
use std::{collections::BTreeSet, sync::atomic::Ordering, time::Duration};

#[tokio::test]
async fn queues_tell_how_many_jobs_stand_where_and_how_long_they_wait() {
    let bench = Bench::new();
    bench.posted(small_job()).await;
    bench.posted(json!({"priority": 5, "spec": {"command": ["true"]}})).await;
    bench.posted(json!({"priority": 5, "hold": true, "spec": {"command": ["true"]}})).await;
    bench.call("POST", "/v1/jobs?project=other").json(&small_job()).send().await;
    let queue = |answer: &Value, name: &str| -> Value {
        let items = answer["items"].as_array().unwrap();
        items.iter().find(|queue| queue["cluster"] == name).unwrap().clone()
    };
    let all = bench.call("GET", "/v1/queues").send().await.json();
    let local = queue(&all, "local");
    assert_eq!(
        local["depths"],
        json!([
            {"priority": 5, "state": "HELD", "jobs": 1},
            {"priority": 5, "state": "INITIALIZED", "jobs": 1},
            {"priority": 0, "state": "INITIALIZED", "jobs": 2},
        ])
    );
    assert_eq!(
        (&local["hints_outstanding"], &local["paused"], &local["workers"]),
        (&json!(3), &json!(false), &json!(0))
    );
    assert!(local["oldest"].as_array().unwrap().iter().all(|o| o["age_seconds"].as_f64().unwrap() >= 0.0));
    assert_eq!(queue(&all, "slurm")["depths"], json!([]));
    let own = bench.token(Some("other"), &[Role::Read]).await;
    let own = bench.call("GET", "/v1/queues").token(&own).send().await.json();
    let local = queue(&own, "local");
    assert_eq!(local["depths"], json!([{"priority": 0, "state": "INITIALIZED", "jobs": 1}]));
    assert_eq!((&local["oldest"], &local["hints_outstanding"]), (&Value::Null, &Value::Null), "others' jobs");
}

#[tokio::test]
async fn a_paused_cluster_tells_who_paused_it_until_it_is_resumed() {
    let bench = Bench::new();
    let paused = bench.call("POST", "/v1/clusters/slurm/pause").send().await.json();
    assert_eq!((&paused["paused"], &paused["paused_by"]), (&json!(true), &json!("token:bootstrap")));
    let listed = bench.call("GET", "/v1/clusters").send().await.json();
    assert_eq!(
        (&listed["items"][1]["paused"], &listed["items"][1]["mode"]),
        (&json!(true), &json!("two_phase"))
    );
    assert_eq!(listed["items"][0]["is_default"], json!(true));
    let capabilities = json!({"reach": "host", "commands": true, "exit_codes": "codes_and_signals",
        "memory_limits": "told", "time_limits": "by_engine", "warns_on_cancel": true, "logs": true,
        "poll_interval_seconds": 0.2});
    assert_eq!(listed["items"][0]["capabilities"], capabilities);
    assert_eq!(listed["items"][1]["capabilities"]["reach"], "everywhere");
    let resumed = bench.call("POST", "/v1/clusters/slurm/resume").send().await.json();
    assert_eq!((&resumed["paused"], &resumed["paused_at"]), (&json!(false), &Value::Null));
    bench.call("POST", "/v1/clusters/nowhere/pause").send().await.is_problem(404, "not-found", None);
    assert_eq!(bench.call("GET", "/v1/workers").send().await.json(), json!({"items": []}));
}

#[tokio::test]
async fn a_limit_is_set_told_and_lifted() {
    let bench = Bench::new();
    let change = async |name: &str, body: Value| {
        bench.call("PATCH", &format!("/v1/clusters/{name}")).json(&body).send().await
    };
    let job = bench.posted(small_job()).await;
    let limited = change("local", json!({"max_in_flight": 0})).await.json();
    assert_eq!((&limited["name"], &limited["max_in_flight"]), (&json!("local"), &json!(0)));
    let path = format!("/v1/jobs/{}", job["id"].as_str().unwrap());
    let reason = bench.call("GET", &path).send().await.json()["reason"].clone();
    assert_eq!(reason, "cluster local has as many jobs in flight as an operator allows (0)");
    // A pause leaves it, and so does a change of nothing.
    bench.call("POST", "/v1/clusters/local/pause").send().await;
    bench.call("POST", "/v1/clusters/local/resume").send().await;
    assert_eq!(change("local", json!({})).await.json()["max_in_flight"], json!(0));
    assert_eq!(
        bench.call("GET", "/v1/clusters").send().await.json()["items"][1]["max_in_flight"],
        Value::Null
    );
    assert_eq!(change("local", json!({"max_in_flight": null})).await.json()["max_in_flight"], Value::Null);
    for wrong in
        [json!({"max_in_flight": -1}), json!({"max_in_flight": 1_000_001}), json!({"max_in_flight": "5"})]
    {
        change("local", wrong).await.is_problem(400, "invalid-field", Some("max_in_flight"));
    }
    change("local", json!({"limit": 5})).await.is_problem(400, "invalid-field", Some("limit"));
    change("nowhere", json!({"max_in_flight": 5})).await.is_problem(404, "not-found", None);
    let own = bench.token(Some("other"), &[Role::Admin]).await;
    let foreign = bench.call("PATCH", "/v1/clusters/local").json(&json!({"max_in_flight": 5})).token(&own);
    foreign.send().await.is_problem(403, "forbidden", None);
}

#[tokio::test]
async fn a_clusters_health_is_what_those_say_who_serve_it() {
    let seen: [(&[bool], &str); 4] =
        [(&[], "unserved"), (&[false, false], "up"), (&[false, true], "degraded"), (&[true, true], "down")];
    for (away, health) in seen {
        let bench = Bench::new();
        for away in away {
            let parked = away.then(|| "no answer".to_owned());
            let at = bench.store.inner.now().await.unwrap();
            let worker = Worker {
                id: WorkerId::generate(),
                host: "here".into(),
                clusters: vec![WorkerCluster { name: "local".parse().unwrap(), reach: None, parked }],
                registered_at: at,
                expires_at: at,
                alive: true,
                draining: false,
                jobs: 0,
            };
            bench.store.inner.register(&worker, Duration::from_mins(1)).await.unwrap();
        }
        let listed = bench.call("GET", "/v1/clusters").send().await.json();
        assert_eq!(listed["items"][0]["health"], health, "{away:?}");
        assert_eq!(listed["items"][1]["health"], "unserved");
    }
}

#[tokio::test(start_paused = true)]
async fn readiness_is_lost_with_the_store_and_degraded_without_the_broker() {
    let bench = Bench::new();
    let ready = || async {
        // Answers are given again for a second.
        tokio::time::advance(std::time::Duration::from_secs(2)).await;
        let answer = bench.call("GET", "/readyz").without("authorization").send().await;
        (answer.status.as_u16(), answer.json()["status"].clone())
    };
    assert_eq!(ready().await, (200, json!("ready")));
    bench.broker.health.send_replace(BrokerHealth::Down);
    assert_eq!(ready().await, (200, json!("degraded")));
    bench.broker.health.send_replace(BrokerHealth::Blocked);
    assert_eq!(ready().await, (200, json!("degraded")));
    bench.store.away.store(true, Ordering::SeqCst);
    assert_eq!(ready().await, (503, json!("unready")));
    assert_eq!(bench.call("GET", "/livez").without("authorization").send().await.status.as_u16(), 200);
}

#[tokio::test]
async fn metrics_need_a_token_unless_they_are_opened() {
    let bench = Bench::new();
    bench.call("GET", "/metrics").without("authorization").send().await.is_problem(
        401,
        "unauthenticated",
        None,
    );
    assert_eq!(bench.call("GET", "/metrics").send().await.text(), "jobgate_metric 1\n");
    // They are for outages.
    let scraper = bench.token(None, &[Role::Read]).await;
    let scrape = || bench.call("GET", "/metrics").token(&scraper).send();
    assert_eq!(scrape().await.status.as_u16(), 200);
    bench.store.away.store(true, Ordering::SeqCst);
    tokio::time::pause();
    tokio::time::advance(crate::auth::TRUST).await;
    assert_eq!(scrape().await.status.as_u16(), 200);
    let list = bench.call("GET", "/v1/jobs").token(&scraper).send().await;
    list.is_problem(503, "store-away", None);
    let open = Bench::with(crate::http::HttpConfig { open_metrics: true, ..Default::default() });
    assert_eq!(open.call("GET", "/metrics").without("authorization").send().await.status.as_u16(), 200);
}

#[tokio::test]
async fn the_openapi_document_names_every_path_the_router_has() {
    let bench = Bench::new();
    let document = bench.call("GET", "/openapi.json").without("authorization").send().await.json();
    let routes: BTreeSet<&str> = include_str!("../mod.rs")
        .lines()
        .filter_map(|line| line.trim().strip_prefix(".route(\"")?.split('"').next())
        .collect();
    let paths: BTreeSet<&str> = document["paths"].as_object().unwrap().keys().map(String::as_str).collect();
    assert_eq!(paths, routes);
    assert_eq!(document["components"]["securitySchemes"]["token"]["scheme"], "bearer");
    for (path, methods) in document["paths"].as_object().unwrap() {
        for (method, operation) in methods.as_object().unwrap() {
            let problem = &operation["responses"]["500"]["$ref"];
            assert_eq!(problem, "#/components/responses/Problem", "{method} {path}");
            assert!(
                operation["operationId"].is_string() && operation["summary"].is_string(),
                "{method} {path}"
            );
        }
    }
    // Every schema that is referred to is there.
    let text = document.to_string();
    for name in text.split("#/components/schemas/").skip(1).filter_map(|rest| rest.split('"').next()) {
        assert!(document["components"]["schemas"][name].is_object(), "{name}");
    }
}

#[tokio::test]
async fn every_answer_carries_the_id_of_its_request() {
    let bench = Bench::new();
    let own = bench.call("GET", "/v1/jobs").header("x-request-id", "my-id.1").send().await;
    assert_eq!(own.header("x-request-id"), "my-id.1");
    for foreign in ["with space", &"x".repeat(65)] {
        let made = bench.call("GET", "/nowhere").header("x-request-id", foreign).send().await;
        assert_eq!(made.header("x-request-id").len(), 32);
    }
}

#[tokio::test]
async fn methods_that_strangers_make_up_are_counted_as_one() {
    let counts = PrometheusBuilder::new().build_recorder();
    let counting = metrics::set_default_local_recorder(&counts);
    let bench = Bench::new();
    for (method, path) in [("GET", "/livez"), ("BREW", "/v1/jobs"), ("WHEN", "/nowhere")] {
        bench.call(method, path).without("authorization").send().await;
    }
    drop(counting);
    let told = counts.handle().render();
    let counted = |method: &str| told.contains(&format!("method=\"{method}\""));
    assert_eq!(["GET", "other", "BREW", "WHEN"].map(counted), [true, true, false, false], "{told}");
}
