//! What slurmrestd may say that a real one cannot be brought to say at will: a server of a test's own, and what the engine
//! makes of its answers.

use super::{
    SlurmEngine,
    config::{SlurmConfig, SlurmUser},
    id::{self, Identity, Mark, Nonce},
};
use crate::{
    engine::{Engine as _, EngineError, Sighting, ToCreate},
    engines::conformance,
    pace,
};
use jobgate_shared::{
    domain::{JobId, JobSpec, Observation, Project, Submission, SubmissionTag},
    supervise::Tasks,
};
use serde_json::{Value, json};
use std::{
    path::Path,
    sync::{Arc, Mutex},
    time::Duration,
};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::{TcpListener, TcpStream},
};

/// What was asked, and by whom.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Asked {
    user: String,
    /// Method and path.
    what: String,
}

/// A status and a document; without one, the question is never answered.
type Answer = Option<(u16, Value)>;

struct Slurmrestd {
    url: String,
    asked: Arc<Mutex<Vec<Asked>>>,
    _tasks: Tasks,
}

impl Slurmrestd {
    async fn start(answer: impl Fn(&Asked) -> Answer + Send + Sync + 'static) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        let (asked, answer) = (Arc::new(Mutex::new(Vec::new())), Arc::new(answer));
        let (tasks, seen) = (Tasks::default(), asked.clone());
        let within = tasks.clone();
        tasks.spawn("slurmrestd", async move {
            while let Ok((stream, _)) = listener.accept().await {
                let (answer, seen) = (answer.clone(), seen.clone());
                within.spawn("connection", async move { serve(stream, &*answer, &seen).await });
            }
        });
        Self { url, asked, _tasks: tasks }
    }

    /// How often something was asked for since this was asked last.
    fn took(&self, what: &str) -> usize {
        let mut asked = self.asked.lock().unwrap();
        let before = asked.len();
        asked.retain(|asked| !asked.what.contains(what));
        before - asked.len()
    }
}

async fn serve(mut stream: TcpStream, answer: &(dyn Fn(&Asked) -> Answer + Sync), seen: &Mutex<Vec<Asked>>) {
    let mut text = Vec::new();
    let head = loop {
        if stream.read_buf(&mut text).await.unwrap_or(0) == 0 {
            return;
        }
        if let Some(end) = text.windows(4).position(|four| four == b"\r\n\r\n") {
            break String::from_utf8_lossy(&text[..end]).into_owned();
        }
    };
    let header = |name: &str| {
        let lines = head.lines().filter_map(|line| line.split_once(": "));
        lines.into_iter().find(|(key, _)| key.eq_ignore_ascii_case(name)).map(|(_, value)| value.to_owned())
    };
    let length = header("content-length").map_or(0, |length| length.parse::<usize>().unwrap());
    while text.len() < head.len() + 4 + length {
        if stream.read_buf(&mut text).await.unwrap_or(0) == 0 {
            return;
        }
    }
    let what = head.lines().next().unwrap_or_default().trim_end_matches(" HTTP/1.1").to_owned();
    let asked = Asked { user: header("x-slurm-user-name").unwrap_or_default(), what };
    seen.lock().unwrap().push(asked.clone());
    let Some((status, document)) = answer(&asked) else {
        std::future::pending::<()>().await;
        return;
    };
    let body = if document.is_null() { String::new() } else { document.to_string() };
    let length = body.len();
    let answer =
        format!("HTTP/1.1 {status} SAID\r\nContent-Length: {length}\r\nConnection: close\r\n\r\n{body}");
    stream.write_all(answer.as_bytes()).await.ok();
}

fn user(name: &str) -> SlurmUser {
    let token_command = Some(["/bin/echo", "token-of-{user}"].map(str::to_owned).to_vec());
    SlurmUser { user: name.into(), token_file: None, token_command }
}

/// An account for each of two projects.
fn config(slurmrestd: &Slurmrestd) -> SlurmConfig {
    let users = [("physics", "jane"), ("biology", "joe")];
    let users = users.map(|(project, name)| (project.parse().unwrap(), user(name)));
    let api_versions = vec!["v0.0.38".to_owned()];
    SlurmConfig { url: slurmrestd.url.clone(), api_versions, users: users.into(), ..SlurmConfig::default() }
}

fn engine(config: SlurmConfig, patience: Duration) -> SlurmEngine {
    // An error says that there is one already.
    rustls::crypto::ring::default_provider().install_default().ok();
    SlurmEngine::new(config, &conformance::context("slurm", Path::new("/nonexistent"), patience)).unwrap()
}

const LONG: Duration = Duration::from_secs(30);

/// A job of an account, with this number, as recorded and as Slurm shows it.
fn job(account: &str, number: u32, state: &str) -> (SubmissionTag, Submission, Value) {
    let tag = SubmissionTag { job: JobId::generate(), attempt: 1 };
    let nonce = Nonce::draw();
    let mark = if state == "PENDING" { Mark::Created } else { Mark::Started };
    let shown = json!({"job_id": number, "name": id::name(tag, nonce), "comment": id::comment(tag, "slurm", mark),
        "user_name": account, "job_state": state, "state_reason": "JobHeldUser", "priority": 0, "exit_code": 0});
    (tag, Identity { tag, nonce, job: number }.submission(account), shown)
}

#[expect(clippy::unnecessary_wraps, reason = "one answer of many")]
fn listing(jobs: &[Value]) -> Answer {
    Some((200, json!({"errors": [], "jobs": jobs})))
}

fn is_running(sighting: &Sighting) -> bool {
    matches!(sighting, Sighting::Seen(Observation::Running { .. }))
}

#[tokio::test]
async fn the_fault_of_one_account_hides_no_job_of_another() {
    let (janes, joes) = (job("jane", 1, "RUNNING"), job("joe", 2, "RUNNING"));
    let (held, of_joe) = (job("joe", 3, "PENDING"), [joes.2.clone()]);
    let of_joe = [of_joe[0].clone(), held.2.clone()];
    let fault = Arc::new(Mutex::new("hangs"));
    let now = fault.clone();
    let slurmrestd = Slurmrestd::start(move |asked| {
        let fault = *now.lock().unwrap();
        match (asked.what.as_str(), asked.user.as_str()) {
            ("GET /slurm/v0.0.38/ping", _) => listing(&[]),
            ("GET /slurm/v0.0.38/jobs", "joe") if fault != "all" => listing(&of_joe),
            ("GET /slurm/v0.0.38/jobs", _) => match fault {
                "hangs" => None,
                "401" | "all" => Some((401, json!("Authentication failure"))),
                _ => Some((500, json!({"errors": [{"error_number": -1, "error": "Unspecified error"}]}))),
            },
            _ => Some((404, Value::Null)),
        }
    })
    .await;
    let asked = [(janes.0, janes.1.clone()), (joes.0, joes.1.clone())];
    let within = engine(config(&slurmrestd), Duration::from_millis(500));
    let dirs = tempfile::tempdir().unwrap();
    std::fs::create_dir(dirs.path().join("joe")).unwrap();
    let no_tokens = |mut config: SlurmConfig| {
        let jane = config.users.get_mut(&"physics".parse::<Project>().unwrap()).unwrap();
        jane.token_command = Some(["/bin/false".to_owned()].to_vec());
        config
    };
    for (name, engine) in [
        ("hangs", within),
        ("401", engine(config(&slurmrestd), LONG)),
        ("500", engine(config(&slurmrestd), LONG)),
        ("no token", engine(no_tokens(config(&slurmrestd)), LONG)),
    ] {
        *fault.lock().unwrap() = name;
        for _ in 0..2 {
            let seen = engine.poll(&asked).await.unwrap();
            assert!(seen[0] == Sighting::Unseen && is_running(&seen[1]), "{name}: {seen:?}");
        }
        let inert = engine.inert(Duration::ZERO).await.unwrap();
        assert_eq!(inert, [(held.0, held.1.clone())], "{name}");
        engine.discard(janes.0, None).await.unwrap();
    }
    *fault.lock().unwrap() = "all";
    let engine = engine(config(&slurmrestd), LONG);
    let alone = engine.poll(&asked[..1]).await;
    assert!(matches!(alone, Err(EngineError::Away(_))), "nobody was seen: {alone:?}");
    assert!(matches!(engine.poll(&asked).await, Err(EngineError::Away(_))));
    assert!(matches!(engine.inert(Duration::ZERO).await, Err(EngineError::Away(_))));
    assert!(matches!(engine.discard(janes.0, None).await, Err(EngineError::Away(_))));
}

#[tokio::test]
async fn however_many_accounts_hang_the_others_have_their_turn() {
    let shown = job("z", 1, "RUNNING");
    let of_z = [shown.2.clone()];
    // In the order of their names, and more of them than are looked at side by side, twice.
    let hanging: Vec<String> = ('a'..='p').map(String::from).collect();
    let slurmrestd = Slurmrestd::start(move |asked| match (asked.what.as_str(), asked.user.as_str()) {
        ("GET /slurm/v0.0.38/ping", _) => listing(&[]),
        (_, "z") => listing(&of_z),
        _ => None,
    })
    .await;
    let accounts = hanging.iter().map(String::as_str).chain(["z"]);
    let users = accounts.map(|name| (format!("of-{name}").parse().unwrap(), user(name))).collect();
    let mut asked: Vec<_> =
        hanging.iter().map(|name| job(name, 2, "RUNNING")).map(|(tag, of, _)| (tag, of)).collect();
    asked.push((shown.0, shown.1));
    let engine = engine(SlurmConfig { users, ..config(&slurmrestd) }, Duration::from_secs(3));
    let seen = engine.poll(&asked).await.unwrap();
    let (hung, shown) = seen.split_at(hanging.len());
    assert!(hung.iter().all(|seen| *seen == Sighting::Unseen), "{hung:?}");
    assert!(is_running(&shown[0]), "{shown:?}");
}

#[tokio::test]
async fn a_missing_directory_of_one_account_hides_no_job_of_another() {
    let (janes, joes) = (job("jane", 1, "COMPLETED"), job("joe", 2, "COMPLETED"));
    // slurmctld forgot both; what they left would decide.
    let slurmrestd = Slurmrestd::start(|_| listing(&[])).await;
    let dirs = tempfile::tempdir().unwrap();
    let joes_dir = dirs.path().join("joe");
    std::fs::create_dir(&joes_dir).unwrap();
    let (of, _) = Identity::of(joes.0, &joes.1).unwrap();
    std::fs::write(joes_dir.join(of.exit_file()), "0\n").unwrap();
    let log_dir = Some(dirs.path().join("{user}"));
    let engine = engine(SlurmConfig { log_dir, ..config(&slurmrestd) }, LONG);
    let asked = [(janes.0, janes.1), (joes.0, joes.1)];
    let seen = engine.poll(&asked).await.unwrap();
    assert_eq!(seen[0], Sighting::Unseen, "not absent: nobody looked");
    assert!(matches!(seen[1], Sighting::Seen(Observation::Ended { .. })), "{seen:?}");
    assert!(matches!(engine.poll(&asked[..1]).await, Err(EngineError::Away(_))));
    assert!(engine.ended(Duration::ZERO).await.is_ok());
}

#[tokio::test]
async fn an_odd_record_of_a_strangers_voids_no_listing() {
    let ours = job("joe", 7, "RUNNING");
    let mut odd_one = ours.2.clone();
    // What stands for "no value" in fields nobody expects it in.
    odd_one["exit_code"] = json!(u64::MAX - 1);
    odd_one["restart_cnt"] = json!(u32::MAX - 1);
    odd_one["end_time"] = json!({"set": true, "infinite": false, "number": u64::MAX - 1});
    odd_one["state_reason"] = json!(17);
    let strangers =
        [json!(null), json!("x"), json!({"job_id": {}, "name": 7, "job_state": {"a": 1}, "exit_code": "x"})];
    let jobs: Vec<Value> = strangers.into_iter().chain([odd_one]).collect();
    let slurmrestd = Slurmrestd::start(move |_| listing(&jobs)).await;
    let seen = engine(config(&slurmrestd), LONG).poll(&[(ours.0, ours.1)]).await.unwrap();
    assert!(is_running(&seen[0]), "{seen:?}");
}

#[tokio::test]
async fn slurmdbd_is_asked_about_few_jobs_at_a_time_and_not_again_at_once() {
    let slurmrestd = Slurmrestd::start(|asked| match asked.what.as_str() {
        "GET /slurm/v0.0.38/ping" | "GET /slurm/v0.0.38/jobs" => listing(&[]),
        _ => Some((200, json!({"errors": [{"error_number": 9003, "error": "Nothing found"}], "jobs": []}))),
    })
    .await;
    let config = SlurmConfig { slurmdb: true, ..config(&slurmrestd) };
    let engine = engine(config, LONG);
    let asked: Vec<(SubmissionTag, Submission)> =
        (1..=50).map(|number| job("joe", number, "RUNNING")).map(|(tag, of, _)| (tag, of)).collect();
    let mut polls = Vec::new();
    for _ in 0..5 {
        let seen = engine.poll(&asked).await.unwrap();
        let absent = seen.iter().filter(|seen| **seen == Sighting::Absent).count();
        let unseen = seen.iter().filter(|seen| **seen == Sighting::Unseen).count();
        polls.push((slurmrestd.took("/slurmdb/"), absent, unseen));
    }
    assert_eq!(polls, [(20, 20, 30), (20, 40, 10), (10, 50, 0), (0, 50, 0), (0, 50, 0)]);
}

#[tokio::test]
async fn a_limit_of_slurms_is_not_now_and_so_is_one_of_many_accounts_that_is_not_believed() {
    let slurmrestd = Slurmrestd::start(|asked| match (asked.what.as_str(), asked.user.as_str()) {
        ("GET /slurm/v0.0.38/ping", _) => listing(&[]),
        (_, "joe") => Some((
            500,
            json!({"errors": [{"error_code": 2050, "error": "Job violates accounting/QOS policy"}]}),
        )),
        _ => Some((401, json!("Authentication failure"))),
    })
    .await;
    let engine = engine(config(&slurmrestd), LONG);
    let of = |project: &str| {
        let spec = JobSpec { command: vec!["true".into()], ..JobSpec::default() };
        let tag = SubmissionTag { job: JobId::generate(), attempt: 1 };
        ToCreate { tag, project: project.parse().unwrap(), name: "test".into(), spec }
    };
    for (project, words) in [("biology", "violates accounting"), ("physics", "does not believe")] {
        match engine.create(&of(project)).await {
            Err(EngineError::NotNow(why)) => assert!(why.contains(words), "{why}"),
            other => panic!("{project}: {other:?}"),
        }
    }
    let alone =
        SlurmConfig { users: [("physics".parse().unwrap(), user("jane"))].into(), ..config(&slurmrestd) };
    let alone = super::scripted::engine(alone, LONG).create(&of("physics")).await;
    assert!(matches!(alone, Err(EngineError::Away(_))), "who is all there is parks the cluster: {alone:?}");
}

#[tokio::test]
async fn whatever_a_poll_asks_is_counted() {
    let (janes, joes) = (job("jane", 1, "RUNNING"), job("joe", 2, "RUNNING"));
    let shown = [janes.2.clone(), joes.2.clone()];
    let slurmrestd = Slurmrestd::start(move |_| listing(&shown)).await;
    let engine = engine(config(&slurmrestd), LONG);
    let asked = [(janes.0, janes.1), (joes.0, joes.1)];
    engine.poll(&asked).await.unwrap();
    let (seen, requests) = pace::counted(engine.poll(&asked)).await;
    assert!(seen.unwrap().iter().all(is_running));
    assert_eq!(requests, 2, "a listing of each account");
}

#[tokio::test]
async fn a_slurmrestd_that_does_not_know_its_version_any_more_is_asked_which_it_speaks() {
    let shown = job("joe", 1, "RUNNING");
    let (spoken, jobs) = (Arc::new(Mutex::new("v0.0.38")), vec![shown.2.clone()]);
    let now = spoken.clone();
    let slurmrestd = Slurmrestd::start(move |asked| {
        let known = asked.what.contains(*now.lock().unwrap());
        if known { listing(&jobs) } else { Some((404, json!({"errors": []}))) }
    })
    .await;
    let api_versions = ["v0.0.41", "v0.0.38"].map(str::to_owned).to_vec();
    let engine = engine(SlurmConfig { api_versions, ..config(&slurmrestd) }, LONG);
    let asked = [(shown.0, shown.1)];
    assert!(is_running(&engine.poll(&asked).await.unwrap()[0]));
    *spoken.lock().unwrap() = "v0.0.41";
    assert!(matches!(engine.poll(&asked).await, Err(EngineError::Away(_))), "no absence of the job");
    assert!(is_running(&engine.poll(&asked).await.unwrap()[0]));
}
