//! Listings, newest first: candidates from whichever small table or index has the states asked for, then the jobs themselves,
//! filtered. The work for one page is bounded whatever the file holds; a page cut short says where to go on.

use super::{
    SqliteStore,
    rows::{JOB, JOBS, job, list, micros},
    writer::fault,
};
use crate::{
    domain::{JobId, JobState},
    store::{
        Filter, Page, PageRequest, Scope, StoreResult,
        page::{Filling, span, strides},
    },
};
use futures::TryStreamExt as _;
use serde_json::Value;
use sqlx::{QueryBuilder, Sqlite};
use std::collections::BTreeSet;
use uuid::Uuid;

impl SqliteStore {
    pub(super) async fn page(&self, scope: &Scope, filter: &Filter, page: PageRequest) -> StoreResult<Page> {
        const OPERATION: &str = "list jobs";
        let (oldest, mut below) = span(filter, page);
        let mut filling = Filling::new(page.limit);
        for stride in strides(page.limit) {
            let looked_at: Vec<Uuid> = candidates(scope, filter, oldest, below, stride)
                .build_query_scalar()
                .fetch_all(&self.readers)
                .await
                .map_err(|e| fault(e, OPERATION))?;
            let reached = looked_at.last().copied().filter(|_| looked_at.len() >= stride);
            // One more than fits tells whether there is another page.
            let mut query = matching(scope, filter, looked_at, filling.room() + 1);
            // One by one: all of them at once may be more than fits into memory.
            let mut rows = query.build().fetch(&self.readers);
            while let Some(row) = rows.try_next().await.map_err(|e| fault(e, OPERATION))? {
                if !filling.take(job(&row)?) {
                    return Ok(filling.page(true));
                }
            }
            let Some(reached) = reached else { return Ok(filling.page(false)) };
            below = reached;
        }
        Ok(Page { next: Some(JobId(below)), ..filling.page(false) })
    }
}

/// Where jobs in a state are found without a look at those that have ended well; none when only among all jobs. Named,
/// because the planner would rather walk down the key, past every job.
fn place(state: JobState) -> Option<String> {
    match state {
        JobState::Held => Some("job_state INDEXED BY job_state_held WHERE state = 0".to_owned()),
        JobState::Initialized => Some("waiting WHERE true".to_owned()),
        JobState::Claimed | JobState::Pending | JobState::Running => {
            Some("job_state INDEXED BY job_state_owned WHERE state IN (2, 3, 4)".to_owned())
        }
        JobState::Finished => None,
        // Each by itself: only within a state does the index have them in order.
        JobState::Failed | JobState::Canceled | JobState::TimedOut | JobState::Lost => {
            let code = state.code();
            Some(format!("job_state INDEXED BY job_state_other WHERE state > 5 AND state = {code}"))
        }
    }
}

/// Ids that may be meant, newest first.
fn candidates(
    scope: &Scope,
    filter: &Filter,
    oldest: Uuid,
    below: Uuid,
    stride: usize,
) -> QueryBuilder<Sqlite> {
    let stride = i64::try_from(stride).unwrap_or(i64::MAX);
    let places: Option<BTreeSet<String>> = filter.states.iter().map(|state| place(*state)).collect();
    let mut sql = QueryBuilder::new("-- list_candidates\n");
    let Some(places) = places.filter(|places| !places.is_empty()) else {
        sql.push("SELECT id FROM jobs WHERE id < ").push_bind(below).push(" AND id >= ").push_bind(oldest);
        if let Scope::Project(project) = scope {
            sql.push(" AND project = ").push_bind(project.as_str().to_owned());
        }
        sql.push(" ORDER BY id DESC LIMIT ").push_bind(stride);
        return sql;
    };
    for (i, place) in places.into_iter().enumerate() {
        sql.push(if i > 0 { " UNION ALL " } else { "" });
        sql.push("SELECT id FROM (SELECT job AS id FROM ").push(place);
        sql.push(" AND job < ").push_bind(below).push(" AND job >= ").push_bind(oldest);
        sql.push(" ORDER BY job DESC LIMIT ").push_bind(stride).push(")");
    }
    sql.push(" ORDER BY id DESC LIMIT ").push_bind(stride);
    sql
}

/// Those candidates that are meant, whole, newest first.
fn matching(scope: &Scope, filter: &Filter, candidates: Vec<Uuid>, limit: usize) -> QueryBuilder<Sqlite> {
    let mut sql = QueryBuilder::new("-- list_jobs\nSELECT ");
    sql.push(JOB).push(" FROM ").push(JOBS);
    sql.push(" WHERE jobs.id IN (SELECT unhex(value) FROM json_each(").push_bind(list(candidates)).push("))");
    restrict(&mut sql, scope, filter);
    sql.push(" ORDER BY jobs.id DESC LIMIT ").push_bind(i64::try_from(limit).unwrap_or(i64::MAX));
    sql
}

fn restrict(query: &mut QueryBuilder<Sqlite>, scope: &Scope, filter: &Filter) {
    if let Scope::Project(project) = scope {
        query.push(" AND jobs.project = ").push_bind(project.as_str().to_owned());
    }
    if !filter.states.is_empty() {
        let codes: Value = filter.states.iter().map(|state| state.code()).collect();
        query
            .push(" AND job_state.state IN (SELECT value FROM json_each(")
            .push_bind(codes.to_string())
            .push("))");
    }
    for label in &filter.labels {
        query
            .push(" AND EXISTS (SELECT 1 FROM json_each(jobs.labels) WHERE value = ")
            .push_bind(label.clone())
            .push(")");
    }
    if let Some(cluster) = &filter.cluster {
        query.push(" AND jobs.cluster = ").push_bind(cluster.as_str().to_owned());
    }
    if let Some(name) = &filter.name {
        query.push(" AND jobs.name = ").push_bind(name.clone());
    }
    if let Some(from) = filter.created_after {
        query.push(" AND jobs.created_at >= ").push_bind(micros(from));
    }
    if let Some(to) = filter.created_before {
        query.push(" AND jobs.created_at < ").push_bind(micros(to));
    }
}
