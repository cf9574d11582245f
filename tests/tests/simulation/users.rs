//! The users of it all: they post jobs and ask things of them, again and again until there is an answer.

use crate::{
    city::City,
    cluster::{job_name, place_of},
    plan::{Outcome, Setting},
    world::lock,
};
use chrono::TimeDelta;
use jobgate_api::accept::Accepted;
use jobgate_shared::{
    broker::Broker as _,
    clock::Clock as _,
    domain::{
        ClusterName, Command, Document, Ending, IdempotencyKey, JobId, JobSpec, NewJob, Project, RetryPolicy,
    },
    store::{Commanded, Patch, Scope, Store as _},
    wire::Nudge,
};
use std::{
    sync::{Arc, atomic::Ordering},
    time::Duration,
};
use tokio::time::{sleep, timeout};

/// How long a user waits for an answer.
const PATIENCE: Duration = Duration::from_secs(5);

impl City {
    /// A user who asks until there is an answer.
    fn user(self: &Arc<Self>, what: impl Future<Output = ()> + Send + 'static) {
        let city = self.clone();
        self.waiting.fetch_add(1, Ordering::SeqCst);
        self.world.outside.spawn("user", async move {
            what.await;
            city.waiting.fetch_sub(1, Ordering::SeqCst);
        });
    }

    async fn pause_for_breath(&self) {
        let time = self.world.dice().millis(100, 1_000);
        sleep(time).await;
    }

    /// Posts the job at this place of the plan.
    pub(crate) fn post(self: &Arc<Self>, place: usize) {
        let city = self.clone();
        self.user(async move {
            loop {
                if let Some(api) = city.some_api() {
                    let job = city.new_job(place);
                    let posted = timeout(PATIENCE, api.acceptor.accept(vec![job], 200)).await;
                    let answer =
                        posted.ok().and_then(Result::ok).and_then(|answers| answers.into_iter().next());
                    match answer {
                        // Nobody answered, or nobody knows: the same key makes it safe to post it again.
                        None | Some(Accepted::Away) => {}
                        Some(answer @ (Accepted::Created(_) | Accepted::Existing(_))) => {
                            city.is_accepted(place, answer).await;
                            return;
                        }
                        Some(other @ (Accepted::KeyReused | Accepted::Refused)) => {
                            city.world.wrong(|| format!("job {place} is posted: {other:?}"));
                            return;
                        }
                    }
                }
                city.pause_for_breath().await;
            }
        });
    }

    async fn is_accepted(self: &Arc<Self>, place: usize, answer: Accepted) {
        if matches!(answer, Accepted::Existing(_)) {
            self.world.came(Outcome::KeyReplayed);
        }
        let (Accepted::Created(job) | Accepted::Existing(job)) = answer else { return };
        lock(&self.accepted).insert(place, job.id);
        if self.world.plan.jobs[place].forever {
            let time = self.world.dice().millis(0, 20_000);
            sleep(time).await;
            self.ask(job.id, Command::Cancel);
        }
    }

    /// Its user has it canceled, and it would run for ever.
    pub(crate) fn is_forever(&self, job: JobId) -> bool {
        let place = self.rows.row(job).and_then(|row| place_of(&row.name));
        place.is_some_and(|place| self.world.plan.jobs[place].forever)
    }

    fn new_job(&self, place: usize) -> NewJob {
        let wish = &self.world.plan.jobs[place];
        let spec = JobSpec {
            command: vec!["true".to_owned()],
            time_limit_seconds: wish.time_limit,
            ..JobSpec::default()
        };
        let mut retry = RetryPolicy { backoff_seconds: 1, max_backoff_seconds: 4, ..RetryPolicy::default() };
        if wish.retry_lost {
            retry.retry_on.push(Ending::Lost);
        }
        let delay = TimeDelta::from_std(wish.delay).unwrap_or_default();
        NewJob {
            id: JobId::generate(),
            project: Project::default_project(),
            name: job_name(place),
            cluster: self.managers[wish.cluster].cluster.clone(),
            spec,
            labels: Vec::new(),
            priority: wish.priority,
            inputs: Document::new(),
            max_attempts: wish.max_attempts,
            retry,
            run_at: (!delay.is_zero()).then(|| self.clock.now() + delay),
            hold: wish.hold,
            created_by: "token:simulation".to_owned(),
            idempotency: Some(IdempotencyKey { key: format!("key-{place}"), body: [0; 32] }),
        }
    }

    fn some_job(&self) -> Option<JobId> {
        let known: Vec<JobId> = self.rows.watch(|watch| watch.jobs.keys().copied().collect());
        let place = self.world.dice().below(known.len() as u64);
        known.get(usize::try_from(place).unwrap_or(0)).copied()
    }

    /// Asks something of some job.
    pub(crate) fn command(self: &Arc<Self>, command: Command) {
        // Nobody cancels it once more.
        let wanted = |job: &JobId| command != Command::Retry || !self.is_forever(*job);
        if let Some(job) = self.some_job().filter(wanted) {
            self.ask(job, command);
        }
    }

    /// Somebody asks something of a job until there is an answer.
    pub(crate) fn ask(self: &Arc<Self>, job: JobId, command: Command) {
        let city = self.clone();
        self.user(async move {
            loop {
                if let Some(api) = city.some_api() {
                    let jobs = [job];
                    let asked = api.store.command(&Scope::All, &jobs, command, "token:simulation");
                    if let Ok(Ok(answers)) = timeout(PATIENCE, asked).await {
                        // As the HTTP handler does.
                        for answer in answers {
                            if let Commanded::Done { owner, .. } = answer {
                                match command {
                                    Command::Cancel => {
                                        if let Some(worker) = owner {
                                            let nudge = api.broker.nudge(Nudge::Cancel { worker });
                                            drop(timeout(PATIENCE, nudge).await);
                                        }
                                    }
                                    Command::Release | Command::Retry => api.budget.wake(),
                                    Command::Hold => {}
                                }
                            }
                        }
                        return;
                    }
                }
                city.pause_for_breath().await;
            }
        });
    }

    /// Changes the priority of some job.
    pub(crate) fn prioritise(self: &Arc<Self>) {
        let Some(job) = self.some_job() else { return };
        let (city, priority) = (self.clone(), self.world.dice().pick(&[-100, 0, 100]));
        self.user(async move {
            let patch = Patch { priority: Some(priority), ..Patch::default() };
            while let Some(api) = city.some_api() {
                if let Ok(Ok(_)) = timeout(PATIENCE, api.store.patch(&Scope::All, job, &patch)).await {
                    return;
                }
                city.pause_for_breath().await;
            }
        });
    }

    /// Sets something on a cluster.
    pub(crate) fn set(self: &Arc<Self>, cluster: usize, setting: Setting) {
        let (city, cluster): (_, ClusterName) = (self.clone(), self.managers[cluster].cluster.clone());
        self.user(async move {
            loop {
                if let Some(api) = city.some_api() {
                    let set = match setting {
                        Setting::Paused(paused) => api.store.set_paused(&cluster, paused, "token:simulation"),
                        Setting::Limit(limit) => api.store.limit(&cluster, limit, "token:simulation"),
                    };
                    if let Ok(Ok(())) = timeout(PATIENCE, set).await {
                        drop(timeout(PATIENCE, api.broker.nudge(Nudge::Settings)).await);
                        return;
                    }
                }
                city.pause_for_breath().await;
            }
        });
    }
}
