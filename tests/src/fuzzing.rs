//! What must hold of whatever the API is sent: one function for each kind of input, called by property tests and by the
//! targets in `tests/fuzz` alike. The API runs in this process, over the reference store; no socket, no disk, no clock of
//! others stands between an input and what it does.

use axum::{
    Router,
    body::{Body, Bytes},
    http::{HeaderMap, Request, Uri},
};
use chrono::{DateTime, Utc};
use http_body_util::BodyExt as _;
use jobgate_api::{
    accept::AcceptSettings,
    clusters::{
        Capabilities, ClusterInfo, ExitCodes, MemoryLimits, ReachKind, ServedBy, SpecValidator, SubmitMode,
        Takes, TimeLimits,
    },
    dispatcher::HintBudget,
    http::{Api, ApiParts, Hosts, HttpConfig, router},
};
use jobgate_shared::{
    broker, clock,
    domain::{ClusterName, JobSpec, SpecError},
    logs::LogStore,
    store::memory::MemoryStore,
    supervise::Tasks,
};
use serde_json::{Value, json};
use std::{
    cell::Cell,
    collections::BTreeMap,
    fmt::{self, Write as _},
    sync::Arc,
};
use tokio::runtime::Runtime;
use tower::ServiceExt as _;

/// Admits an administrator of every project.
const TOKEN: &str = "a-token-that-only-this-process-knows-0123456789";
const JSON: (&str, &str) = ("content-type", "application/json");
const LINES: (&str, &str) = ("content-type", "application/x-ndjson");
/// Inputs of more bytes than this meet other limits than those looked at here.
const MAX_INPUT: usize = 512 * 1024;

/// The API, and whoever calls it.
pub struct Gateway {
    runtime: Runtime,
    router: Router,
    keys: Cell<u64>,
}

impl fmt::Debug for Gateway {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Gateway").field("keys", &self.keys).finish_non_exhaustive()
    }
}

/// An answer, read.
#[derive(Debug)]
pub struct Answer {
    /// Its status.
    pub status: u16,
    /// Its headers.
    pub headers: HeaderMap,
    /// What it says.
    pub body: Bytes,
}

impl Answer {
    /// What it says, as JSON.
    pub fn json(&self) -> Value {
        serde_json::from_slice(&self.body).unwrap_or_else(|error| panic!("{error}: {self:?}"))
    }

    /// The field a problem is about.
    pub fn field(&self) -> Option<String> {
        self.json()["field"].as_str().map(str::to_owned)
    }
}

/// One cluster that takes every spec.
#[derive(Debug)]
struct AnySpec([ClusterInfo; 1]);

impl SpecValidator for AnySpec {
    fn clusters(&self) -> &[ClusterInfo] {
        &self.0
    }

    fn default_cluster(&self) -> Option<&ClusterName> {
        Some(&self.0[0].name)
    }

    fn validate(&self, _: &ClusterName, _: &JobSpec) -> Result<(), SpecError> {
        Ok(())
    }
}

impl Default for Gateway {
    fn default() -> Self {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
        let router =
            runtime.block_on(async { router(api(), Hosts::new(([127, 0, 0, 1], 7070).into(), &[])) });
        Self { runtime, router, keys: Cell::new(0) }
    }
}

fn api() -> Arc<Api> {
    let local = ClusterInfo {
        name: "local".parse().expect("a name"),
        engine: "none".to_owned(),
        served_by: ServedBy::Workers,
        mode: SubmitMode::TwoPhase,
        capabilities: Capabilities {
            reach: ReachKind::Everywhere,
            commands: false,
            exit_codes: ExitCodes::None,
            memory_limits: MemoryLimits::None,
            time_limits: TimeLimits::ByEngine,
            warns_on_cancel: false,
            logs: true,
            poll_interval_seconds: 1.0,
        },
        takes: Takes { fields: Vec::new(), options: None },
    };
    let budget = Arc::new(HintBudget::new());
    // Nobody takes a hint here.
    budget.set(BTreeMap::new(), 0);
    let store = Arc::new(MemoryStore::new(clock::system()));
    let parts = ApiParts {
        leases: store.clone(),
        store,
        broker: Arc::new(broker::memory::Memory::new()),
        logs: LogStore::in_memory(),
        clock: clock::system(),
        clusters: Arc::new(AnySpec([local])),
        budget,
        metrics: Arc::new(String::new),
        admin_token: Some(TOKEN.to_owned()),
        report_key: None,
        report_url: None,
        accept: AcceptSettings::default(),
        config: HttpConfig::default(),
        tasks: Tasks::default(),
    };
    Api::start(parts).expect("the token is long enough")
}

impl Gateway {
    /// Sends a request and reads its answer, which is never a failure of the server, and a problem document where it is one
    /// of the client.
    pub fn send(&self, method: &str, path: &str, headers: &[(&str, &str)], body: impl Into<Body>) -> Answer {
        let uri: Uri = path.parse().unwrap_or_else(|error| panic!("{path:?}: {error}"));
        let mut request = Request::builder().method(method).uri(uri).header("host", "127.0.0.1:7070");
        request = request.header("authorization", format!("Bearer {TOKEN}"));
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        let request = request.body(body.into()).expect("a request");
        let answer = self.runtime.block_on(async {
            let (parts, body) = self.router.clone().oneshot(request).await.expect("never fails").into_parts();
            let body = body.collect().await.expect("a whole body").to_bytes();
            Answer { status: parts.status.as_u16(), headers: parts.headers, body }
        });
        let shown = || format!("{method} {path}: {answer:?}");
        assert!(answer.status < 500, "{}", shown());
        if answer.status >= 400 {
            assert_eq!(answer.headers["content-type"], "application/problem+json", "{}", shown());
            is_problem(&answer.json(), answer.status);
        }
        answer
    }

    /// A key nobody has used.
    fn fresh_key(&self) -> String {
        self.keys.set(self.keys.get() + 1);
        format!("key-{}", self.keys.get())
    }

    /// Posts `body` as a job. What is accepted is read back as it was posted, under its key it is the same job again
    /// whatever white space stands around it, and for another body the key is refused.
    pub fn post(&self, body: &[u8]) -> Option<Value> {
        let key = self.fresh_key();
        let headers = [JSON, ("idempotency-key", key.as_str())];
        let posted = self.send("POST", "/v1/jobs", &headers, body.to_vec());
        if posted.status != 201 {
            assert!(matches!(posted.status, 400 | 413), "{posted:?}");
            return None;
        }
        let job = posted.json();
        let document: Value = serde_json::from_slice(body).expect("what was accepted is JSON");
        is_as_posted(&job, &document);
        let path = posted.headers["location"].to_str().expect("a path").to_owned();
        assert_eq!(self.read(&path), job);
        let padded = [b" \n", body, b"\t"].concat();
        let again = self.send("POST", "/v1/jobs", &headers, padded);
        assert_eq!((again.status, again.json()), (200, job.clone()));
        let other = json!({"name": key.clone(), "labels": [key], "spec": {"command": ["other"]}}).to_string();
        let other = self.send("POST", "/v1/jobs", &headers, other);
        assert_eq!((other.status, other.field().as_deref()), (422, Some("Idempotency-Key")));
        Some(job)
    }

    /// A job as it is stored: why it waits is found out when it is read.
    pub fn read(&self, path: &str) -> Value {
        let mut job = self.send("GET", path, &[], Body::empty()).json();
        job["reason"] = Value::Null;
        job
    }

    /// Posts two bodies under one key: the same, but for white space around them, are one job, and others are refused.
    pub fn twice(&self, first: &[u8], second: &[u8]) {
        let key = self.fresh_key();
        let headers = [JSON, ("idempotency-key", key.as_str())];
        let one = self.send("POST", "/v1/jobs", &headers, first.to_vec());
        let two = self.send("POST", "/v1/jobs", &headers, second.to_vec());
        if one.status == 201 && two.status != 400 && two.status != 413 {
            let same = first.trim_ascii() == second.trim_ascii();
            assert_eq!(two.status, if same { 200 } else { 422 });
            assert!(!same || one.json()["id"] == two.json()["id"]);
        }
    }

    /// Posts `body` as lines: each that is not blank is answered, in its place, with a job or with what is wrong; sent again
    /// under the same key, with the same.
    pub fn batch(&self, body: &[u8]) -> Vec<Value> {
        if body.len() > MAX_INPUT {
            return Vec::new();
        }
        let key = self.fresh_key();
        let headers = [LINES, ("idempotency-key", key.as_str())];
        let post = || {
            let answer = self.send("POST", "/v1/jobs/batch", &headers, body.to_vec());
            assert_eq!(answer.status, 200);
            answer.json()["items"].as_array().expect("items").clone()
        };
        let items = post();
        let lines = body.split(|byte| *byte == b'\n').filter(|line| !line.trim_ascii().is_empty());
        // One more than there may be is answered once, for all the rest.
        assert_eq!(items.len(), lines.count().min(10_001));
        for (item, again) in items.iter().zip(post()) {
            let fields: Vec<&str> = item.as_object().expect("an item").keys().map(String::as_str).collect();
            match item.get("error") {
                None => assert_eq!((fields, &item["job"]["id"]), (vec!["job"], &again["job"]["id"])),
                Some(problem) => {
                    assert_eq!((fields, item), (vec!["error"], &again));
                    is_problem(problem, u16::try_from(problem["status"].as_u64().unwrap_or(0)).unwrap_or(0));
                }
            }
        }
        items
    }

    /// Asks for the page behind a cursor nobody was given.
    pub fn cursor(&self, text: &str) {
        let refused = self.send("GET", &path("/v1/jobs", &[("cursor", text)]), &[], Body::empty());
        assert_eq!((refused.status, refused.field().as_deref()), (400, Some("cursor")), "{text:?}");
        let kind = refused.json()["type"].clone();
        assert_eq!(kind, "urn:jobgate:problem:invalid-cursor");
    }
}

/// `base` with these parameters.
pub fn path(base: &str, parameters: &[(&str, &str)]) -> String {
    let mut path = base.to_owned();
    for (place, (name, value)) in parameters.iter().enumerate() {
        path.push(if place == 0 { '?' } else { '&' });
        for (text, end) in [(name, "="), (value, "")] {
            for byte in text.bytes() {
                if byte.is_ascii_alphanumeric() || byte == b'_' {
                    path.push(char::from(byte));
                } else {
                    // Writing to a text never fails.
                    write!(path, "%{byte:02X}").unwrap_or_default();
                }
            }
            path.push_str(end);
        }
    }
    path
}

/// A problem document of this status, which names the field where a value is wrong.
fn is_problem(problem: &Value, status: u16) {
    assert!((400..500).contains(&status) && problem["status"] == status, "{status}: {problem}");
    for word in ["type", "title", "detail"] {
        assert!(problem[word].as_str().is_some_and(|text| !text.is_empty()), "{problem}");
    }
    if problem["type"] == "urn:jobgate:problem:invalid-field" {
        assert!(problem["field"].as_str().is_some_and(|field| !field.is_empty()), "{problem}");
    }
}

/// Whatever was posted stands in the job: nothing is lost, rounded or made into something else.
fn is_as_posted(job: &Value, posted: &Value) {
    for (field, value) in posted.as_object().expect("a job is an object") {
        match field.as_str() {
            "hold" => assert_eq!(job["state"], if *value == true { "HELD" } else { "INITIALIZED" }),
            "run_at" => assert_eq!(micros(&job["run_at"]), micros(value)),
            "spec" | "retry" => {
                for (inner, value) in value.as_object().expect("an object") {
                    is_same(&job[field][inner], value, inner);
                }
            }
            _ if value.is_null() => {}
            _ => assert_eq!(&job[field], value, "{field}"),
        }
    }
}

/// A part of a spec; what was posted empty need not be told.
fn is_same(told: &Value, posted: &Value, field: &str) {
    let parts = posted.as_object();
    if posted.is_null() || parts.is_some_and(serde_json::Map::is_empty) {
        assert!(told.is_null() || told == posted, "{field}: {told}");
    } else if let (Some(parts), "resources") = (parts, field) {
        parts.iter().for_each(|(name, value)| is_same(&told[name], value, name));
    } else {
        assert_eq!(told, posted, "{field}");
    }
}

fn micros(time: &Value) -> Option<i64> {
    let time: Option<DateTime<Utc>> = time.as_str().map(|text| text.parse().expect("a time"));
    time.map(|time| time.timestamp_micros())
}
