//! Claims of workers that are gone: finding the jobs, hinting them, and pruning claims no job belongs to any more.
//!
//! A job belongs to a claim row while its state row names that row's worker and the epoch beside its id; whoever claims
//! it next writes another row and leaves this one to be pruned.

use super::{
    leases::{HOLDS_JOBS, MOURNED_FOR},
    ledger::Rows,
    pools::{Lane, Pools, Work},
    rows::{Columns, seconds, uuids},
};
use crate::{
    domain::{ClusterName, JobId, Reach, SUSPECT_AFTER, WorkerId},
    store::{
        Applied, StoreResult, Stranded, StrandedJob, Vanished,
        kernel::{Decided, Told, decide},
    },
};
use futures::FutureExt as _;
use sqlx::{AssertSqlSafe, Connection as _, PgConnection, postgres::PgRow};
use std::{
    collections::{BTreeMap, HashMap},
    mem,
    sync::Arc,
    time::Duration,
};
use uuid::Uuid;

/// Most claims looked at in one transaction.
const MAX_ROWS: i64 = 64;
/// Most transactions one call of [`Pools::prune_claims`] makes.
const MAX_PRUNINGS: usize = 16;

/// One row of `claims`, or what is left of it.
#[derive(Debug)]
struct Claim {
    id: i64,
    worker: WorkerId,
    /// Their hint is outstanding.
    hinted: Vec<Held>,
    /// Their hint is not.
    open: Vec<Held>,
}

/// A job as a claim names it.
type Held = (JobId, i32);

impl Claim {
    fn read(row: &PgRow) -> sqlx::Result<Self> {
        let mut columns = Columns::of(row);
        let (id, worker) = (columns.take()?, WorkerId(columns.take()?));
        let (outstanding, hinted): (bool, i32) = (columns.take()?, columns.take()?);
        let (jobs, epochs): (Vec<Uuid>, Vec<i32>) = (columns.take()?, columns.take()?);
        let mut held: Vec<Held> = jobs.into_iter().map(JobId).zip(epochs).collect();
        let hinted = if outstanding { usize::try_from(hinted).unwrap_or(0).min(held.len()) } else { 0 };
        let open = held.split_off(hinted);
        Ok(Self { id, worker, hinted: held, open })
    }

    fn is_empty(&self) -> bool {
        self.hinted.is_empty() && self.open.is_empty()
    }
}

/// The columns [`Claim::read`] reads.
macro_rules! claim_columns {
    () => {
        "c.id, c.worker_id, coalesce(c.hint_until > now(), false), c.hinted, c.job_ids, c.epochs"
    };
}

/// A job that still belongs to a claim.
struct Belonging {
    owner: WorkerId,
    epoch: i32,
    cluster: ClusterName,
    reach: Option<Reach>,
    suspect: bool,
}

/// Of whom to look for jobs, how many, and for how many seconds to hint them.
struct Search {
    owners: Vec<Uuid>,
    dead: Vec<Uuid>,
    limit: usize,
    seconds: f64,
}

impl Pools {
    pub(super) async fn stranded(
        self: &Arc<Self>,
        dead: &[WorkerId],
        limit: u32,
        hint_for: Duration,
    ) -> StoreResult<Vec<Stranded>> {
        let dead: Vec<Uuid> = dead.iter().map(|worker| worker.0).collect();
        let mut owners = dead.clone();
        owners.push(WorkerId::NOBODY.0);
        let search = Search { owners, dead, limit: limit as usize, seconds: seconds(hint_for) };
        self.write(Lane::Hot, "find stranded jobs", search, |c, search| stranded(c, search)).await
    }

    pub(super) async fn vanished(
        self: &Arc<Self>,
        jobs: &[Vanished],
        lost_after: Option<Duration>,
    ) -> StoreResult<Vec<Applied>> {
        let facts: Vec<_> = jobs.iter().map(|gone| (gone.job, Told::Vanished(gone, lost_after))).collect();
        let decided = decide(&mut Rows::new(self), &facts).await?;
        Ok(decided.iter().map(Decided::applied).collect())
    }

    /// Takes back the hints of jobs that are claimed.
    pub(super) async fn unhint_claims(self: &Arc<Self>, jobs: Vec<Uuid>) -> StoreResult<()> {
        self.write(Lane::Hot, "take hints back", jobs, |c, jobs| unhint(c, jobs)).await
    }

    /// Forgets claims that no job belongs to any more. A claim is looked at first after some seconds, then ever more
    /// rarely while jobs belong to it. True: there are more whose turn it is.
    pub(super) async fn prune_claims(self: &Arc<Self>) -> StoreResult<bool> {
        for _ in 0..MAX_PRUNINGS {
            let seen = self.write(Lane::Hot, "prune claims", (), |c, ()| prune(c)).await?;
            if seen < MAX_ROWS {
                return Ok(false);
            }
        }
        Ok(true)
    }
}

fn stranded<'c>(connection: &'c mut PgConnection, search: &'c Search) -> Work<'c, Vec<Stranded>> {
    async move {
        let mut groups: BTreeMap<(ClusterName, Option<Reach>, WorkerId), Vec<StrandedJob>> = BTreeMap::new();
        let (mut found, mut after) = (0, 0);
        while found < search.limit {
            let mut transaction = connection.begin().await?;
            let mut claims = open_claims(&mut transaction, &search.owners, after).await?;
            let belonging = belonging(&mut transaction, &claims).await?;
            for claim in &mut claims {
                after = claim.id;
                claim.open.retain(|(job, epoch)| belongs(belonging.get(job), claim.worker, *epoch));
                let rest = claim.open.split_off((search.limit - found).min(claim.open.len()));
                let given = mem::replace(&mut claim.open, rest);
                found += given.len();
                for (job, _) in &given {
                    let Some(row) = belonging.get(job) else { continue };
                    let group = (row.cluster.clone(), row.reach.clone(), claim.worker);
                    groups.entry(group).or_default().push(StrandedJob { job: *job, suspect: row.suspect });
                }
                hint(&mut transaction, claim, given, search.seconds).await?;
            }
            transaction.commit().await?;
            if claims.is_empty() {
                break;
            }
        }
        forget_workers(connection, &search.dead).await?;
        let group = |((cluster, reach, owner), jobs)| Stranded { cluster, reach, owner, jobs };
        Ok(groups.into_iter().map(group).collect())
    }
    .boxed()
}

/// Claims of these owners with jobs whose hint is not outstanding, locked; another dispatcher's are passed over.
async fn open_claims(connection: &mut PgConnection, owners: &[Uuid], after: i64) -> sqlx::Result<Vec<Claim>> {
    let rows = sqlx::query(concat!(
        "-- open_claims
         SELECT ",
        claim_columns!(),
        " FROM claims c
          WHERE c.worker_id = ANY ($1) AND c.id > $2
            AND (c.hint_until IS NULL OR c.hint_until <= now() OR c.hinted < cardinality(c.job_ids))
          ORDER BY c.id LIMIT $3 FOR UPDATE SKIP LOCKED"
    ))
    .bind(owners)
    .bind(after)
    .bind(MAX_ROWS)
    .fetch_all(connection)
    .await?;
    rows.iter().map(Claim::read).collect()
}

/// Those of the claims' jobs that somebody has, the claims' workers or others.
async fn belonging(
    connection: &mut PgConnection,
    claims: &[Claim],
) -> sqlx::Result<HashMap<JobId, Belonging>> {
    let jobs: Vec<JobId> =
        claims.iter().flat_map(|claim| claim.hinted.iter().chain(&claim.open)).map(|(job, _)| *job).collect();
    let owners: Vec<Uuid> = claims.iter().map(|claim| claim.worker.0).collect();
    let rows = sqlx::query(
        "-- claimed_jobs
         SELECT s.job_id, s.owner, s.epoch, s.cluster, s.submission_reach,
                s.submission_id IS NULL AND s.fruitless_claims >= $3
           FROM job_state s
          WHERE s.job_id = ANY ($1) AND s.state IN (2, 3, 4) AND s.owner = ANY ($2)",
    )
    .bind(uuids(&jobs))
    .bind(owners)
    .bind(i16::try_from(SUSPECT_AFTER).unwrap_or(i16::MAX))
    .fetch_all(connection)
    .await?;
    let mut belonging = HashMap::with_capacity(rows.len());
    for row in &rows {
        let mut columns = Columns::of(row);
        let job = JobId(columns.take()?);
        let (owner, epoch) = (WorkerId(columns.take()?), columns.take()?);
        let (cluster, reach) = (columns.name()?, columns.take::<Option<String>>()?.map(Reach));
        belonging.insert(job, Belonging { owner, epoch, cluster, reach, suspect: columns.take()? });
    }
    Ok(belonging)
}

fn belongs(row: Option<&Belonging>, worker: WorkerId, epoch: i32) -> bool {
    row.is_some_and(|row| row.owner == worker && row.epoch == epoch)
}

/// Writes back what is left of a claim, with these of its jobs hinted from now on. What is hinted already leaves with its
/// own hint, because a row has one.
async fn hint(
    connection: &mut PgConnection,
    claim: &mut Claim,
    given: Vec<Held>,
    seconds: f64,
) -> sqlx::Result<()> {
    if given.is_empty() {
        return rewrite(connection, claim, None).await;
    }
    let hinted = mem::replace(&mut claim.hinted, given);
    if !hinted.is_empty() {
        let (jobs, epochs): (Vec<Uuid>, Vec<i32>) = hinted.iter().map(|(job, epoch)| (job.0, *epoch)).unzip();
        sqlx::query(
            "-- split_claim
             INSERT INTO claims (worker_id, claimed_at, check_at, hint_until, hinted, job_ids, epochs)
             SELECT c.worker_id, c.claimed_at, c.check_at, c.hint_until, cardinality($2), $2, $3
               FROM claims c WHERE c.id = $1",
        )
        .bind(claim.id)
        .bind(jobs)
        .bind(epochs)
        .execute(&mut *connection)
        .await?;
    }
    rewrite(connection, claim, Some(seconds)).await
}

/// Writes back what is left of a claim; a hint of `hint_seconds` begins now, or the one there goes on.
async fn rewrite(
    connection: &mut PgConnection,
    claim: &Claim,
    hint_seconds: Option<f64>,
) -> sqlx::Result<()> {
    if claim.is_empty() {
        sqlx::query(
            "-- delete_claim
             DELETE FROM claims WHERE id = $1",
        )
        .bind(claim.id)
        .execute(connection)
        .await?;
        return Ok(());
    }
    let held = || claim.hinted.iter().chain(&claim.open);
    sqlx::query(
        "-- rewrite_claim
         UPDATE claims
            SET job_ids = $2, epochs = $3, hinted = $4, hint_until = coalesce(now() + make_interval(secs => $5), hint_until)
          WHERE id = $1",
    )
    .bind(claim.id)
    .bind(held().map(|(job, _)| job.0).collect::<Vec<_>>())
    .bind(held().map(|(_, epoch)| *epoch).collect::<Vec<_>>())
    .bind(i32::try_from(claim.hinted.len()).unwrap_or(i32::MAX))
    .bind(hint_seconds)
    .execute(connection)
    .await?;
    Ok(())
}

/// Dead workers that hold nothing and died long ago.
async fn forget_workers(connection: &mut PgConnection, dead: &[Uuid]) -> sqlx::Result<()> {
    sqlx::query(AssertSqlSafe(format!(
        "-- forget_workers
         DELETE FROM workers w
          WHERE w.id = ANY ($1) AND w.expires_at <= now() - interval '{MOURNED_FOR}' AND NOT {HOLDS_JOBS}"
    )))
    .bind(dead)
    .execute(connection)
    .await?;
    Ok(())
}

fn unhint<'c>(connection: &'c mut PgConnection, jobs: &'c [Uuid]) -> Work<'c, ()> {
    async move {
        let mut transaction = connection.begin().await?;
        let rows = sqlx::query(concat!(
            "-- hinted_claims
             SELECT ",
            claim_columns!(),
            " FROM claims c
              WHERE c.worker_id = ANY (SELECT s.owner FROM job_state s WHERE s.job_id = ANY ($1))
                AND c.hint_until > now() AND c.job_ids && $1
              ORDER BY c.id FOR UPDATE"
        ))
        .bind(jobs)
        .fetch_all(&mut *transaction)
        .await?;
        for row in &rows {
            let mut claim = Claim::read(row)?;
            let (taken_back, still): (Vec<Held>, Vec<Held>) =
                claim.hinted.into_iter().partition(|(job, _)| jobs.contains(&job.0));
            claim.hinted = still;
            claim.open.extend(taken_back);
            rewrite(&mut transaction, &claim, None).await?;
        }
        transaction.commit().await
    }
    .boxed()
}

/// Looks at the claims whose turn it is; answers how many those were.
fn prune(connection: &mut PgConnection) -> Work<'_, i64> {
    async move {
        let mut transaction = connection.begin().await?;
        let rows = sqlx::query(concat!(
            "-- claims_to_check
             SELECT ",
            claim_columns!(),
            " FROM claims c WHERE c.check_at <= now() ORDER BY c.check_at LIMIT $1 FOR UPDATE SKIP LOCKED"
        ))
        .bind(MAX_ROWS)
        .fetch_all(&mut *transaction)
        .await?;
        let mut claims = rows.iter().map(Claim::read).collect::<sqlx::Result<Vec<_>>>()?;
        let belonging = belonging(&mut transaction, &claims).await?;
        let mut later = Vec::new();
        for claim in &mut claims {
            let held = claim.hinted.len() + claim.open.len();
            let worker = claim.worker;
            for part in [&mut claim.hinted, &mut claim.open] {
                part.retain(|(job, epoch)| belongs(belonging.get(job), worker, *epoch));
            }
            // A row that only lost some of its jobs is not worth writing anew.
            if claim.is_empty() || (claim.hinted.len() + claim.open.len()) * 2 < held {
                rewrite(&mut transaction, claim, None).await?;
            }
            if !claim.is_empty() {
                later.push(claim.id);
            }
        }
        sqlx::query(
            "-- check_claims_later
             UPDATE claims
                SET check_at = now() + least(greatest((now() - claimed_at) / 2, interval '10 seconds'), interval '10 minutes')
              WHERE id = ANY ($1)",
        )
        .bind(later)
        .execute(&mut *transaction)
        .await?;
        transaction.commit().await?;
        i64::try_from(claims.len()).map_err(super::rows::corrupt)
    }
    .boxed()
}
