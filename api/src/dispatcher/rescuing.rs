//! The loop around [`Rescue`]: performs its effects and tells it what happened.

use super::{
    Shared, Timer,
    hinting::{answered, count_hints},
    publishing::{publish, takes},
    rescue::{Effect, Input, Rescue, Rules, ToWorker},
};
use futures::{FutureExt as _, StreamExt as _, future::BoxFuture, stream::FuturesUnordered};
use jobgate_shared::{broker::Route, domain::JobId, failpoint};
use std::sync::Arc;
use tokio_util::sync::CancellationToken;

/// Lifetimes of a hint a worker is given to adopt what it was hinted: adopting waits for nothing but the store.
const HINT_LIFETIMES: u32 = 2;

/// Runs until shutdown.
pub(super) async fn run(shared: Arc<Shared>, shutdown: CancellationToken) -> anyhow::Result<()> {
    shutdown.run_until_cancelled(drive(shared)).await.unwrap_or(Ok(()))
}

async fn drive(shared: Arc<Shared>) -> anyhow::Result<()> {
    let parts = &shared.parts;
    let began = parts.clock.monotonic();
    let hint_for = *parts.config.hint_ttl * HINT_LIFETIMES;
    let mut rescue = Rescue::new(Rules { lease: parts.lease, hint_for, sole: parts.sole });
    let mut timer = Timer::new();
    let mut open: FuturesUnordered<BoxFuture<'static, Input>> = FuturesUnordered::new();
    let mut health = parts.broker.health();
    health.mark_changed();
    let mut effects = Vec::new();
    loop {
        let input = tokio::select! {
            // Health first: what is known of it decides what the first round may do.
            biased;
            Ok(()) = health.changed() => Input::Broker(takes(&mut health)),
            Some(input) = open.next() => input,
            () = timer.rung() => Input::Rested,
        };
        rescue.step(parts.clock.monotonic() - began, input, &mut effects);
        for effect in effects.drain(..) {
            match effect {
                Effect::Rest(rest) => timer.set(rest),
                Effect::Deaths(workers) => {
                    tracing::warn!(workers, "leases of workers ran out; their jobs are handed on");
                    metrics::counter!("jobgate_lease_expiries_total").increment(workers);
                }
                Effect::Serving(serving) => {
                    shared.serving.send_if_modified(|known| {
                        let changed = *known != serving;
                        *known = serving;
                        changed
                    });
                }
                Effect::ReadWorkers => open.push(shared.clone().read_workers().boxed()),
                Effect::Fetch { dead, limit, hint_for } => {
                    let shared = shared.clone();
                    let fetch = async move {
                        let mut found = shared.parts.store.stranded(&dead, limit, hint_for).await;
                        if let Ok(found) = &mut found {
                            // Handed back by a claimant; another one finds it without a hint.
                            found.retain(|group| !shared.parts.outside.contains(&group.cluster));
                        }
                        if found.as_ref().is_ok_and(|found| !found.is_empty()) {
                            failpoint::pass("rescue.marked");
                        }
                        Input::Fetched(answered(found, "fetch stranded jobs"))
                    };
                    open.push(fetch.boxed());
                }
                Effect::Publish(hints) => open.push(shared.clone().publish_rescue(hints).boxed()),
                Effect::Tell { jobs, may_lose } => {
                    let shared = shared.clone();
                    let tell = async move {
                        let lost_after = may_lose.then_some(*shared.parts.config.lost_after);
                        answered(shared.parts.store.vanished(&jobs, lost_after).await, "tell jobs to wait");
                        Input::Told
                    };
                    open.push(tell.boxed());
                }
                Effect::Unhint(jobs) => {
                    let shared = shared.clone();
                    let unhint = async move {
                        failpoint::pass("rescue.unhinting");
                        if answered(shared.parts.store.unhint(&jobs).await, "forget hints").is_some() {
                            failpoint::pass("rescue.unhinted");
                        }
                        Input::Unhinted
                    };
                    open.push(unhint.boxed());
                }
            }
        }
    }
}

impl Shared {
    async fn read_workers(self: Arc<Self>) -> Input {
        let outside = &self.parts.outside;
        let mut workers = answered(self.parts.store.workers().await, "read the workers");
        if let Some(workers) = &mut workers {
            // Claimants take no hints, and adopt from each other without any.
            workers
                .retain(|w| w.clusters.is_empty() || w.clusters.iter().any(|c| !outside.contains(&c.name)));
        }
        Input::Workers(workers, self.parts.clock.now())
    }

    async fn publish_rescue(self: Arc<Self>, hints: Vec<ToWorker>) -> Input {
        let messages = hints.iter().map(|hint| (Route::Worker(hint.worker), hint.jobs.clone())).collect();
        let routed = publish(&*self.parts.broker, messages).await;
        failpoint::pass("rescue.hinted");
        let mut failed: Vec<JobId> = Vec::new();
        for (hint, routed) in hints.into_iter().zip(routed) {
            if routed {
                let jobs = hint.jobs.len() as u64;
                tracing::info!(worker = %hint.worker, cluster = %hint.cluster, jobs, "stranded jobs are handed on");
                count_hints(&hint.cluster, "rescue", jobs);
                metrics::counter!("jobgate_rescued_jobs_total").increment(jobs);
            } else {
                failed.extend(hint.jobs);
            }
        }
        Input::Published(failed)
    }
}
