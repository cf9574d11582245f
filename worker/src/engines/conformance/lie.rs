//! Proof that the suite finds a false declaration: an engine that says of itself what is not so.

use super::{Rig, SetUp, cases};
use crate::engine::{Capabilities, Engine, EngineResult, LogChunk, Sighting, Stream, ToCreate};
use async_trait::async_trait;
use jobgate_shared::domain::{JobSpec, SpecError, Submission, SubmissionTag};
use std::{
    panic::{AssertUnwindSafe, catch_unwind},
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

/// What is changed in a declaration.
pub type Lie = fn(&mut Capabilities);

/// What a case said of a lie.
#[derive(Debug)]
pub struct Finding {
    /// The name of the case.
    pub case: &'static str,
    /// With which words it failed.
    pub words: String,
}

impl Finding {
    /// Panics if another case found the lie, or this one failed for another reason than the lie.
    pub fn assert_is(&self, (case, words): (&str, &str)) {
        assert!(self.case == case && self.words.contains(words), "{self:?} is not {case:?}: {words:?}");
    }
}

/// Runs the cases a lie adds to those the truth asks for, each over a rig of its own, until one fails; panics if none does.
pub fn find(rig: impl Fn() -> Arc<dyn Rig>, set_up: &[SetUp], lie: Lie) -> Finding {
    let truth = rig().engine().capabilities();
    let mut declared = truth.clone();
    lie(&mut declared);
    let added: Vec<_> = cases(&declared, set_up).filter(|case| !(case.applies)(&truth)).collect();
    let found = added.iter().find_map(|case| {
        let rig: Arc<dyn Rig> = Arc::new(LyingRig { rig: rig(), lie });
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
        let panicked = catch_unwind(AssertUnwindSafe(|| runtime.block_on((case.run)(rig)))).err()?;
        let words = match panicked.downcast::<String>() {
            Ok(words) => *words,
            Err(other) => other.downcast_ref::<&str>().map(ToString::to_string).unwrap_or_default(),
        };
        Some(Finding { case: case.name, words })
    });
    let names: Vec<_> = added.iter().map(|case| case.name).collect();
    found.unwrap_or_else(|| panic!("none of {names:?} finds that this is not so: {declared:?}"))
}

struct LyingRig {
    rig: Arc<dyn Rig>,
    lie: Lie,
}

impl Rig for LyingRig {
    fn engine(&self) -> Arc<dyn Engine> {
        Arc::new(Liar { engine: self.rig.engine(), lie: self.lie })
    }

    fn shared_dir(&self) -> &Path {
        self.rig.shared_dir()
    }

    fn ledger(&self) -> PathBuf {
        self.rig.ledger()
    }

    fn ends_strays(&self) -> bool {
        self.rig.ends_strays()
    }

    /// What is waited for in vain need not be waited for long.
    fn patience(&self) -> Duration {
        Duration::from_secs(5)
    }
}

/// Does what the engine under it does.
#[derive(Debug)]
struct Liar {
    engine: Arc<dyn Engine>,
    lie: Lie,
}

#[async_trait]
impl Engine for Liar {
    fn capabilities(&self) -> Capabilities {
        let mut declared = self.engine.capabilities();
        (self.lie)(&mut declared);
        declared
    }

    fn validate(&self, spec: &JobSpec) -> Result<(), SpecError> {
        self.engine.validate(spec)
    }

    async fn create(&self, job: &ToCreate) -> EngineResult<Submission> {
        self.engine.create(job).await
    }

    async fn start(&self, tag: SubmissionTag, submission: &Submission) -> EngineResult<()> {
        self.engine.start(tag, submission).await
    }

    async fn poll(&self, submissions: &[(SubmissionTag, Submission)]) -> EngineResult<Vec<Sighting>> {
        self.engine.poll(submissions).await
    }

    async fn cancel(&self, tag: SubmissionTag, submission: &Submission) -> EngineResult<()> {
        self.engine.cancel(tag, submission).await
    }

    async fn discard(&self, tag: SubmissionTag, submission: Option<&Submission>) -> EngineResult<()> {
        self.engine.discard(tag, submission).await
    }

    async fn inert(&self, older_than: Duration) -> EngineResult<Vec<(SubmissionTag, Submission)>> {
        self.engine.inert(older_than).await
    }

    async fn read_log(
        &self,
        tag: SubmissionTag,
        submission: &Submission,
        stream: Stream,
        offset: u64,
        limit: usize,
    ) -> EngineResult<LogChunk> {
        self.engine.read_log(tag, submission, stream, offset, limit).await
    }

    async fn forget(&self, tag: SubmissionTag, submission: &Submission) -> EngineResult<()> {
        self.engine.forget(tag, submission).await
    }
}
