//! A process's door to a resource manager: the engine port over it, with all that can happen on the way.

use crate::{
    cluster::{Manager, away, job_name},
    plan::{Fault, Link},
    process::Process,
    store::Rows,
};
use async_trait::async_trait;
use futures::FutureExt as _;
use jobgate_shared::domain::{JobSpec, SpecError, Submission, SubmissionTag};
use jobgate_worker::engine::{
    Capabilities, Engine, EngineResult, ExitCodes, LogChunk, MemoryLimits, Sighting, Stream, ToCreate,
};
use std::{sync::Arc, time::Duration};

/// A process's door to a manager.
#[derive(Debug)]
pub(crate) struct Port {
    pub(crate) process: Arc<Process>,
    pub(crate) manager: Arc<Manager>,
    pub(crate) rows: Arc<Rows>,
}

impl Port {
    async fn ask<T: Send + 'static>(
        &self,
        call: impl FnOnce(&Manager) -> EngineResult<T> + Send + 'static,
    ) -> EngineResult<T> {
        let manager = self.manager.clone();
        let call = async move { call(&manager) }.boxed();
        self.process.carry(Link::Manager, call).await.unwrap_or_else(|| Err(away()))
    }
}

#[async_trait]
impl Engine for Port {
    fn capabilities(&self) -> Capabilities {
        let plan = &self.manager.world.plan;
        Capabilities {
            mode: self.manager.mode,
            reach: None,
            commands: false,
            exit_codes: ExitCodes::None,
            memory_limits: MemoryLimits::None,
            time_limits: plan.time_limits,
            warns_on_cancel: false,
            logs: plan.logs,
            poll_interval: Duration::from_secs(1),
        }
    }

    fn validate(&self, _: &JobSpec) -> Result<(), SpecError> {
        Ok(())
    }

    async fn create(&self, job: &ToCreate) -> EngineResult<Submission> {
        let world = &self.process.world;
        if world.plan.poison.is_some_and(|place| job.name == job_name(place)) {
            world.struck(Fault::Poison);
            self.process.kill();
            self.process.awake().await;
        }
        let job = job.clone();
        self.ask(move |manager| manager.create(&job)).await
    }

    async fn start(&self, tag: SubmissionTag, submission: &Submission) -> EngineResult<()> {
        let (id, rows) = (submission.id.clone(), self.rows.clone());
        self.ask(move |manager| {
            rows.check_recorded(tag, &id);
            manager.start(tag, &id)
        })
        .await
    }

    async fn poll(&self, submissions: &[(SubmissionTag, Submission)]) -> EngineResult<Vec<Sighting>> {
        let asked = submissions.to_vec();
        self.ask(move |manager| manager.poll(&asked)).await
    }

    async fn stirred(&self) {
        self.manager.bell.notified().await;
        self.process.awake().await;
    }

    async fn cancel(&self, tag: SubmissionTag, submission: &Submission) -> EngineResult<()> {
        let id = submission.id.clone();
        self.ask(move |manager| manager.cancel(tag, &id)).await
    }

    async fn discard(&self, tag: SubmissionTag, submission: Option<&Submission>) -> EngineResult<()> {
        let id = submission.map(|s| s.id.clone());
        self.ask(move |manager| manager.discard(tag, id.as_deref())).await
    }

    async fn inert(&self, older_than: Duration) -> EngineResult<Vec<(SubmissionTag, Submission)>> {
        self.ask(move |manager| manager.inert(older_than)).await
    }

    async fn ended(&self, older_than: Duration) -> EngineResult<Vec<(SubmissionTag, Submission)>> {
        self.ask(move |manager| manager.ended(older_than)).await
    }

    async fn read_log(
        &self,
        _: SubmissionTag,
        submission: &Submission,
        _: Stream,
        offset: u64,
        _: usize,
    ) -> EngineResult<LogChunk> {
        let id = submission.id.clone();
        self.ask(move |manager| manager.read_log(&id, offset)).await
    }

    async fn forget(&self, tag: SubmissionTag, submission: &Submission) -> EngineResult<()> {
        let (id, rows) = (submission.id.clone(), self.rows.clone());
        self.ask(move |manager| {
            rows.check_over(tag, &id);
            manager.forget(tag, &id)
        })
        .await
    }
}
