//! Services outside: who may claim, what a claim gives, and what becomes of reports in any order.

use crate::testing::{Answered, Bench, small_job};
use jobgate_shared::store::{Leases as _, Role};
use serde_json::{Value, json};
use std::time::Duration;

const CLAIMS: &str = "/v1/clusters/far/claims";

/// A bench with a token that works for `far`.
struct Outside {
    bench: Bench,
    token: String,
}

impl Outside {
    async fn new() -> Self {
        let bench = Bench::new();
        let token = bench.worker_token("far").await;
        Self { bench, token }
    }

    async fn post(&self, path: &str, body: &Value) -> Answered {
        self.bench.call("POST", &format!("{CLAIMS}{path}")).token(&self.token).json(body).send().await
    }

    /// A job of `far` with these fields more.
    async fn posted(&self, more: Value) -> Value {
        let mut job = small_job();
        job["cluster"] = json!("far");
        job.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        self.bench.posted(job).await
    }

    async fn claim(&self, body: Value) -> Value {
        let answer = self.post("", &body).await;
        assert_eq!(answer.status.as_u16(), 200, "{}", answer.text());
        answer.json()
    }

    /// A claimant that took the only job there is.
    async fn held(&self, more: Value) -> Hand<'_> {
        self.posted(more).await;
        let claimed = self.claim(json!({})).await;
        assert_eq!(claimed["jobs"].as_array().unwrap().len(), 1, "{claimed}");
        self.hand(&claimed)
    }

    /// The first job of a claim.
    fn hand(&self, claimed: &Value) -> Hand<'_> {
        Hand { outside: self, claimant: claimed["claimant"].clone(), job: claimed["jobs"][0].clone() }
    }

    async fn unsettled(&self, query: &str) -> Vec<Value> {
        let page = self.bench.call("GET", &format!("{CLAIMS}{query}")).token(&self.token).send().await;
        assert_eq!(page.status.as_u16(), 200, "{}", page.text());
        page.json()["items"].as_array().unwrap().clone()
    }
}

/// One job in one claimant's hands.
struct Hand<'a> {
    outside: &'a Outside,
    claimant: Value,
    job: Value,
}

impl Hand<'_> {
    fn id(&self) -> &str {
        self.job["id"].as_str().unwrap()
    }

    async fn tell(&self, more: Value) -> Answered {
        let Self { outside, claimant, job } = self;
        let mut report = json!({"claimant": claimant, "attempt": job["attempt"], "epoch": job["epoch"]});
        report.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        let call = outside.bench.call("PATCH", &format!("{CLAIMS}/{}", self.id())).token(&outside.token);
        call.json(&report).send().await
    }

    /// A report that is heard: its outcome, and the state the job then has.
    async fn told(&self, more: Value) -> (String, String) {
        let answer = self.tell(more).await;
        assert_eq!(answer.status.as_u16(), 200, "{}", answer.text());
        let text = |value: &Value| value.as_str().unwrap().to_owned();
        (text(&answer.json()["outcome"]), text(&answer.json()["job"]["state"]))
    }

    async fn submitted(self) -> Self {
        let told = self.told(json!({"state": "PENDING", "submission_id": "s-1"})).await;
        assert_eq!(told, ("advanced".into(), "PENDING".into()));
        self
    }

    async fn now(&self) -> Value {
        self.outside.bench.call("GET", &format!("/v1/jobs/{}", self.id())).send().await.json()
    }

    async fn renew(&self) -> Value {
        let body = json!({"claimant": self.claimant,
            "unsettled": [{"job": self.id(), "attempt": self.job["attempt"], "epoch": self.job["epoch"]}]});
        let answer = self.outside.post("/renew", &body).await;
        assert_eq!(answer.status.as_u16(), 200, "{}", answer.text());
        answer.json()
    }

    /// Its lease ends.
    async fn dies(&self) {
        let id = serde_json::from_value(self.claimant.clone()).unwrap();
        self.outside.bench.store.inner.deregister(id).await.unwrap();
    }
}

fn is(outcome: &str, state: &str) -> (String, String) {
    (outcome.to_owned(), state.to_owned())
}

#[tokio::test]
async fn a_claimed_job_comes_with_what_it_reports_on_itself_with() {
    let outside = Outside::new().await;
    let hand = outside.held(json!({})).await.submitted().await;
    let report = &hand.job["report"];
    assert_eq!(report["url"], "https://jobs.example.org");
    let (token, path) = (report["token"].as_str().unwrap(), format!("/v1/jobs/{}/reports", hand.id()));
    assert_eq!(token, outside.bench.own_token(&hand.job, 1));
    hand.told(json!({"state": "RUNNING"})).await;
    let told = outside.bench.call("POST", &path).token(token).json(&json!({"progress": 40})).send().await;
    assert_eq!(told.status.as_u16(), 200, "{}", told.text());
    assert_eq!(hand.now().await["progress"], 40);
    assert_eq!(outside.unsettled("").await[0]["report"]["token"], token, "after a restart, too");
    let other = outside.bench.call("GET", CLAIMS).token(token).send().await;
    assert_eq!(other.status.as_u16(), 403, "and opens nothing else: {}", other.text());
    assert_eq!(hand.now().await.get("report"), None, "nobody else is told");
}

#[tokio::test]
async fn a_job_is_claimed_recorded_run_and_finished_and_its_history_says_who_did_it() {
    let outside = Outside::new().await;
    let hand = outside.held(json!({"name": "sum"})).await;
    let job = &hand.job;
    assert_eq!((&job["state"], &job["attempt"], &job["epoch"]), (&json!("CLAIMED"), &json!(1), &json!(1)));
    assert_eq!(job["tag"], format!("jobgate-{}-1", hand.id()));
    assert_eq!((&job["claimant"], &job["spec"]["command"]), (&hand.claimant, &json!(["true"])));
    assert_eq!(
        hand.told(json!({"state": "PENDING", "submission_id": "s-1"})).await,
        is("advanced", "PENDING")
    );
    assert_eq!(hand.told(json!({"state": "RUNNING", "reason": "on n1"})).await, is("advanced", "RUNNING"));
    assert_eq!(hand.told(json!({"state": "FINISHED", "exit_code": 0})).await, is("advanced", "FINISHED"));
    let now = hand.now().await;
    assert_eq!((&now["submission_id"], &now["exit_code"]), (&json!("s-1"), &json!(0)));
    let history = outside.bench.call("GET", &format!("/v1/jobs/{}/history", hand.id())).send().await.json();
    let steps: Vec<&str> =
        history["items"].as_array().unwrap().iter().map(|entry| entry["to"].as_str().unwrap()).collect();
    assert_eq!(steps, ["INITIALIZED", "CLAIMED", "PENDING", "RUNNING", "FINISHED"]);
    let by = format!("worker:{}", hand.claimant.as_str().unwrap());
    assert!(history["items"].as_array().unwrap()[1..].iter().all(|entry| entry["by"] == by), "{history}");
    let workers = outside.bench.call("GET", "/v1/workers").send().await.json();
    assert_eq!(workers["items"][0]["host"], "token:runner");
    assert_eq!(hand.renew().await["settled"], json!([hand.id()]));
}

#[tokio::test]
async fn a_first_report_of_running_records_too() {
    let outside = Outside::new().await;
    let hand = outside.held(json!({})).await;
    hand.tell(json!({"state": "RUNNING"})).await.is_problem(400, "invalid-field", Some("submission_id"));
    let told = hand.told(json!({"state": "RUNNING", "submission_id": "s-1"})).await;
    assert_eq!(told, is("advanced", "RUNNING"));
}

#[tokio::test]
async fn reports_told_again_or_late_are_answered_and_never_move_a_state_back() {
    let outside = Outside::new().await;
    let hand = outside.held(json!({})).await.submitted().await;
    let pending = || json!({"state": "PENDING", "submission_id": "s-1", "seq": 1});
    let running = || json!({"state": "RUNNING", "submission_id": "s-1", "seq": 2});
    assert_eq!(hand.told(pending()).await, is("duplicate", "PENDING"));
    assert_eq!(hand.told(running()).await, is("advanced", "RUNNING"));
    assert_eq!(hand.told(running()).await, is("duplicate", "RUNNING"));
    assert_eq!(hand.told(pending()).await, is("stale", "RUNNING"));
    assert_eq!(hand.told(json!({"state": "FINISHED"})).await, is("advanced", "FINISHED"));
    assert_eq!(hand.told(json!({"state": "FINISHED"})).await, is("duplicate", "FINISHED"));
    for late in [pending(), running(), json!({"state": "FAILED"}), json!({"state": "LOST"})] {
        assert_eq!(hand.told(late).await, is("stale", "FINISHED"));
    }
}

#[tokio::test]
async fn reports_that_overtake_each_other_end_where_the_ordered_ones_do() {
    let outside = Outside::new().await;
    let hand = outside.held(json!({})).await.submitted().await;
    let ended = json!({"state": "FAILED", "exit_code": 3, "reason": "no disk", "seq": 3});
    assert_eq!(hand.told(ended).await, is("advanced", "FAILED"));
    assert_eq!(hand.told(json!({"state": "RUNNING", "seq": 2})).await, is("stale", "FAILED"));
    let now = hand.now().await;
    assert_eq!((&now["exit_code"], &now["reason"]), (&json!(3), &json!("no disk")));
}

#[tokio::test]
async fn the_first_submission_counts_and_another_is_told_which_one() {
    let outside = Outside::new().await;
    let hand = outside.held(json!({})).await.submitted().await;
    for state in ["PENDING", "RUNNING", "FINISHED"] {
        let lost = hand.tell(json!({"state": state, "submission_id": "s-2"})).await;
        lost.is_problem(409, "claim-lost", None);
        assert_eq!(lost.json()["submission_id"], "s-1");
    }
    assert_eq!(hand.now().await["submission_id"], "s-1");
}

#[tokio::test]
async fn what_a_claimant_left_is_adopted_as_it_stands_once_its_lease_has_ended() {
    let outside = Outside::new().await;
    let first = outside.held(json!({})).await.submitted().await;
    first.told(json!({"state": "RUNNING"})).await;
    assert_eq!(outside.claim(json!({})).await["jobs"], json!([]), "its lease runs");
    first.dies().await;
    outside.post("/renew", &json!({"claimant": first.claimant})).await.is_problem(409, "lease-ended", None);
    outside.post("", &json!({"claimant": first.claimant})).await.is_problem(409, "lease-ended", None);
    // While nobody has adopted it, its reports count.
    assert_eq!(first.told(json!({"state": "RUNNING", "reason": "on n2"})).await, is("advanced", "RUNNING"));
    let claimed = outside.claim(json!({})).await;
    let second = outside.hand(&claimed);
    let job = &second.job;
    assert_eq!((&job["state"], &job["submission_id"]), (&json!("RUNNING"), &json!("s-1")));
    assert_eq!((&job["attempt"], &job["epoch"]), (&json!(1), &json!(2)));
    first.tell(json!({"state": "RUNNING"})).await.is_problem(409, "claim-lost", None);
    first.tell(json!({"state": "FINISHED"})).await.is_problem(409, "claim-lost", None);
    let lost = json!({"state": "LOST", "submission_id": "s-1"});
    first.tell(lost).await.is_problem(409, "claim-lost", None);
    // That the recorded submission ended well is true whoever saw it.
    let end = json!({"state": "FINISHED", "submission_id": "s-1"});
    assert_eq!(first.told(end).await, is("advanced", "FINISHED"));
    assert_eq!(second.told(json!({"state": "FINISHED"})).await, is("duplicate", "FINISHED"));
}

#[tokio::test]
async fn a_claimant_that_lost_its_claim_before_it_recorded_records_nothing_any_more() {
    let outside = Outside::new().await;
    let first = outside.held(json!({})).await;
    first.dies().await;
    let second = outside.hand(&outside.claim(json!({})).await);
    let late = first.tell(json!({"state": "PENDING", "submission_id": "s-old"})).await;
    late.is_problem(409, "claim-lost", None);
    // Under the right epoch, but as somebody else.
    let forged = Hand { claimant: first.claimant.clone(), job: second.job.clone(), outside: &outside };
    forged.tell(json!({"state": "RUNNING", "submission_id": "s-old"})).await.is_problem(
        409,
        "claim-lost",
        None,
    );
    second.submitted().await;
}

#[tokio::test]
async fn a_cancel_is_heard_at_the_renewal_and_a_job_that_finished_first_stays_finished() {
    let outside = Outside::new().await;
    for (end, state) in [("CANCELED", "CANCELED"), ("FINISHED", "FINISHED")] {
        let hand = outside.held(json!({})).await.submitted().await;
        assert_eq!(hand.renew().await["cancel"], json!([]));
        outside.bench.call("POST", &format!("/v1/jobs/{}/cancel", hand.id())).send().await;
        assert_eq!(hand.renew().await["cancel"], json!([hand.id()]));
        assert_eq!(outside.unsettled("").await[0]["cancel_requested"], true);
        assert_eq!(hand.told(json!({"state": end})).await, is("advanced", state));
        assert_eq!(hand.renew().await["cancel"], json!([]));
    }
    // Before anything is recorded: nothing can be any more, and CANCELED says that nothing was begun.
    let hand = outside.held(json!({})).await;
    outside.bench.call("POST", &format!("/v1/jobs/{}/cancel", hand.id())).send().await;
    let late = hand.tell(json!({"state": "PENDING", "submission_id": "s-1"})).await;
    late.is_problem(409, "claim-lost", None);
    assert_eq!(
        hand.told(json!({"state": "CANCELED", "submission_id": "s-1"})).await,
        is("advanced", "CANCELED")
    );
    hand.tell(json!({"state": "RUNNING", "submission_id": "s-1"})).await.is_problem(409, "claim-lost", None);
}

#[tokio::test]
async fn a_failed_attempt_is_followed_by_another_and_its_late_reports_are_stale() {
    let outside = Outside::new().await;
    let retry = json!({"max_attempts": 2, "retry": {"backoff_seconds": 0}});
    let first = outside.held(retry).await.submitted().await;
    let failed = || json!({"state": "FAILED", "submission_id": "s-1"});
    assert_eq!(first.told(failed()).await, is("advanced", "INITIALIZED"));
    let claimed = outside.claim(json!({"claimant": first.claimant})).await;
    let second = outside.hand(&claimed);
    assert_eq!((&second.job["attempt"], &second.job["epoch"]), (&json!(2), &json!(2)));
    assert_eq!(second.job["tag"], format!("jobgate-{}-2", second.id()));
    assert_eq!(first.told(failed()).await, is("stale", "CLAIMED"));
    let again = json!({"state": "PENDING", "submission_id": "s-1"});
    assert_eq!(first.told(again).await, is("stale", "CLAIMED"), "begins nothing");
    let told = second.told(json!({"state": "RUNNING", "submission_id": "s-2"})).await;
    assert_eq!(told, is("advanced", "RUNNING"));
    assert_eq!(second.told(json!({"state": "FAILED"})).await, is("advanced", "FAILED"));
    assert_eq!(second.told(json!({"state": "FAILED"})).await, is("duplicate", "FAILED"));
}

#[tokio::test]
async fn what_is_handed_back_is_claimed_again_by_whoever_asks() {
    let outside = Outside::new().await;
    let hand_back = async |hand: &Hand<'_>, more: &str| {
        let query = format!("claimant={}&epoch={}{more}", hand.claimant.as_str().unwrap(), hand.job["epoch"]);
        let call = outside.bench.call("DELETE", &format!("{CLAIMS}/{}?{query}", hand.id()));
        call.token(&outside.token).send().await
    };
    let hand = outside.held(json!({})).await;
    for _ in 0..2 {
        assert_eq!(hand_back(&hand, "&reason=no%20room&pause=1h").await.status.as_u16(), 204);
    }
    let now = hand.now().await;
    assert_eq!((&now["state"], &now["reason"]), (&json!("INITIALIZED"), &json!("no room")));
    hand.tell(json!({"state": "RUNNING", "submission_id": "s-1"})).await.is_problem(409, "claim-lost", None);
    assert_eq!(outside.claim(json!({})).await["jobs"], json!([]), "for an hour");
    let recorded = outside.held(json!({})).await.submitted().await;
    assert_eq!(hand_back(&recorded, "").await.status.as_u16(), 204);
    assert_eq!(outside.unsettled("").await[0]["claimant"], Value::Null);
    let claimed = outside.claim(json!({})).await;
    assert_eq!((&claimed["jobs"][0]["state"], &claimed["jobs"][0]["epoch"]), (&json!("PENDING"), &json!(2)));
    hand_back(&hand, "&pause=2h").await.is_problem(400, "invalid-field", Some("pause"));
}

#[tokio::test]
async fn a_restarted_service_finds_everything_unsettled_page_by_page() {
    let outside = Outside::new().await;
    for _ in 0..5 {
        outside.posted(json!({})).await;
    }
    let first = outside.claim(json!({"max": 2})).await;
    let second = outside.claim(json!({"max": 2})).await;
    let hand = outside.hand(&first).submitted().await;
    hand.dies().await;
    let all = outside.unsettled("").await;
    assert_eq!(all.len(), 4, "one waits");
    let mine = outside.unsettled(&format!("?claimant={}", second["claimant"].as_str().unwrap())).await;
    assert_eq!(mine.len(), 2);
    let (mut paged, mut query) = (Vec::new(), "?limit=3".to_owned());
    loop {
        let page = outside.bench.call("GET", &format!("{CLAIMS}{query}")).send().await.json();
        paged.extend(page["items"].as_array().unwrap().clone());
        let Some(next) = page["next_cursor"].as_str() else { break };
        query = format!("?limit=3&cursor={next}");
    }
    assert_eq!(paged, all);
    let recorded: Vec<&Value> = all.iter().filter(|job| !job["submission_id"].is_null()).collect();
    assert_eq!((recorded.len(), &recorded[0]["submission_id"]), (1, &json!("s-1")));
    let adopted = outside.claim(json!({"max": 100})).await;
    assert_eq!(
        adopted["jobs"].as_array().unwrap().len(),
        3,
        "two left by the dead, then the one that waited"
    );
}

#[tokio::test]
async fn the_most_urgent_is_claimed_first_and_nothing_of_a_paused_cluster() {
    let outside = Outside::new().await;
    for priority in [0, 10, -5] {
        outside.posted(json!({"priority": priority})).await;
    }
    outside.bench.call("POST", "/v1/clusters/far/pause").send().await;
    assert_eq!(outside.claim(json!({})).await["jobs"], json!([]));
    outside.bench.call("POST", "/v1/clusters/far/resume").send().await;
    for priority in [10, 0, -5] {
        let claimed = outside.claim(json!({"max": 1})).await;
        assert_eq!(claimed["jobs"][0]["priority"], priority);
    }
    let registered = outside.claim(json!({"max": 0, "host": "runner-7"})).await;
    assert_eq!(registered["jobs"], json!([]));
    let workers = outside.bench.call("GET", "/v1/workers").send().await.json();
    assert!(workers["items"].as_array().unwrap().iter().any(|worker| worker["host"] == "runner-7"));
}

#[tokio::test(start_paused = true)]
async fn a_claim_waits_for_a_job_as_long_as_it_was_told_to() {
    let outside = Outside::new().await;
    let began = tokio::time::Instant::now();
    assert_eq!(outside.claim(json!({"wait": "200ms"})).await["jobs"], json!([]));
    assert!(began.elapsed() >= Duration::from_millis(200));
    let (claimed, posted) = tokio::join!(outside.claim(json!({"wait": "30s"})), async {
        // The claim looks at least once before.
        tokio::time::sleep(Duration::from_millis(100)).await;
        outside.posted(json!({})).await
    });
    assert_eq!(claimed["jobs"][0]["id"], posted["id"]);
    assert!(began.elapsed() < Duration::from_secs(20));
}

#[tokio::test]
async fn nobody_is_hinted_of_what_is_claimed() {
    let outside = Outside::new().await;
    outside.held(json!({})).await;
    assert!(outside.bench.broker.hints.borrow().is_empty());
}

#[tokio::test]
async fn a_clusters_token_opens_its_claims_and_nothing_else() {
    let outside = Outside::new().await;
    let bench = &outside.bench;
    let as_worker =
        |method: &str, path: &str| bench.call(method, path).token(&outside.token).json(&json!({}));
    for (method, path) in [
        ("GET", "/v1/jobs"),
        ("POST", "/v1/jobs"),
        ("POST", "/v1/jobs/cancel?label=x"),
        ("GET", "/v1/clusters"),
        ("POST", "/v1/clusters/far/pause"),
        ("GET", "/v1/tokens"),
        ("GET", "/metrics"),
        ("POST", "/v1/clusters/farther/claims"),
        ("GET", "/v1/clusters/farther/claims"),
        ("POST", "/v1/clusters/local/claims"),
        ("POST", "/v1/clusters/nowhere/claims"),
    ] {
        as_worker(method, path).send().await.is_problem(403, "forbidden", None);
    }
    for roles in [vec![Role::Read], vec![Role::Submit], vec![Role::Admin]] {
        let token = bench.token(Some("default"), &roles).await;
        let answer = bench.call("POST", CLAIMS).token(&token).json(&json!({})).send().await;
        answer.is_problem(403, "forbidden", None);
    }
    // The operator may; where workers serve there is nothing to claim.
    assert_eq!(bench.call("POST", CLAIMS).json(&json!({})).send().await.status.as_u16(), 200);
    for name in ["local", "nowhere"] {
        let answer = bench.call("POST", &format!("/v1/clusters/{name}/claims")).json(&json!({})).send().await;
        answer.is_problem(404, "not-found", None);
    }
}

#[tokio::test]
async fn a_claimant_of_one_cluster_is_nobody_in_another() {
    let outside = Outside::new().await;
    let hand = outside.held(json!({})).await;
    let farther = outside.bench.worker_token("farther").await;
    let there = |method: &str, path: &str| {
        outside.bench.call(method, &format!("/v1/clusters/farther/claims{path}")).token(&farther)
    };
    let renewal = there("POST", "/renew").json(&json!({"claimant": hand.claimant})).send().await;
    renewal.is_problem(409, "lease-ended", None);
    let report = json!({"claimant": hand.claimant, "attempt": 1, "epoch": 1, "state": "CANCELED"});
    let told = there("PATCH", &format!("/{}", hand.id())).json(&report).send().await;
    told.is_problem(404, "not-found", None);
    let query = format!("/{}?claimant={}&epoch=1", hand.id(), hand.claimant.as_str().unwrap());
    there("DELETE", &query).send().await.is_problem(404, "not-found", None);
    assert_eq!(there("GET", "").send().await.json()["items"], json!([]));
    let listed = there("GET", &format!("?claimant={}", hand.claimant.as_str().unwrap())).send().await;
    assert_eq!(listed.json()["items"], json!([]));
    hand.submitted().await;
}

#[tokio::test]
async fn a_clusters_token_is_made_by_an_operator_and_is_for_nothing_else() {
    let bench = Bench::new();
    let wish = json!({"name": "runner", "cluster": "far", "roles": ["work"]});
    let made = bench.call("POST", "/v1/tokens").json(&wish).send().await;
    assert_eq!(made.status.as_u16(), 201, "{}", made.text());
    assert_eq!((&made.json()["cluster"], &made.json()["project"]), (&json!("far"), &json!("*")));
    let token = made.json()["token"].as_str().unwrap().to_owned();
    assert_eq!(bench.call("POST", CLAIMS).token(&token).json(&json!({})).send().await.status.as_u16(), 200);
    for (field, wish) in [
        ("cluster", json!({"name": "x", "project": "*", "roles": ["work"]})),
        ("cluster", json!({"name": "x", "cluster": "local", "roles": ["work"]})),
        ("cluster", json!({"name": "x", "cluster": "nowhere", "roles": ["work"]})),
        ("roles", json!({"name": "x", "cluster": "far", "roles": ["work", "read"]})),
        ("roles", json!({"name": "x", "cluster": "far", "roles": ["admin"]})),
        ("project", json!({"name": "x", "cluster": "far", "project": "a", "roles": ["work"]})),
        ("project", json!({"name": "x", "cluster": "far", "project": "*", "roles": ["work"]})),
        ("name", json!({"name": "bootstrap", "cluster": "far", "roles": ["work"]})),
        ("name", json!({"name": " Bootstrap ", "project": "*", "roles": ["admin"]})),
    ] {
        let refused = bench.call("POST", "/v1/tokens").json(&wish).send().await;
        refused.is_problem(400, "invalid-field", Some(field));
    }
    let admin = bench.token(Some("a"), &[Role::Admin]).await;
    let refused = bench.call("POST", "/v1/tokens").token(&admin).json(&wish).send().await;
    refused.is_problem(403, "forbidden", None);
}

#[tokio::test]
async fn what_cannot_be_is_refused_by_its_field() {
    let outside = Outside::new().await;
    for (field, body) in [
        ("max", json!({"max": 101})),
        ("lease", json!({"lease": "4s"})),
        ("lease", json!({"lease": "2h"})),
        ("lease", json!({"lease": "long"})),
        ("wait", json!({"wait": "a while"})),
        ("host", json!({"host": "x".repeat(201)})),
        ("claimant", json!({"claimant": "me"})),
        ("jobs", json!({"jobs": []})),
    ] {
        outside.post("", &body).await.is_problem(400, "invalid-field", Some(field));
    }
    let hand = outside.held(json!({})).await;
    for (field, report) in [
        ("state", json!({"state": "CLAIMED"})),
        ("submission_id", json!({"state": "PENDING", "submission_id": ""})),
        ("submission_id", json!({"state": "PENDING", "submission_id": "a b"})),
        ("reason", json!({"state": "FAILED", "reason": "x".repeat(2_001)})),
        ("at", json!({"state": "FAILED", "at": "1970-01-01T00:00:00Z"})),
        ("attempt", json!({"state": "FAILED", "attempt": -1})),
    ] {
        hand.tell(report).await.is_problem(400, "invalid-field", Some(field));
    }
    let ahead = hand.tell(json!({"state": "FAILED", "attempt": 2})).await;
    ahead.is_problem(409, "claim-lost", None);
    let cursor = outside.bench.call("GET", &format!("{CLAIMS}?cursor=x")).send().await;
    cursor.is_problem(400, "invalid-cursor", Some("cursor"));
    assert_eq!(hand.now().await["state"], "CLAIMED");
}

#[tokio::test]
async fn what_may_kill_claimants_comes_one_at_a_time_and_holds_up_nothing_else() {
    let outside = Outside::new().await;
    for _ in 0..3 {
        outside.posted(json!({})).await;
    }
    for _ in 0..2 {
        let claimed = outside.claim(json!({})).await;
        assert_eq!(claimed["jobs"].as_array().unwrap().len(), 3);
        outside.hand(&claimed).dies().await;
    }
    let first = outside.claim(json!({})).await;
    let suspect = outside.hand(&first);
    assert_eq!(first["jobs"].as_array().unwrap().len(), 1);
    // Another claimant takes its own chances.
    assert_eq!(outside.claim(json!({})).await["jobs"].as_array().unwrap().len(), 1);
    let again = json!({"claimant": first["claimant"]});
    assert_eq!(outside.claim(again.clone()).await["jobs"], json!([]));
    let fresh = outside.posted(json!({})).await;
    let taken = outside.claim(again.clone()).await;
    assert_eq!((taken["jobs"].as_array().unwrap().len(), &taken["jobs"][0]["id"]), (1, &fresh["id"]));
    // It did no harm, so the next one is tried.
    let suspect = suspect.submitted().await;
    let next = outside.claim(again).await;
    assert_eq!(next["jobs"].as_array().unwrap().len(), 1);
    assert_ne!(next["jobs"][0]["id"], suspect.job["id"]);
}
