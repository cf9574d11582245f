//! Random requests, good ones and bad ones, to an API over the reference store: no answer is a failure of the server, every
//! refusal says what is wrong, and what is accepted can be read back as it was sent.

use axum::body::Body;
use jobgate_tests::fuzzing::{Gateway, path};
use proptest::{
    collection::{btree_map, vec},
    option::of,
    prelude::*,
    sample::{Index, select},
};
use serde_json::{Map, Value, json};
use uuid::Uuid;

fn number() -> impl Strategy<Value = Value> {
    let whole = prop_oneof![any::<i64>().prop_map(Value::from), any::<u64>().prop_map(Value::from)];
    let floats = prop_oneof![any::<f64>(), -1e3..1e3_f64, 0.0..1.0_f64];
    // JSON has no word for what is no number.
    let floats = floats.prop_filter_map("a number", serde_json::Number::from_f64);
    prop_oneof![whole, floats.prop_map(Value::Number)]
}

fn anything() -> BoxedStrategy<Value> {
    let leaf = prop_oneof![
        Just(Value::Null),
        any::<bool>().prop_map(Value::from),
        number(),
        any::<String>().prop_map(Value::from),
    ];
    leaf.prop_recursive(4, 24, 4, |inner| {
        prop_oneof![
            vec(inner.clone(), 0..4).prop_map(Value::from),
            btree_map(any::<String>(), inner, 0..4)
                .prop_map(|fields| Value::Object(fields.into_iter().collect())),
        ]
    })
    .boxed()
}

fn document() -> BoxedStrategy<Value> {
    btree_map("[a-z]{1,6}|.{0,3}", anything(), 0..3)
        .prop_map(|fields| Value::Object(fields.into_iter().collect()))
        .boxed()
}

/// One line for people.
fn line() -> impl Strategy<Value = String> {
    ".{0,10}".prop_map(|text| text.chars().filter(|c| !c.is_control()).collect())
}

fn spec() -> BoxedStrategy<Value> {
    let word = || any::<String>().prop_map(|text| text.replace('\0', ""));
    let command = (word(), vec(word(), 0..3)).prop_map(|(program, mut rest)| {
        rest.insert(0, format!("p{program}"));
        rest
    });
    let texts = (of("/[a-z. -]{0,8}"), of(any::<String>()), of(word()), of("[a-z:/.]{1,9}"));
    let resources = of((of(1..1_000_u32), of(1..1_000_000_u64), of(1..9_u32)).prop_map(
        |(cpus, memory_mib, nodes)| json!({"cpus": cpus, "memory_mib": memory_mib, "nodes": nodes}),
    ));
    let env = btree_map("[A-Za-z_][A-Za-z0-9_]{0,5}", word(), 0..3);
    (command, env, texts, resources, of(1..31_536_000_u64), of(document()))
        .prop_map(|(command, env, (working_dir, stdin, script, image), resources, limit, engine)| {
            let mut spec = json!({"command": command, "env": env});
            let rest = [
                ("working_dir", json!(working_dir)),
                ("stdin", json!(stdin)),
                ("script", json!(script)),
                ("image", json!(image)),
                ("resources", json!(resources)),
                ("time_limit_seconds", json!(limit)),
                ("engine", json!(engine)),
            ];
            let told = rest.into_iter().filter(|(_, value)| !value.is_null());
            spec.as_object_mut()
                .expect("an object")
                .extend(told.map(|(name, value)| (name.to_owned(), value)));
            spec
        })
        .boxed()
}

/// A job that must be taken.
fn job() -> BoxedStrategy<Value> {
    let label = line().prop_map(|line| format!("l{line}"));
    let retry =
        select(vec![json!({}), json!({"retry_on": ["LOST"]}), json!({"backoff_seconds": 1, "retry_on": []})]);
    let plain = (of(line()), of(vec(label, 0..4)), of(-100..=100_i64), of(1..=100_i64), of(any::<bool>()));
    // Up to 2029, in every digit a clock may have.
    let run_at = of((0..1_861_920_000_i64, 0..1_000_000_000_u32));
    (spec(), plain, of(document()), of(retry), run_at)
        .prop_map(|(spec, (name, labels, priority, max_attempts, hold), inputs, retry, run_at)| {
            let run_at = run_at.and_then(|(s, n)| chrono::DateTime::from_timestamp(s, n));
            let fields = [
                ("name", json!(name)),
                ("labels", json!(labels)),
                ("priority", json!(priority)),
                ("max_attempts", json!(max_attempts)),
                ("hold", json!(hold)),
                ("inputs", json!(inputs)),
                ("retry", json!(retry)),
                ("run_at", json!(run_at)),
            ];
            let mut job = Map::from_iter([("spec".to_owned(), spec)]);
            let told = fields.into_iter().filter(|(_, value)| !value.is_null());
            job.extend(told.map(|(name, value)| (name.to_owned(), value)));
            Value::Object(job)
        })
        .boxed()
}

/// `value` with the part that `place` falls on made into `other`, taken away or given another name.
fn changed(value: &mut Value, place: Index, other: Value, how: u8) {
    let mut pointers = vec![String::new()];
    let mut next = 0;
    while next < pointers.len() {
        let here = pointers[next].clone();
        let keys: Vec<String> = match value.pointer(&here) {
            Some(Value::Object(fields)) => {
                fields.keys().map(|k| k.replace('~', "~0").replace('/', "~1")).collect()
            }
            Some(Value::Array(items)) => (0..items.len()).map(|i| i.to_string()).collect(),
            _ => Vec::new(),
        };
        pointers.extend(keys.into_iter().map(|key| format!("{here}/{key}")));
        next += 1;
    }
    let pointer = place.get(&pointers).clone();
    let parent = pointer.rsplit_once('/').map_or("", |(parent, _)| parent);
    match (how, value.pointer_mut(parent)) {
        (0, Some(Value::Object(fields))) if !pointer.is_empty() => {
            let key = pointer.rsplit('/').next().unwrap_or_default().replace("~1", "/").replace("~0", "~");
            let taken = fields.remove(&key).unwrap_or_default();
            fields.insert(format!("{key}x"), taken);
        }
        _ => *value.pointer_mut(&pointer).expect("it was found there") = other,
    }
}

/// A job that may be taken or not.
fn any_job() -> BoxedStrategy<Value> {
    let hurt = (job(), any::<Index>(), anything(), 0..3_u8);
    let hurt = hurt.prop_map(|(mut job, place, other, how)| {
        changed(&mut job, place, other, how);
        job
    });
    prop_oneof![3 => job(), 6 => hurt, 1 => anything()].boxed()
}

fn parameters() -> impl Strategy<Value = Vec<(String, String)>> {
    let names = [
        "state",
        "label",
        "cluster",
        "name",
        "created_after",
        "created_before",
        "limit",
        "all",
        "project",
        "wait",
        "offset",
        "attempt",
        "cursor",
        "color",
    ];
    let values = [
        "INITIALIZED,HELD",
        "FAILED",
        "a",
        "local",
        "2026-01-01T00:00:00Z",
        "true",
        "10",
        "0",
        "-1",
        "default",
        "2ms",
    ];
    let values = prop_oneof![3 => select(values.to_vec()).prop_map(str::to_owned), 1 => any::<String>()];
    vec((select(names.to_vec()).prop_map(str::to_owned), values), 0..4)
}

/// A job from before, by its place, or one nobody posted.
type Target = Option<Index>;

#[derive(Debug, Clone)]
enum Request {
    Post(Value),
    Batch(Vec<Value>),
    List(Vec<(String, String)>),
    Read(&'static str, Target, Vec<(String, String)>),
    Command(&'static str, Target),
    Bulk(&'static str, Vec<(String, String)>),
    Patch(Target, Value),
    Report(Target, Value),
    Delete(Target),
}

fn request() -> BoxedStrategy<Request> {
    let command = || select(vec!["cancel", "hold", "release", "retry"]);
    let target = || of(any::<Index>());
    let patch = (of(vec(line(), 0..3)), of(-200..200_i64), of(-10..120_i64), of(document()), of(any_job()));
    let patch = patch.prop_map(|(labels, priority, progress, outputs, other)| {
        other.unwrap_or(
            json!({"labels": labels, "priority": priority, "progress": progress, "outputs": outputs}),
        )
    });
    let words = (of(line()), of(line()), of(vec(line(), 0..3)));
    let report = (of(0..3_u32), of(any::<i64>()), of(-10..120_i64), words, of(document()), of(any_job()));
    let report = report.prop_map(|(attempt, seq, progress, (stage, message, labels), outputs, other)| {
        other.unwrap_or(json!({
            "attempt": attempt, "seq": seq, "progress": progress, "stage": stage, "message": message,
            "labels": labels, "outputs": outputs
        }))
    });
    prop_oneof![
        4 => any_job().prop_map(Request::Post),
        1 => vec(any_job(), 0..5).prop_map(Request::Batch),
        2 => parameters().prop_map(Request::List),
        2 => (select(vec!["", "/history", "/logs/stdout", "/logs/stderr"]), target(), parameters())
            .prop_map(|(part, target, parameters)| Request::Read(part, target, parameters)),
        3 => (command(), target()).prop_map(|(command, target)| Request::Command(command, target)),
        1 => (command(), parameters()).prop_map(|(command, filter)| Request::Bulk(command, filter)),
        2 => (target(), patch).prop_map(|(target, patch)| Request::Patch(target, patch)),
        2 => (target(), report).prop_map(|(target, report)| Request::Report(target, report)),
        1 => target().prop_map(Request::Delete),
    ]
    .boxed()
}

/// One client, and the jobs it knows of.
struct Client<'a> {
    gateway: &'a Gateway,
    jobs: Vec<Value>,
}

impl Client<'_> {
    fn path(&self, target: &Target, below: &str) -> String {
        let known = target
            .as_ref()
            .filter(|_| !self.jobs.is_empty())
            .map(|place| place.get(&self.jobs)["id"].clone());
        let id = known.map_or_else(|| Uuid::nil().to_string(), |id| id.as_str().expect("an id").to_owned());
        format!("/v1/jobs/{id}{below}")
    }

    fn make(&mut self, request: &Request) {
        let json = [("content-type", "application/json")];
        let with = |base: &str, all: &[(String, String)]| {
            let all: Vec<(&str, &str)> =
                all.iter().map(|(name, value)| (name.as_str(), value.as_str())).collect();
            path(base, &all)
        };
        match request {
            Request::Post(document) => self.jobs.extend(self.gateway.post(document.to_string().as_bytes())),
            Request::Batch(documents) => {
                let lines: Vec<String> = documents.iter().map(Value::to_string).collect();
                let items = self.gateway.batch(lines.join("\n").as_bytes());
                self.jobs.extend(items.into_iter().filter_map(|item| item.get("job").cloned()));
            }
            Request::List(parameters) => {
                let listed = self.gateway.send("GET", &with("/v1/jobs", parameters), &[], Body::empty());
                assert!(matches!(listed.status, 200 | 400), "{listed:?}");
            }
            Request::Read(part, target, parameters) => {
                let path = with(&self.path(target, part), parameters);
                let read = self.gateway.send("GET", &path, &[], Body::empty());
                assert!(matches!(read.status, 200 | 400 | 404), "{read:?}");
            }
            Request::Command(command, target) => {
                let path = self.path(target, &format!("/{command}"));
                let told = self.gateway.send("POST", &path, &[], Body::empty());
                assert!(matches!(told.status, 200 | 404 | 409), "{told:?}");
            }
            Request::Bulk(command, filter) => {
                let path = with(&format!("/v1/jobs/{command}"), filter);
                let told = self.gateway.send("POST", &path, &[], Body::empty());
                assert!(matches!(told.status, 200 | 400), "{told:?}");
            }
            Request::Patch(target, change) => {
                let path = self.path(target, "");
                let patched = self.gateway.send("PATCH", &path, &json, change.to_string());
                assert!(matches!(patched.status, 200 | 400 | 404), "{patched:?}");
                if patched.status == 200 {
                    let mut job = patched.json();
                    job["reason"] = Value::Null;
                    for field in ["labels", "priority", "progress"] {
                        assert!(change[field].is_null() || change[field] == job[field], "{change}: {job}");
                    }
                    assert_eq!(self.gateway.read(&path), job);
                }
            }
            Request::Report(target, report) => {
                let path = self.path(target, "/reports");
                let told = self.gateway.send("POST", &path, &json, report.to_string());
                // Nothing runs here.
                assert!(matches!(told.status, 400 | 404 | 409), "{told:?}");
            }
            Request::Delete(target) => {
                let path = self.path(target, "");
                let gone = self.gateway.send("DELETE", &path, &[], Body::empty());
                assert!(matches!(gone.status, 204 | 404 | 409), "{gone:?}");
                if gone.status == 204 {
                    assert_eq!(self.gateway.send("GET", &path, &[], Body::empty()).status, 404);
                }
            }
        }
    }
}

/// Every case uses the API the one before used: it has no state but the store's, and a full one is the harder one.
fn check<S: Strategy>(cases: u32, inputs: &S, test: impl Fn(&Gateway, S::Value)) {
    let gateway = Gateway::default();
    let config = ProptestConfig::default();
    let cases = if std::env::var_os("PROPTEST_CASES").is_some() { config.cases } else { cases };
    let config = ProptestConfig { cases, failure_persistence: None, ..config };
    let mut runner = proptest::test_runner::TestRunner::new(config);
    let outcome = runner.run(inputs, |input| {
        test(&gateway, input);
        Ok(())
    });
    outcome.unwrap_or_else(|failure| panic!("{failure}"));
}

#[test]
fn a_good_job_is_accepted_and_read_back_as_it_was_posted() {
    check(128, &job(), |gateway, job| assert!(gateway.post(job.to_string().as_bytes()).is_some(), "{job}"));
}

#[test]
fn whatever_is_asked_is_answered_or_refused_with_a_reason() {
    check(64, &vec(request(), 1..12), |gateway, requests| {
        let mut client = Client { gateway, jobs: Vec::new() };
        for request in &requests {
            client.make(request);
        }
    });
}

#[test]
fn any_bytes_posted_are_a_job_a_batch_or_a_problem() {
    let lines = vec(
        prop_oneof![any_job().prop_map(|job| job.to_string()), any::<String>(), Just(String::new())],
        0..5,
    );
    let lines =
        (lines, select(vec!["\n", "\r\n", "\n\n"])).prop_map(|(lines, end)| lines.join(end).into_bytes());
    let bytes = prop_oneof![vec(any::<u8>(), 0..60), lines];
    check(96, &bytes, |gateway, bytes| {
        gateway.post(&bytes);
        gateway.batch(&bytes);
    });
}

#[test]
fn one_key_is_one_body() {
    let bodies = (any_job(), any_job(), 0..4_u8).prop_map(|(one, two, how)| match how {
        0 => (one.to_string(), format!("\r\n {one}\t")),
        1 => (one.to_string(), format!("{one:#}")),
        _ => (one.to_string(), two.to_string()),
    });
    check(64, &bodies, |gateway, (one, two)| gateway.twice(one.as_bytes(), two.as_bytes()));
}

#[test]
fn no_text_is_a_cursor_but_one_that_was_given() {
    let texts = prop_oneof![any::<String>(), "[A-Za-z0-9_-]{36,40}"];
    check(128, &texts, |gateway, text| gateway.cursor(&text));
}
