//! `/v1/queues`, `/v1/clusters`, `/v1/workers`: what operators look at when jobs wait, and set.

use super::{
    Api,
    extract::{Caller, Operator, Params, RawJson, Reading, Segments, accepts},
    json,
    limits::MAX_SMALL,
    problem::{Answer, Kind, Problem},
};
use crate::{clusters::ClusterInfo, waiting::Sight};
use axum::{Json, extract::State, http::HeaderMap};
use chrono::{DateTime, Utc};
use jobgate_shared::{
    domain::{ClusterName, JobState, WorkerId},
    store::{Oldest, Worker},
    wire::Nudge,
};
use serde::{Deserialize, Deserializer, Serialize};
use std::{collections::BTreeSet, sync::Arc};

/// Greatest limit of jobs in flight.
const MAX_LIMIT: u32 = 1_000_000;

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
    /// The longest wait at each priority, of every project; null for a token of one project.
    oldest: Option<Vec<QueueAge>>,
    /// Due jobs workers were told of and have not taken, of every project; null for a token of one project.
    hints_outstanding: Option<u64>,
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
    // What tells of other projects' jobs is nothing for who does not see them.
    let sees_all = caller.principal.project.is_none();
    let ages = |cluster: &ClusterName| {
        let of_cluster = oldest.iter().filter(|o| o.cluster == *cluster);
        let age = |o: &Oldest| QueueAge {
            priority: o.priority,
            due_since: o.due_since,
            age_seconds: (now - o.due_since).to_std().unwrap_or_default().as_secs_f64(),
        };
        of_cluster.map(age).collect()
    };
    let outstanding =
        |cluster: &ClusterName| hinted.iter().filter(|h| h.cluster == *cluster).map(|h| h.outstanding).sum();
    let queue = |cluster: ClusterName| Queue {
        paused: sight.setting(&cluster).is_some_and(|setting| setting.paused),
        workers: serving(&sight, &cluster).count(),
        depths: sum(depths.iter().filter(|d| d.cluster == cluster).map(|d| ((d.priority, d.state), d.jobs))),
        oldest: sees_all.then(|| ages(&cluster)),
        hints_outstanding: sees_all.then(|| outstanding(&cluster)),
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
    /// Most of its jobs in flight at once (`CLAIMED`, `PENDING` or `RUNNING`), over all workers, as an operator set it;
    /// no limit when null.
    max_in_flight: Option<u32>,
    /// How those who serve it see its resource manager.
    health: Health,
    /// Workers that serve it.
    workers: Vec<WorkerId>,
    /// What is wrong with its resource manager, as those workers see it.
    parked: Vec<Parked>,
}

/// How a resource manager does, as those see it who speak to it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, utoipa::ToSchema)]
#[serde(rename_all = "snake_case")]
pub(super) enum Health {
    /// It answers everybody.
    Up,
    /// It answers some, and not others.
    Degraded,
    /// It answers nobody: its jobs wait until it does.
    Down,
    /// Nobody speaks to it.
    Unserved,
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
    let setting = sight.setting(&info.name);
    let paused = setting.filter(|setting| setting.paused);
    let parked = |worker: &Worker| {
        let seen = worker.clusters.iter().find(|c| c.name == info.name)?;
        Some(Parked { worker: worker.id, reason: seen.parked.clone()? })
    };
    let workers: Vec<WorkerId> = serving(sight, &info.name).map(|worker| worker.id).collect();
    let parked: Vec<Parked> = serving(sight, &info.name).filter_map(parked).collect();
    let health = match (workers.len(), parked.len()) {
        (0, _) => Health::Unserved,
        (_, 0) => Health::Up,
        (workers, parked) if parked < workers => Health::Degraded,
        _ => Health::Down,
    };
    Cluster {
        is_default: api.clusters.default_cluster() == Some(&info.name),
        paused: paused.is_some(),
        paused_by: paused.map(|s| s.by.clone()),
        paused_at: paused.map(|s| s.at),
        max_in_flight: setting.and_then(|s| s.max_in_flight),
        health,
        workers,
        parked,
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
    let info = configured(api, name)?;
    let by = &operator.0.principal.by;
    api.store.set_paused(&info.name, paused, by).await?;
    tracing::info!(cluster = %info.name, by, paused, "cluster {} was {}", info.name, if paused { "paused" } else { "resumed" });
    changed(api, info, !paused).await
}

/// What an operator sets on a cluster; what is absent stays as it is.
#[derive(Debug, Deserialize, utoipa::ToSchema)]
#[serde(deny_unknown_fields)]
#[schema(example = json!({"max_in_flight": 500}))]
pub(super) struct ClusterChange {
    /// Most of its jobs in flight at once, over all workers: no more are claimed than that. What is in flight already
    /// stays, and a job whose worker died is taken over all the same. Null lifts the limit.
    #[allow(clippy::option_option, reason = "absent leaves the limit as it is, null lifts it")]
    #[schema(value_type = Option<i64>, minimum = 0, maximum = 1_000_000)]
    #[serde(default, deserialize_with = "told")]
    max_in_flight: Option<Option<i64>>,
}

/// A field that is there, be it null.
#[allow(clippy::option_option, reason = "as the field")]
fn told<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<Option<i64>>, D::Error> {
    Option::deserialize(deserializer).map(Some)
}

/// Limits what a cluster's workers take on together. A limit is kept until it is changed.
#[utoipa::path(patch, path = "/v1/clusters/{name}", tag = "operations", operation_id = "change_cluster",
    params(("name" = String, Path, description = "The cluster")),
    request_body = ClusterChange,
    responses((status = 200, description = "How it stands now", body = Cluster)))]
pub(super) async fn change(
    State(api): State<Arc<Api>>,
    operator: Operator,
    segments: Segments,
    params: Params,
    headers: HeaderMap,
    RawJson(body): RawJson<MAX_SMALL>,
) -> Answer<Json<Cluster>> {
    accepts(&headers, "application/json")?;
    params.end()?;
    let ClusterChange { max_in_flight } = json::read(&body)?;
    let info = configured(&api, segments.at(0))?;
    if let Some(limit) = max_in_flight {
        let fits = |limit| u32::try_from(limit).ok().filter(|limit| *limit <= MAX_LIMIT);
        let outside = || Problem::invalid("max_in_flight", format!("must be 0 to {MAX_LIMIT}"));
        let limit = limit.map(|limit| fits(limit).ok_or_else(outside)).transpose()?;
        let by = &operator.0.principal.by;
        api.store.limit(&info.name, limit, by).await?;
        tracing::info!(cluster = %info.name, by, max_in_flight = limit, "the limit of cluster {} was set", info.name);
    }
    changed(&api, info, true).await
}

fn configured<'a>(api: &'a Api, name: &str) -> Answer<&'a ClusterInfo> {
    let known = api.clusters.clusters().iter().find(|info| info.name.as_str() == name);
    known.ok_or_else(|| Problem::new(Kind::NotFound, "no such cluster is configured"))
}

/// Tells everybody of a change of settings, and the caller how the cluster stands now.
async fn changed(api: &Api, info: &ClusterInfo, more_may_begin: bool) -> Answer<Json<Cluster>> {
    api.nudge(vec![Nudge::Settings]);
    if more_may_begin {
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
