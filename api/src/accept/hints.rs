//! Hints for what was just stored: within the room the dispatcher leaves, after the commit, and nobody waits for them.

use super::{Accepted, Acceptor};
use jobgate_shared::{
    broker::{Published, Route},
    domain::{ClusterName, JobId, JobState, NewJob},
    failpoint,
    wire::{Hint, MAX_HINT},
};
use std::{collections::BTreeMap, sync::Arc};

impl Acceptor {
    /// Room for a hint of each job, by cluster; a cluster that has not enough for all gives none and is left to the
    /// dispatcher, which knows what is urgent.
    pub(super) fn take_room(&self, jobs: &[NewJob]) -> BTreeMap<ClusterName, usize> {
        let mut wanted: BTreeMap<ClusterName, usize> = BTreeMap::new();
        for job in jobs {
            match wanted.get_mut(&job.cluster) {
                Some(n) => *n += 1,
                None => drop(wanted.insert(job.cluster.clone(), 1)),
            }
        }
        wanted.retain(|cluster, n| {
            let granted = self.budget.try_take(cluster, *n);
            if granted < *n {
                self.budget.give_back(cluster, granted);
            }
            granted == *n
        });
        wanted
    }

    /// Rings for what was stored: hints where room was taken, the dispatcher for the rest, whoever watches the feed.
    pub(super) fn ring(self: &Arc<Self>, answers: &[Accepted], taken: BTreeMap<ClusterName, usize>) {
        let mut due: BTreeMap<&ClusterName, Vec<(i16, JobId)>> = BTreeMap::new();
        let mut left_waiting = false;
        let mut created = 0u64;
        for answer in answers {
            let Accepted::Created(job) = answer else { continue };
            created += 1;
            // The same test the store made when it marked the row hinted.
            if job.life.state != JobState::Initialized || job.life.due_at > job.created_at {
                continue;
            }
            if taken.contains_key(&job.cluster) {
                due.entry(&job.cluster).or_default().push((-job.priority, job.id));
            } else {
                left_waiting = true;
            }
        }
        if created > 0 {
            metrics::counter!("jobgate_jobs_accepted_total").increment(created);
            self.feed.poke();
        }
        if left_waiting {
            self.budget.wake();
        }
        let mut hints = Vec::new();
        for (cluster, n) in taken {
            let mut jobs = due.remove(&cluster).unwrap_or_default();
            if jobs.len() < n {
                self.budget.give_back(&cluster, n - jobs.len());
            }
            jobs.sort_unstable();
            let ids: Vec<JobId> = jobs.into_iter().map(|(_, id)| id).collect();
            hints.extend(ids.chunks(MAX_HINT).map(|chunk| (cluster.clone(), chunk.to_vec())));
        }
        if !hints.is_empty() {
            self.tasks.spawn("accept hints", self.clone().publish(hints));
        }
    }

    async fn publish(self: Arc<Self>, hints: Vec<(ClusterName, Vec<JobId>)>) {
        let publishing = hints.into_iter().map(async |(cluster, jobs)| {
            let route = Route::Cluster(cluster.clone());
            failpoint::pass("accept.hinting");
            match self.broker.publish_hint(&route, Hint { jobs: jobs.clone() }).await {
                // Without a queue nobody hears it; the dispatcher tries again when the hint has run out.
                Ok(Published::Routed | Published::Unroutable) => failpoint::pass("accept.hinted"),
                Err(error) => self.take_back(&cluster, &jobs, error.into()).await,
            }
        });
        futures::future::join_all(publishing).await;
    }

    /// The broker did not take a hint: these jobs are the dispatcher's.
    async fn take_back(&self, cluster: &ClusterName, jobs: &[JobId], error: anyhow::Error) {
        metrics::counter!("jobgate_accept_hints_failed_total").increment(1);
        tracing::debug!(%cluster, error = format!("{error:#}"), "a hint was not published; the dispatcher will");
        self.budget.give_back(cluster, jobs.len());
        failpoint::pass("accept.unhinting");
        match self.store.unhint(jobs).await {
            Ok(()) => failpoint::pass("accept.unhinted"),
            Err(error) => {
                // Then the hint runs out by itself.
                tracing::debug!(%cluster, error = format!("{:#}", anyhow::Error::from(error)), "a hint stays marked");
            }
        }
        self.budget.wake();
    }
}
