//! What workers and recorders may do.

use super::{MemoryStore, Rows};
use crate::domain::{Agreement, ClusterName, Job, JobId, StatusEvent, WorkerId};
use crate::store::kernel::{Decided, Told, decide, refused_for_room};
use crate::store::page::up_to_a_page;
use crate::store::{
    Applied, Apply, Claimed, Heartbeat, Leases, Pulse, Recorded, StoreResult, ToHandBack, ToRecord, Worker,
    WorkerCluster,
};
use async_trait::async_trait;
use std::time::Duration;

#[async_trait]
impl Apply for MemoryStore {
    async fn apply(&self, events: &[StatusEvent]) -> StoreResult<Vec<Applied>> {
        let facts: Vec<_> = events.iter().map(|event| (event.job, Told::Event(event))).collect();
        let decided = decide(&mut Rows { store: self, claimer: None }, &facts).await?;
        Ok(decided.iter().map(Decided::applied).collect())
    }
}

impl MemoryStore {
    async fn claim_jobs(
        &self,
        worker: WorkerId,
        clusters: &[WorkerCluster],
        jobs: &[JobId],
        alone: bool,
    ) -> StoreResult<Vec<Claimed>> {
        let told = Told::Claim { worker, clusters, alone };
        let facts: Vec<_> = jobs.iter().map(|job| (*job, told)).collect();
        let decided = decide(&mut Rows { store: self, claimer: Some(worker) }, &facts).await?;
        let (mut state, _) = self.look();
        let claimed = jobs.iter().zip(decided).map(|(job, answer)| match answer.granted(worker) {
            Err(no) => no,
            Ok(life) => state.jobs.get(job).map_or(Claimed::Absent, |entry| {
                let mut job = entry.job.clone();
                job.life = *life;
                Claimed::Granted(Box::new(job))
            }),
        });
        let claimed: Vec<Claimed> = claimed.collect();
        for job in refused_for_room(jobs, &claimed) {
            state.jobs.entry(job).and_modify(|entry| entry.hinted_until = None);
        }
        Ok(claimed)
    }
}

#[async_trait]
impl Leases for MemoryStore {
    async fn register(&self, worker: &Worker, ttl: Duration) -> StoreResult<()> {
        let (mut state, now) = self.look();
        state.workers.entry(worker.id).or_insert_with(|| Worker {
            registered_at: now,
            expires_at: now + ttl,
            ..worker.clone()
        });
        Ok(())
    }

    async fn heartbeat(&self, worker: WorkerId, pulse: &Pulse) -> StoreResult<Heartbeat> {
        let (mut state, now) = self.look();
        let Some(known) = state.workers.get_mut(&worker).filter(|w| w.expires_at > now) else {
            return Ok(Heartbeat::Expired);
        };
        known.expires_at = now + pulse.ttl;
        known.jobs = pulse.jobs;
        known.draining = pulse.draining;
        for cluster in &mut known.clusters {
            let parked = pulse.parked.iter().find(|(name, _)| *name == cluster.name);
            cluster.parked = parked.map(|(_, why)| why.clone());
        }
        let mine = state.jobs.values().filter(|e| {
            e.job.life.owner == Some(worker) && e.job.life.state.is_owned() && e.job.life.cancel_requested
        });
        let cancel = mine.map(|e| e.job.id).collect();
        let (mut settled, mut lost) = (Vec::new(), Vec::new());
        for (job, attempt, epoch) in &pulse.unsettled {
            let Some(life) = state.jobs.get(job).map(|entry| &entry.job.life) else {
                settled.push(*job);
                continue;
            };
            match life.agreement(worker, *attempt, *epoch) {
                Agreement::Settled => settled.push(*job),
                Agreement::Lost => lost.push(*job),
                Agreement::Open => {}
            }
        }
        Ok(Heartbeat::Renewed { cancel, settled, lost })
    }

    async fn claim(
        &self,
        worker: WorkerId,
        clusters: &[WorkerCluster],
        jobs: &[JobId],
    ) -> StoreResult<Vec<Claimed>> {
        self.claim_jobs(worker, clusters, jobs, false).await
    }

    async fn claim_alone(
        &self,
        worker: WorkerId,
        clusters: &[WorkerCluster],
        job: JobId,
    ) -> StoreResult<Claimed> {
        let claimed = self.claim_jobs(worker, clusters, &[job], true).await?;
        Ok(claimed.into_iter().next().unwrap_or(Claimed::Absent))
    }

    async fn held(&self, worker: WorkerId) -> StoreResult<Vec<JobId>> {
        let (state, _) = self.look();
        let held = state.jobs.values().filter(|entry| entry.job.life.holder() == Some(worker));
        Ok(held.map(|entry| entry.job.id).collect())
    }

    async fn serving(&self, clusters: &[ClusterName]) -> StoreResult<Vec<u32>> {
        let (state, now) = self.look();
        let count = |cluster: &ClusterName| {
            let alive = state.workers.values().filter(|worker| worker.expires_at > now);
            let serving =
                alive.filter(|worker| worker.clusters.iter().any(|served| served.name == *cluster)).count();
            u32::try_from(serving).unwrap_or(u32::MAX)
        };
        Ok(clusters.iter().map(count).collect())
    }

    async fn in_hands(
        &self,
        cluster: &ClusterName,
        owners: &[WorkerId],
        after: Option<JobId>,
        limit: u32,
    ) -> StoreResult<Vec<Job>> {
        let (state, _) = self.look();
        let meant = state.jobs.values().map(|entry| &entry.job).filter(|job| {
            job.cluster == *cluster
                && job.life.state.is_owned()
                && job.life.owner.is_some_and(|owner| owners.contains(&owner))
                && after.is_none_or(|after| job.id > after)
        });
        up_to_a_page(meant.take(limit as usize).cloned().map(Ok))
    }

    async fn record(&self, items: &[ToRecord]) -> StoreResult<Vec<Recorded>> {
        let facts: Vec<_> = items.iter().map(|item| (item.job, Told::Record(item))).collect();
        let decided = decide(&mut Rows { store: self, claimer: None }, &facts).await?;
        let (state, _) = self.look();
        let current = |item: &ToRecord| state.jobs.get(&item.job).map(|entry| Box::new(entry.job.clone()));
        let recorded = items.iter().zip(&decided).map(|(item, answer)| {
            if answer.recorded() { Recorded::Won } else { Recorded::Lost { current: current(item) } }
        });
        Ok(recorded.collect())
    }

    async fn hand_back(&self, worker: WorkerId, items: &[ToHandBack]) -> StoreResult<()> {
        let facts: Vec<_> = items.iter().map(|item| (item.job, Told::HandBack(worker, item))).collect();
        decide(&mut Rows { store: self, claimer: None }, &facts).await?;
        Ok(())
    }

    async fn deregister(&self, worker: WorkerId) -> StoreResult<()> {
        let (mut state, now) = self.look();
        if let Some(known) = state.workers.get_mut(&worker) {
            known.expires_at = known.expires_at.min(now);
        }
        Ok(())
    }

    async fn leftovers(&self, found: &[(JobId, u32, String)]) -> StoreResult<Vec<usize>> {
        let (state, _) = self.look();
        let live = |job: &JobId, attempt: u32, submission: &str| {
            state.jobs.get(job).is_some_and(|entry| entry.job.life.may_start(attempt, submission))
        };
        let left = found.iter().enumerate().filter(|(_, (job, attempt, id))| !live(job, *attempt, id));
        Ok(left.map(|(index, _)| index).collect())
    }
}
