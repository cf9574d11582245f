//! Makes claims for one identity. What may kill workers is claimed one job at a time: while one is in hand and not yet
//! submitted, the next is left in line, so that a death that is its own doing is counted against it alone.

use super::{Worker, answered_within, drive::Message, lease::Lease};
use futures::future::BoxFuture;
use jobgate_shared::{
    domain::{Job, JobId, JobState, Refusal, WorkerId},
    failpoint,
    retry::Delays,
    store::{Claimed, StoreResult, WorkerCluster},
    supervise::Tasks,
};
use std::{collections::BTreeMap, convert::Infallible, sync::Arc};
use tokio::sync::{mpsc, oneshot};
use tokio_util::sync::CancellationToken;

/// Most suspects that wait for their turn; the others will be hinted again.
const LINE: usize = 10_000;

/// Kept while a suspect is in hand and not submitted. Nothing is ever told by it: dropped, it lets the next one in.
pub(super) type Turn = oneshot::Sender<Infallible>;

/// Suspects that were refused, and the cluster whose room they take; `None` when nobody asks for room.
type Refused = (Vec<JobId>, Option<u16>);

/// Makes the claims of one identity.
#[derive(Clone)]
pub(super) struct Claimer {
    worker: Arc<Worker>,
    id: WorkerId,
    lease: Arc<Lease>,
    served: Arc<[WorkerCluster]>,
    suspects: mpsc::UnboundedSender<Refused>,
}

impl Claimer {
    /// A claimer, and the task that claims suspects for it.
    pub(super) fn spawn(
        tasks: &Tasks,
        worker: &Arc<Worker>,
        id: WorkerId,
        lease: &Arc<Lease>,
        inbox: &mpsc::Sender<Message>,
        taking: &CancellationToken,
    ) -> Self {
        let (suspects, refused) = mpsc::unbounded_channel();
        let served = worker.served().into();
        let claimer = Self { worker: worker.clone(), id, lease: lease.clone(), served, suspects };
        let line = BTreeMap::new();
        let alone = Alone { claimer: claimer.clone(), inbox: inbox.clone(), taking: taking.clone(), line };
        tasks.spawn("claim-alone", alone.run(refused));
        claimer
    }

    /// Claims what can be claimed; `None` when the lease is over. Tries again while the store is away: a claim can be
    /// made twice, and then tells what it got the first time. What may kill workers is claimed later, in the room of
    /// `cluster`.
    pub(super) async fn claim(&self, ids: &[JobId], cluster: Option<u16>) -> Option<Vec<Job>> {
        let claim = || self.worker.leases.claim(self.id, &self.served, ids);
        let mut granted = Vec::with_capacity(ids.len());
        let mut suspects = Vec::new();
        for (id, claimed) in ids.iter().zip(self.answer(claim).await?.unwrap_or_default()) {
            match claimed {
                Claimed::Granted(job) => {
                    count_wait(&job);
                    granted.push(*job);
                }
                Claimed::Refused(Refusal::Suspect) => suspects.push(*id),
                Claimed::Refused(_) | Claimed::Absent => {
                    metrics::counter!("jobgate_hints_stale_total").increment(1);
                }
            }
        }
        if !suspects.is_empty() {
            // Its task ends when nothing is taken any more.
            self.suspects.send((suspects, cluster)).unwrap_or_default();
        }
        Some(granted)
    }

    /// The store's answer, however often it must be asked; `None` when the lease is over, `Some(None)` when it refuses.
    async fn answer<'a, T>(
        &self,
        claim: impl Fn() -> BoxFuture<'a, StoreResult<T>> + Send + Sync,
    ) -> Option<Option<T>> {
        let mut delays = Delays::network();
        loop {
            if !self.lease.holds() {
                return None;
            }
            let began = self.worker.clock.monotonic();
            // An answer older than that could speak of what has been worked off since.
            match answered_within(self.worker.timing.lease / 2, claim()).await {
                Ok(claimed) => {
                    metrics::histogram!("jobgate_claim_seconds").record(began.elapsed().as_secs_f64());
                    return Some(Some(claimed));
                }
                Err(error) if error.is_transient() => {
                    tracing::warn!(worker = %self.id, error = format!("{:#}", anyhow::Error::new(error)), "cannot claim; trying again");
                    tokio::time::sleep(delays.next_delay()).await;
                }
                Err(error) => {
                    tracing::error!(worker = %self.id, error = format!("{:#}", anyhow::Error::new(error)), "the store refuses a claim; its jobs will be hinted again");
                    return Some(None);
                }
            }
        }
    }
}

/// Claims suspects, each when the one before is submitted or gone.
struct Alone {
    claimer: Claimer,
    inbox: mpsc::Sender<Message>,
    taking: CancellationToken,
    line: BTreeMap<JobId, Option<u16>>,
}

impl Alone {
    async fn run(mut self, mut refused: mpsc::UnboundedReceiver<Refused>) {
        while let Some(Some(first)) = self.taking.run_until_cancelled(refused.recv()).await {
            self.wait_in_line(first);
            while let Some((suspect, cluster)) = self.line.pop_first() {
                let (turn, over) = oneshot::channel();
                if self.take(suspect, cluster, turn).await.is_none() {
                    return;
                }
                let Some(Err(_)) = self.taking.run_until_cancelled(over).await else { return };
                while let Ok(more) = refused.try_recv() {
                    self.wait_in_line(more);
                }
            }
        }
    }

    fn wait_in_line(&mut self, (suspects, cluster): Refused) {
        for suspect in suspects {
            if self.line.len() < LINE {
                self.line.insert(suspect, cluster);
            }
        }
    }

    /// Claims it when there is room; `None` when the session is over.
    async fn take(&self, suspect: JobId, cluster: Option<u16>, turn: Turn) -> Option<()> {
        if let Some(cluster) = cluster {
            let (reply, answer) = oneshot::channel();
            self.inbox.send(Message::Reserve { cluster, wanted: 1, reply }).await.ok()?;
            if answer.await.ok()? == 0 {
                // It will be hinted again.
                return Some(());
            }
        }
        let Claimer { worker, id, served, .. } = &self.claimer;
        failpoint::pass("alone.refused");
        let claim = || worker.leases.claim_alone(*id, served, suspect);
        let job = match self.claimer.answer(claim).await? {
            Some(Claimed::Granted(job)) => {
                failpoint::pass("alone.committed");
                Some(job)
            }
            Some(Claimed::Refused(_) | Claimed::Absent) | None => None,
        };
        self.inbox.send(Message::ClaimedAlone { cluster, job, turn }).await.ok()
    }
}

/// How long a job waited for its first claim. Later ones of the attempt are adoptions: nobody waited for those in a queue.
fn count_wait(job: &Job) {
    let life = &job.life;
    if life.state == JobState::Claimed
        && life.fruitless_claims == 1
        && let Some(claimed_at) = life.claimed_at
    {
        let waited = (claimed_at - life.due_at).to_std().unwrap_or_default();
        metrics::histogram!("jobgate_claim_wait_seconds", "cluster" => job.cluster.to_string())
            .record(waited.as_secs_f64());
    }
}
