//! The loop around [`Plan`]: performs its effects and tells it what happened.

use super::{
    Shared, Timer,
    plan::{Effect, Input, Limits, Look, Plan, Set, Wake},
    publishing::{publish, takes},
};
use futures::{FutureExt as _, StreamExt as _, future::BoxFuture, stream::FuturesUnordered};
use jobgate_shared::{
    broker::Route,
    domain::{ClusterName, JobId},
    failpoint,
    store::{ClusterSetting, Due, Hinted, StoreError},
    wire::Nudge,
};
use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};
use tokio_util::sync::CancellationToken;

/// Runs until shutdown.
pub(super) async fn run(shared: Arc<Shared>, shutdown: CancellationToken) -> anyhow::Result<()> {
    let ended = shutdown.run_until_cancelled(Hinting::new(shared.clone()).drive()).await;
    // Nobody looks any more, so nobody knows how much room there is.
    shared.parts.budget.close();
    ended.unwrap_or(Ok(()))
}

struct Hinting {
    shared: Arc<Shared>,
    plan: Plan,
    timer: Timer,
    open: FuturesUnordered<BoxFuture<'static, Input>>,
    /// Clusters a gauge was set for: one that has nothing left is set to zero, not left standing.
    shown: BTreeSet<ClusterName>,
}

impl Hinting {
    fn new(shared: Arc<Shared>) -> Self {
        let config = &shared.parts.config;
        let limits =
            Limits { outstanding: config.hints_outstanding.get().into(), hint_ttl: *config.hint_ttl };
        Self {
            shared,
            plan: Plan::new(limits),
            timer: Timer::new(),
            open: FuturesUnordered::new(),
            shown: BTreeSet::new(),
        }
    }

    async fn drive(mut self) -> anyhow::Result<()> {
        let shared = self.shared.clone();
        let began = shared.parts.clock.monotonic();
        let mut nudges = shared.parts.broker.nudges();
        let mut health = shared.parts.broker.health();
        let mut serving = shared.serving.subscribe();
        serving.mark_changed();
        health.mark_changed();
        let mut effects = Vec::new();
        loop {
            let input = tokio::select! {
                // What others can send without end comes last.
                biased;
                Ok(()) = health.changed() => Input::Broker(takes(&mut health)),
                Ok(()) = serving.changed() => Input::Workers(serving.borrow_and_update().clone()),
                Some(input) = self.open.next() => input,
                () = self.timer.rung() => Input::Wake(Wake::Rested),
                () = shared.parts.budget.wanted() => Input::Wake(Wake::Wanted),
                Some(nudge) = nudges.next() => match nudge.body {
                    Nudge::Changed => Input::Wake(Wake::Changed),
                    Nudge::Settings => Input::Wake(Wake::Settings),
                    Nudge::Cancel { .. } => continue,
                },
            };
            if let Input::Looked(Some(look)) = &input {
                self.show(&look.hinted);
            }
            self.plan.step(shared.parts.clock.monotonic() - began, input, &mut effects);
            for effect in effects.drain(..) {
                self.perform(effect);
            }
        }
    }

    fn perform(&mut self, effect: Effect) {
        let shared = self.shared.clone();
        let answer = match effect {
            Effect::Look { settings } => {
                self.timer.stop();
                async move { shared.look(settings).await }.boxed()
            }
            Effect::AskWaiting(cluster) => async move {
                let messages = shared.parts.broker.hints_waiting(&cluster).await;
                Input::Waiting(cluster, messages)
            }
            .boxed(),
            Effect::Fetch { cluster, limit, hint_for, again_after } => async move {
                let due = shared.parts.store.due(&cluster, limit, hint_for, again_after).await;
                if due.as_ref().is_ok_and(|due| !due.is_empty()) {
                    failpoint::pass("dispatch.marked");
                }
                Input::Fetched(cluster, answered(due, "fetch due jobs"))
            }
            .boxed(),
            Effect::Publish(cluster, messages) => async move {
                let failed = shared.publish(&cluster, messages).await;
                Input::Published(cluster, failed)
            }
            .boxed(),
            Effect::Unhint(jobs) => async move {
                failpoint::pass("dispatch.unhinting");
                if answered(shared.parts.store.unhint(&jobs).await, "forget hints").is_some() {
                    failpoint::pass("dispatch.unhinted");
                }
                Input::Unhinted
            }
            .boxed(),
            Effect::Room { clusters, unseen } => {
                let room = |jobs: u64| usize::try_from(jobs).unwrap_or(usize::MAX);
                let clusters = clusters.into_iter().map(|(cluster, jobs)| (cluster, room(jobs)));
                // Acceptance hints nobody outside either.
                let outside = shared.parts.outside.iter().map(|cluster| (cluster.clone(), 0));
                return shared.parts.budget.set(clusters.chain(outside).collect(), room(unseen));
            }
            Effect::Rest(rest) => return self.timer.set(rest),
        };
        self.open.push(answer);
    }

    fn show(&mut self, hinted: &[Hinted]) {
        let mut counts: BTreeMap<ClusterName, u64> =
            std::mem::take(&mut self.shown).into_iter().map(|cluster| (cluster, 0)).collect();
        for one in hinted {
            self.shown.insert(one.cluster.clone());
            counts.insert(one.cluster.clone(), one.outstanding);
        }
        for (cluster, jobs) in counts {
            let jobs = f64::from(u32::try_from(jobs).unwrap_or(u32::MAX));
            metrics::gauge!("jobgate_hints_outstanding", "cluster" => cluster.to_string()).set(jobs);
        }
    }
}

fn set(settings: &[ClusterSetting]) -> Set {
    let those = |are: fn(&ClusterSetting) -> bool| {
        settings.iter().filter(|one| are(one)).map(|one| one.cluster.clone()).collect()
    };
    Set { paused: those(|one| one.paused), limited: those(|one| one.max_in_flight.is_some()) }
}

impl Shared {
    async fn look(&self, settings: bool) -> Input {
        self.parts.budget.look();
        let outside = &self.parts.outside;
        let mut ran_low = self.parts.budget.ran_low();
        ran_low.retain(|cluster| !outside.contains(cluster));
        let mut hinted = answered(self.parts.store.outstanding().await, "count hints");
        if let Some(hinted) = &mut hinted {
            hinted.retain(|one| !outside.contains(&one.cluster));
        }
        let set = if settings && hinted.is_some() {
            let settings = answered(self.parts.store.cluster_settings().await, "read cluster settings");
            settings.map(|all| set(&all))
        } else {
            None
        };
        Input::Looked(hinted.map(|hinted| Look { hinted, set, ran_low }))
    }

    async fn publish(&self, cluster: &ClusterName, messages: Vec<Vec<Due>>) -> Vec<JobId> {
        let route = Route::Cluster(cluster.clone());
        let ids = |message: &Vec<Due>| message.iter().map(|due| due.job).collect();
        let hints = messages.iter().map(|message| (route.clone(), ids(message))).collect();
        let routed = publish(&*self.parts.broker, hints).await;
        failpoint::pass("dispatch.hinted");
        let (mut fresh, mut again, mut failed) = (0, 0, Vec::new());
        let latency = metrics::histogram!("jobgate_dispatch_latency_seconds");
        for (message, routed) in messages.into_iter().zip(routed) {
            if !routed {
                failed.extend(message.iter().map(|due| due.job));
                continue;
            }
            for due in message {
                if due.again {
                    again += 1;
                } else {
                    fresh += 1;
                    latency.record(due.waited);
                }
            }
        }
        for (kind, hints) in [("fresh", fresh), ("again", again)] {
            count_hints(cluster, kind, hints);
        }
        failed
    }
}

/// Counts jobs hinted.
pub(super) fn count_hints(cluster: &ClusterName, kind: &'static str, jobs: u64) {
    let labels = [("cluster", cluster.to_string()), ("kind", kind.to_owned())];
    metrics::counter!("jobgate_hints_published_total", &labels).increment(jobs);
}

/// The answer, or nothing and a line in the log.
pub(super) fn answered<T>(answer: Result<T, StoreError>, asked: &'static str) -> Option<T> {
    answer
        .map_err(|error| {
            let error = format!("{:#}", anyhow::Error::new(error));
            tracing::warn!(error, "the dispatcher cannot {asked}; it tries again");
        })
        .ok()
}
