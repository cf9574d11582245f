//! Listings, newest first: candidates from whichever small table or index knows the states asked for, then the rows
//! themselves, filtered. The work for one page is bounded whatever the tables hold; a page cut short says where to go on.

use super::{
    pools::{Lane, Pools, Work},
    rows::{bytes_before, job, job_columns, most_bytes},
};
use crate::{
    domain::{Job, JobId, JobState, Phase},
    store::{
        Filter, Page, PageRequest, Scope, StoreResult,
        page::{Filling, span, strides, up_to_a_page},
    },
};
use futures::FutureExt as _;
use sqlx::{PgConnection, Postgres, QueryBuilder};
use uuid::Uuid;

/// Where jobs in certain states are found.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Source {
    /// HELD, INITIALIZED.
    Waiting,
    /// CLAIMED, PENDING, RUNNING.
    Claims,
    /// One of the bad ends.
    Ends(JobState),
}

/// The sources that hold every job in these states; none when only the table of all jobs does.
fn sources(states: &[JobState]) -> Option<Vec<Source>> {
    let mut sources = Vec::new();
    for state in states {
        let source = match state.phase() {
            Phase::Waiting => Source::Waiting,
            Phase::Claimed | Phase::Pending | Phase::Running => Source::Claims,
            Phase::Ended if *state == JobState::Finished => return None,
            Phase::Ended => Source::Ends(*state),
        };
        if !sources.contains(&source) {
            sources.push(source);
        }
    }
    (!sources.is_empty()).then_some(sources)
}

/// One look at the candidates.
struct Look {
    scope: Scope,
    filter: Filter,
    /// Only from this on.
    oldest: Uuid,
    /// Only below this.
    below: Uuid,
    /// So many candidates.
    stride: usize,
    /// So many jobs at most, and none behind those that are too much for a page already.
    limit: usize,
}

/// What a look found.
struct Found {
    jobs: Vec<Job>,
    /// The last candidate looked at, if there may be more below it.
    reached: Option<Uuid>,
}

impl Pools {
    pub(super) async fn list(&self, scope: &Scope, filter: &Filter, page: PageRequest) -> StoreResult<Page> {
        let (oldest, mut below) = span(filter, page);
        if page.limit == 0 {
            return Ok(Page::default());
        }
        let mut filling = Filling::new(page.limit);
        for stride in strides(page.limit) {
            let look = Look {
                scope: scope.clone(),
                filter: filter.clone(),
                oldest,
                below,
                stride,
                // One more than fits tells whether there is another page.
                limit: filling.room() + 1,
            };
            let found = self.read(Lane::Read, "list jobs", &look, |c, look| look_at(c, look)).await?;
            if found.jobs.into_iter().any(|job| !filling.take(job)) || filling.is_heavy() {
                return Ok(filling.page(true));
            }
            let Some(reached) = found.reached else { return Ok(filling.page(false)) };
            below = reached;
        }
        Ok(Page { next: Some(JobId(below)), ..filling.page(false) })
    }
}

fn look_at<'c>(connection: &'c mut PgConnection, look: &'c Look) -> Work<'c, Found> {
    async move {
        let mut candidates: Vec<Uuid> =
            candidates(look).build_query_scalar().persistent(true).fetch_all(&mut *connection).await?;
        let more = candidates.len() >= look.stride;
        // A job can have ended badly twice, or be in two states asked for while it moves.
        candidates.dedup();
        let reached = candidates.last().copied().filter(|_| more);
        if candidates.is_empty() {
            return Ok(Found { jobs: Vec::new(), reached });
        }
        let rows = matching(look, &candidates).build().persistent(true).fetch_all(connection).await?;
        Ok(Found { jobs: up_to_a_page(rows.iter().map(job))?, reached })
    }
    .boxed()
}

/// Ids that may be meant, newest first. Statements differ only in what they look at, never by a value, so that each kind
/// is prepared once.
fn candidates(look: &Look) -> QueryBuilder<Postgres> {
    let (oldest, stride) = (look.oldest, i64::try_from(look.stride).unwrap_or(i64::MAX));
    let mut sql = QueryBuilder::new("-- list_candidates\n");
    let Some(sources) = sources(&look.filter.states) else {
        match &look.scope {
            Scope::All => {
                sql.push("SELECT j.id FROM jobs j WHERE j.id < ").push_bind(look.below);
                sql.push(" AND j.id >= ").push_bind(oldest);
                sql.push(" ORDER BY j.id DESC LIMIT ").push_bind(stride);
            }
            Scope::Project(project) => {
                // Compared as a pair, only the index of both can serve, and it serves in this order.
                sql.push("SELECT j.id FROM jobs j WHERE j.project = ").push_bind(project.as_str());
                sql.push(" AND j.id < ").push_bind(look.below).push(" AND j.id >= ").push_bind(oldest);
                sql.push(" ORDER BY j.project, j.id DESC LIMIT ").push_bind(stride);
            }
        }
        return sql;
    };
    sql.push("SELECT c.id FROM (");
    for (i, source) in sources.into_iter().enumerate() {
        sql.push(if i > 0 { " UNION ALL (" } else { "(" });
        match (source, &look.scope) {
            (Source::Waiting, _) => {
                sql.push("SELECT w.job_id AS id FROM waiting w WHERE w.job_id < ").push_bind(look.below);
                sql.push(" AND w.job_id >= ").push_bind(oldest).push(" ORDER BY w.job_id DESC");
            }
            (Source::Claims, _) => {
                sql.push("SELECT DISTINCT u.id FROM claims c CROSS JOIN LATERAL unnest(c.job_ids) AS u (id) WHERE u.id < ");
                sql.push_bind(look.below).push(" AND u.id >= ").push_bind(oldest).push(" ORDER BY u.id DESC");
            }
            (Source::Ends(state), Scope::All) => {
                sql.push("SELECT h.job_id AS id FROM job_history h WHERE h.to_state >= 6 AND h.to_state = ");
                sql.push_bind(state.code()).push(" AND h.job_id < ").push_bind(look.below);
                sql.push(" AND h.job_id >= ").push_bind(oldest).push(" ORDER BY h.to_state, h.job_id DESC");
            }
            (Source::Ends(state), Scope::Project(project)) => {
                sql.push("SELECT h.job_id AS id FROM job_history h WHERE h.to_state >= 6 AND h.to_state = ");
                sql.push_bind(state.code()).push(" AND h.project = ").push_bind(project.as_str());
                sql.push(" AND h.job_id < ")
                    .push_bind(look.below)
                    .push(" AND h.job_id >= ")
                    .push_bind(oldest);
                sql.push(" ORDER BY h.to_state, h.project, h.job_id DESC");
            }
        }
        sql.push(" LIMIT ").push_bind(stride).push(")");
    }
    sql.push(") c ORDER BY c.id DESC LIMIT ").push_bind(stride);
    sql
}

/// Those candidates that are meant, whole, newest first, and none behind those that are too much for a page already.
fn matching(look: &Look, candidates: &[Uuid]) -> QueryBuilder<Postgres> {
    let Filter { states, labels, cluster, name, created_after, created_before } = &look.filter;
    let mut sql = QueryBuilder::new(concat!(
        "-- list_jobs\nSELECT * FROM (SELECT ",
        job_columns!(),
        ", ",
        bytes_before!("j.id DESC"),
        " AS above FROM jobs j JOIN job_state s ON s.job_id = ANY (ARRAY[j.id]) WHERE j.id = ANY ("
    ));
    sql.push_bind(candidates.to_vec()).push(")");
    if let Scope::Project(project) = &look.scope {
        sql.push(" AND j.project = ").push_bind(project.as_str().to_owned());
    }
    if !states.is_empty() {
        let codes: Vec<i16> = states.iter().map(|state| state.code()).collect();
        sql.push(" AND s.state = ANY (").push_bind(codes).push(")");
    }
    if !labels.is_empty() {
        sql.push(" AND j.labels @> ").push_bind(labels.clone());
    }
    if let Some(cluster) = cluster {
        sql.push(" AND j.cluster = ").push_bind(cluster.as_str().to_owned());
    }
    if let Some(name) = name {
        sql.push(" AND j.name = ").push_bind(name.clone());
    }
    if let Some(from) = created_after {
        sql.push(" AND j.created_at >= ").push_bind(*from);
    }
    if let Some(to) = created_before {
        sql.push(" AND j.created_at < ").push_bind(*to);
    }
    sql.push(" ORDER BY j.id DESC LIMIT ").push_bind(i64::try_from(look.limit).unwrap_or(i64::MAX));
    sql.push(") m WHERE coalesce(m.above, 0) < ").push_bind(most_bytes()).push(" ORDER BY m.id DESC");
    sql
}
