//! `/v1/queues`, `/v1/clusters`, `/v1/workers`: what operators look at when jobs wait.

use super::{
    Api,
    extract::{Caller, Operator, Params, Reading, Segments, accepts},
    problem::{Answer, Kind, Problem},
};
use crate::{clusters::ClusterInfo, waiting::Sight};
use axum::{Json, extract::State, http::HeaderMap};
use chrono::{DateTime, Utc};
use jobgate_shared::{
    domain::{ClusterName, JobState, WorkerId},
    store::Worker,
    wire::Nudge,
};
use serde::Serialize;
use std::{collections::BTreeSet, sync::Arc};

/// The queues of every cluster.
#[derive(Debug, Serialize, utoipa::ToSchema)]
pub(super) struct Queues {
    /// One for each cluster that is configured or has jobs.
    items: Vec<Queue>,
}

/// The queue of one cluster.
#[derive(Debug, Serialize, utoipa::ToSchema)]
pub(super) struct Queue {
    /// The cluster.
    cluster: ClusterName,
    /// An operator stopped fresh jobs.
    paused: bool,
    /// Workers that serve it.
    workers: usize,
    /// How many jobs stand where; of the caller's projects.
    depths: Vec<QueueDepth>,
    /// The longest wait at each priority; of every project.
    oldest: Vec<QueueAge>,
    /// Due jobs workers were told of and have not taken.
    hints_outstanding: u64,
}

/// Jobs of one priority in one state.
#[derive(Debug, Serialize, utoipa::ToSchema)]
pub(super) struct QueueDepth {
    /// The priority.
    priority: i16,
    /// The state.
    state: JobState,
    /// How many.
    jobs: u64,
}

/// The wait of the oldest due job of one priority.
#[derive(Debug, Serialize, utoipa::ToSchema)]
pub(super) struct QueueAge {
    /// The priority.
    priority: i16,
    /// Since when it is due.
    due_since: DateTime<Utc>,
    /// How long that is.
    age_seconds: f64,
}

/// Tells how many jobs stand where, and how long they wait.
#[utoipa::path(get, path = "/v1/queues", tag = "operations", operation_id = "list_queues",
    responses((status = 200, description = "Every queue", body = Queues)))]
pub(super) async fn queues(
    State(api): State<Arc<Api>>,
    caller: Caller<Reading>,
    params: Params,
    headers: HeaderMap,
) -> Answer<Json<Queues>> {
    accepts(&headers, "application/json")?;
    params.end()?;
    let scope = caller.scope();
    let (depths, oldest, hinted, now, sight) = tokio::try_join!(
        api.store.depths(),
        api.store.oldest(),
        api.store.outstanding(),
        api.store.now(),
        api.lookout.look(),
    )?;
    let depths: Vec<_> = depths.into_iter().filter(|depth| scope.covers(&depth.project)).collect();
    let mut names: BTreeSet<ClusterName> = api.clusters.clusters().iter().map(|c| c.name.clone()).collect();
    names.extend(depths.iter().map(|depth| depth.cluster.clone()));
    let queue = |cluster: ClusterName| Queue {
        paused: paused(&sight, &cluster).is_some(),
        workers: serving(&sight, &cluster).count(),
        depths: sum(depths.iter().filter(|d| d.cluster == cluster).map(|d| ((d.priority, d.state), d.jobs))),
        oldest: oldest
            .iter()
            .filter(|o| o.cluster == cluster)
            .map(|o| QueueAge {
                priority: o.priority,
                due_since: o.due_since,
                age_seconds: (now - o.due_since).to_std().unwrap_or_default().as_secs_f64(),
            })
            .collect(),
        hints_outstanding: hinted.iter().filter(|h| h.cluster == cluster).map(|h| h.outstanding).sum(),
        cluster,
    };
    Ok(Json(Queues { items: names.into_iter().map(queue).collect() }))
}

/// Depths by priority and state, over every project in sight; the most urgent first.
fn sum(depths: impl Iterator<Item = ((i16, JobState), u64)>) -> Vec<QueueDepth> {
    let mut sums = std::collections::BTreeMap::new();
    for ((priority, state), jobs) in depths {
        *sums.entry((std::cmp::Reverse(priority), state)).or_default() += jobs;
    }
    let told = |((priority, state), jobs): ((std::cmp::Reverse<i16>, _), _)| QueueDepth {
        priority: priority.0,
        state,
        jobs,
    };
    sums.into_iter().map(told).collect()
}

fn serving<'a>(sight: &'a Sight, cluster: &'a ClusterName) -> impl Iterator<Item = &'a Worker> {
    let serves = move |worker: &&Worker| worker.alive && worker.clusters.iter().any(|c| c.name == *cluster);
    sight.workers.iter().filter(serves)
}

fn paused<'a>(sight: &'a Sight, cluster: &ClusterName) -> Option<&'a jobgate_shared::store::ClusterSetting> {
    sight.settings.iter().find(|setting| setting.cluster == *cluster && setting.paused)
}

/// Every configured cluster.
#[derive(Debug, Serialize, utoipa::ToSchema)]
pub(super) struct Clusters {
    /// In the order they are configured.
    items: Vec<Cluster>,
}

/// A cluster, and how it stands.
#[derive(Debug, Serialize, utoipa::ToSchema)]
pub(super) struct Cluster {
    /// What it is.
    #[serde(flatten)]
    info: ClusterInfo,
    /// Jobs that name no cluster go here.
    is_default: bool,
    /// An operator stopped fresh jobs.
    paused: bool,
    /// Who did.
    paused_by: Option<String>,
    /// When.
    paused_at: Option<DateTime<Utc>>,
    /// Workers that serve it.
    workers: Vec<WorkerId>,
    /// What is wrong with its resource manager, as those workers see it.
    parked: Vec<Parked>,
}

/// What one worker sees wrong with a cluster.
#[derive(Debug, Serialize, utoipa::ToSchema)]
pub(super) struct Parked {
    /// The worker.
    worker: WorkerId,
    /// What is wrong.
    reason: String,
}

/// Tells what clusters there are, and how they stand.
#[utoipa::path(get, path = "/v1/clusters", tag = "operations", operation_id = "list_clusters",
    responses((status = 200, description = "Every configured cluster", body = Clusters)))]
pub(super) async fn clusters(
    State(api): State<Arc<Api>>,
    _: Caller<Reading>,
    params: Params,
    headers: HeaderMap,
) -> Answer<Json<Clusters>> {
    accepts(&headers, "application/json")?;
    params.end()?;
    let sight = api.lookout.look().await?;
    let items = api.clusters.clusters().iter().map(|info| cluster(&api, &sight, info)).collect();
    Ok(Json(Clusters { items }))
}

fn cluster(api: &Api, sight: &Sight, info: &ClusterInfo) -> Cluster {
    let setting = paused(sight, &info.name);
    let parked = |worker: &Worker| {
        let seen = worker.clusters.iter().find(|c| c.name == info.name)?;
        Some(Parked { worker: worker.id, reason: seen.parked.clone()? })
    };
    Cluster {
        is_default: api.clusters.default_cluster() == Some(&info.name),
        paused: setting.is_some(),
        paused_by: setting.map(|s| s.by.clone()),
        paused_at: setting.map(|s| s.at),
        workers: serving(sight, &info.name).map(|worker| worker.id).collect(),
        parked: serving(sight, &info.name).filter_map(parked).collect(),
        info: info.clone(),
    }
}

/// Stops fresh jobs of a cluster; what its resource manager has goes on.
#[utoipa::path(post, path = "/v1/clusters/{name}/pause", tag = "operations", operation_id = "pause_cluster",
    params(("name" = String, Path, description = "The cluster")),
    responses((status = 200, description = "Paused", body = Cluster)))]
pub(super) async fn pause(
    State(api): State<Arc<Api>>,
    operator: Operator,
    segments: Segments,
    params: Params,
    headers: HeaderMap,
) -> Answer<Json<Cluster>> {
    set_paused(&api, &operator, segments.at(0), params, &headers, true).await
}

/// Lets fresh jobs of a cluster begin again.
#[utoipa::path(post, path = "/v1/clusters/{name}/resume", tag = "operations", operation_id = "resume_cluster",
    params(("name" = String, Path, description = "The cluster")),
    responses((status = 200, description = "Resumed", body = Cluster)))]
pub(super) async fn resume(
    State(api): State<Arc<Api>>,
    operator: Operator,
    segments: Segments,
    params: Params,
    headers: HeaderMap,
) -> Answer<Json<Cluster>> {
    set_paused(&api, &operator, segments.at(0), params, &headers, false).await
}

async fn set_paused(
    api: &Arc<Api>,
    operator: &Operator,
    name: &str,
    params: Params,
    headers: &HeaderMap,
    paused: bool,
) -> Answer<Json<Cluster>> {
    accepts(headers, "application/json")?;
    params.end()?;
    let known = api.clusters.clusters().iter().find(|info| info.name.as_str() == name);
    let info = known.ok_or_else(|| Problem::new(Kind::NotFound, "no such cluster is configured"))?;
    let by = &operator.0.principal.by;
    api.store.set_paused(&info.name, paused, by).await?;
    tracing::info!(cluster = %info.name, by, paused, "cluster {} was {}", info.name, if paused { "paused" } else { "resumed" });
    api.nudge(vec![Nudge::Settings]);
    if !paused {
        api.budget.wake();
    }
    let sight = api.lookout.look().await?;
    Ok(Json(cluster(api, &sight, info)))
}

/// Every worker.
#[derive(Debug, Serialize, utoipa::ToSchema)]
pub(super) struct Workers {
    /// Those alive, and those that died with jobs in hand or of late.
    items: Vec<Worker>,
}

/// Tells what workers there are.
#[utoipa::path(get, path = "/v1/workers", tag = "operations", operation_id = "list_workers",
    responses((status = 200, description = "Every worker", body = Workers)))]
pub(super) async fn workers(
    State(api): State<Arc<Api>>,
    _: Caller<Reading>,
    params: Params,
    headers: HeaderMap,
) -> Answer<Json<Workers>> {
    accepts(&headers, "application/json")?;
    params.end()?;
    Ok(Json(Workers { items: api.lookout.look().await?.workers.clone() }))
}
