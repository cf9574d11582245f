//! Services outside that work off a cluster's jobs: *claimants*.
//!
//! A claimant is a worker that speaks HTTP. It has an identity with a lease like any other, and everything it does goes
//! through the same ports, so there is one state machine for all. What is particular stands here: nobody hints a claimant,
//! so it asks for what is due and for what dead claimants left; and what it reports is held against the row
//! ([`judge`]) before it is recorded or applied, so that it hears at once what became of it.

use chrono::{DateTime, Utc};
use jobgate_shared::{
    domain::{
        ClusterName, Ending, Job, JobId, Life, Observation, Refusal, SUSPECT_AFTER, StatusEvent, Submission,
        WorkerId,
    },
    failpoint,
    store::{
        Applied, Claimed, Heartbeat, Leases, Pulse, Recorded, Scope, Store, StoreResult, ToHandBack,
        ToRecord, Worker, WorkerCluster,
    },
};
use std::{sync::Arc, time::Duration};

/// How long due jobs are kept from other claimants, should the process that fetched them die before it claims them.
const MARKED_FOR: Duration = Duration::from_secs(5);
/// How often a claim looks for more that is due, when it was refused some of what it saw.
const LOOKS: usize = 3;
/// How many jobs in hand are read at once.
const PAGE: u32 = 1_000;

/// What claimants may ask.
#[derive(Debug)]
pub struct Claims {
    store: Arc<dyn Store>,
    leases: Arc<dyn Leases>,
}

/// What a claimant says of one job.
#[derive(Debug, Clone, PartialEq)]
pub struct Report {
    /// Who says it.
    pub claimant: WorkerId,
    /// Of which attempt.
    pub attempt: u32,
    /// Under which claim.
    pub epoch: u32,
    /// Its place among the reports of the claim; the next one when absent.
    pub seq: Option<u32>,
    /// What the service calls the attempt.
    pub submission: Option<String>,
    /// What it saw.
    pub observation: Observation,
    /// When, by the claimant's clock.
    pub at: DateTime<Utc>,
}

impl Report {
    /// Only what was submitted can stand like that.
    fn presumes_submission(&self) -> bool {
        match &self.observation {
            Observation::Pending { .. } | Observation::Running { .. } => true,
            Observation::Ended { ending, .. } => match ending {
                Ending::Finished | Ending::TimedOut => true,
                Ending::Failed | Ending::Canceled | Ending::Lost => false,
            },
        }
    }

    /// It makes the submission it names *the* submission. Who cancels or loses what it never recorded records it no more.
    fn records(&self) -> bool {
        let over =
            matches!(&self.observation, Observation::Ended { ending: Ending::Canceled | Ending::Lost, .. });
        self.submission.is_some() && !over
    }

    fn is_end(&self) -> bool {
        matches!(self.observation, Observation::Ended { .. })
    }
}

/// What became of a report.
#[derive(Debug, Clone, PartialEq)]
pub enum Told {
    /// It moved the job.
    Advanced(Box<Job>),
    /// The row said so already.
    Duplicate(Box<Job>),
    /// It is about something that is over; the row stays as it is.
    Stale(Box<Job>),
    /// Nothing is recorded yet, and the report names nothing to record.
    Unnamed,
    /// The claim is not the claimant's any more, or never was.
    NotTheirs,
    /// Another submission is recorded, or none will be.
    Beaten {
        /// The one that is.
        recorded: Option<String>,
        /// Because somebody wants the job cancelled.
        canceled: bool,
    },
    /// No such job in the cluster.
    Absent,
}

/// What to do about a report.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Step {
    /// It is of an attempt before the row's.
    Past,
    Unnamed,
    NotTheirs,
    Beaten {
        recorded: Option<String>,
    },
    /// Record what it names, then apply it.
    Record,
    /// Apply it, as of the recorded submission or of none.
    Apply,
}

/// Holds a report against the row. The transition decides what it does; this, what the claimant is to hear.
fn judge(life: &Life, report: &Report) -> Step {
    if report.attempt > life.attempt || report.epoch > life.epoch {
        return Step::NotTheirs;
    }
    if report.attempt < life.attempt {
        return Step::Past;
    }
    let recorded = life.submission.as_ref().map(|submission| submission.id.as_str());
    let named = report.submission.as_deref();
    if recorded.is_some() && named.is_some() && named != recorded {
        return Step::Beaten { recorded: recorded.map(str::to_owned) };
    }
    if life.state.is_terminal() {
        // It ended before anything was recorded: whatever the service has made must not begin.
        let too_late = recorded.is_none() && report.records();
        return if too_late { Step::Beaten { recorded: None } } else { Step::Apply };
    }
    let theirs = life.state.is_owned() && life.owner == Some(report.claimant) && life.epoch == report.epoch;
    // How a submission ended counts whoever watched it, as long as it is the recorded one.
    let witnessed = recorded.is_some() && named == recorded && report.is_end();
    if !theirs && !witnessed {
        return Step::NotTheirs;
    }
    if recorded.is_none() && report.records() {
        Step::Record
    } else if recorded.is_none() && report.presumes_submission() {
        Step::Unnamed
    } else {
        Step::Apply
    }
}

fn served(cluster: &ClusterName) -> WorkerCluster {
    WorkerCluster { name: cluster.clone(), reach: None, parked: None }
}

/// A claimant of `cluster`: a worker that serves nothing else. A worker of the gateway never serves it.
fn is_of(worker: &Worker, cluster: &ClusterName) -> bool {
    worker.clusters.len() == 1 && worker.clusters.iter().all(|served| served.name == *cluster)
}

/// What a claim did not take.
#[derive(Debug, Default)]
struct NotTaken {
    /// What may kill whoever claims it.
    suspects: Vec<JobId>,
    /// There was no more room in the cluster.
    full: bool,
}

impl Claims {
    /// Asks through these ports.
    pub fn new(store: Arc<dyn Store>, leases: Arc<dyn Leases>) -> Self {
        Self { store, leases }
    }

    /// A new identity, with a lease from now on; answers it and when the lease ends at the earliest.
    pub async fn register(
        &self,
        cluster: &ClusterName,
        host: String,
        lease: Duration,
    ) -> StoreResult<(WorkerId, DateTime<Utc>)> {
        let (id, now) = (WorkerId::generate(), self.store.now().await?);
        let worker = Worker {
            id,
            host,
            clusters: vec![served(cluster)],
            registered_at: now,
            expires_at: now,
            alive: true,
            draining: false,
            jobs: 0,
        };
        self.leases.register(&worker, lease).await?;
        failpoint::pass("claimant.registered");
        Ok((id, now + lease))
    }

    /// Renews the lease of a claimant of `cluster`; answers its news and when the lease ends at the earliest.
    pub async fn renew(
        &self,
        cluster: &ClusterName,
        claimant: WorkerId,
        mut pulse: Pulse,
    ) -> StoreResult<(Heartbeat, DateTime<Utc>)> {
        let now = self.store.now().await?;
        // A claimant's token must not keep other workers alive.
        let known = self.store.workers().await?;
        if !known.iter().any(|worker| worker.id == claimant && is_of(worker, cluster)) {
            return Ok((Heartbeat::Expired, now));
        }
        let held = self.leases.held(claimant).await?.len();
        pulse.jobs = u32::try_from(held).unwrap_or(u32::MAX);
        let expires_at = now + pulse.ttl;
        Ok((self.leases.heartbeat(claimant, &pulse).await?, expires_at))
    }

    /// Up to `max` jobs: first what dead claimants left, then what is due, most urgent first. `None` when the claimant's
    /// lease has ended.
    pub async fn take(
        &self,
        cluster: &ClusterName,
        claimant: WorkerId,
        max: u32,
    ) -> StoreResult<Option<Vec<Job>>> {
        let workers = self.store.workers().await?;
        let dead = workers.iter().filter(|w| !w.alive && is_of(w, cluster)).map(|w| w.id);
        let owners: Vec<WorkerId> = dead.chain([WorkerId::NOBODY]).collect();
        let left = self.leases.in_hands(cluster, &owners, None, max).await?;
        let left: Vec<JobId> = left.into_iter().map(|job| job.id).collect();
        let mut taken = Vec::new();
        let Some(refused) = self.claim(cluster, claimant, &left, &mut taken).await? else { return Ok(None) };
        let mut alone = self.claim_alone(cluster, claimant, &refused.suspects, &mut taken).await?;
        count(cluster, "adopted", taken.len());
        let settings = self.store.cluster_settings().await?;
        if settings.iter().any(|setting| setting.cluster == *cluster && setting.paused) {
            return Ok(Some(taken));
        }
        let (adopted, mut refused) = (taken.len(), Vec::new());
        for _ in 0..LOOKS {
            let room = max.saturating_sub(u32::try_from(taken.len()).unwrap_or(u32::MAX));
            if room == 0 {
                break;
            }
            // What is refused stays marked until all is taken, so each look shows others.
            let due = self.store.due(cluster, room, MARKED_FOR, Duration::ZERO).await?;
            let due: Vec<JobId> = due.into_iter().map(|due| due.job).collect();
            if due.is_empty() {
                break;
            }
            failpoint::pass("claimant.marked");
            let before = taken.len();
            let claimed = self.claim(cluster, claimant, &due, &mut taken).await?;
            let over = claimed.is_none();
            let NotTaken { suspects, full } = claimed.unwrap_or_default();
            if !alone {
                alone = self.claim_alone(cluster, claimant, &suspects, &mut taken).await?;
            }
            let granted = &taken[before..];
            refused.extend(due.into_iter().filter(|job| !granted.iter().any(|granted| granted.id == *job)));
            if over {
                self.store.unhint(&refused).await?;
                return Ok(None);
            }
            if full {
                break;
            }
        }
        if !refused.is_empty() {
            self.store.unhint(&refused).await?;
        }
        count(cluster, "fresh", taken.len() - adopted);
        Ok(Some(taken))
    }

    /// Claims what can be claimed in company; answers what else there is, or `None` when the claimant has no lease.
    async fn claim(
        &self,
        cluster: &ClusterName,
        claimant: WorkerId,
        jobs: &[JobId],
        taken: &mut Vec<Job>,
    ) -> StoreResult<Option<NotTaken>> {
        let mut rest = NotTaken::default();
        if jobs.is_empty() {
            return Ok(Some(rest));
        }
        let serves = [served(cluster)];
        for (job, claimed) in jobs.iter().zip(self.leases.claim(claimant, &serves, jobs).await?) {
            match claimed {
                Claimed::Granted(job) => taken.push(*job),
                Claimed::Refused(Refusal::NoLease) => return Ok(None),
                Claimed::Refused(Refusal::Suspect) => rest.suspects.push(*job),
                Claimed::Refused(Refusal::Full) => rest.full = true,
                Claimed::Refused(_) | Claimed::Absent => {}
            }
        }
        Ok(Some(rest))
    }

    /// Claims one of these, unless the claimant has such a one in hand that it has not submitted yet: its death shall be
    /// counted against one alone. True when it has one now.
    async fn claim_alone(
        &self,
        cluster: &ClusterName,
        claimant: WorkerId,
        suspects: &[JobId],
        taken: &mut Vec<Job>,
    ) -> StoreResult<bool> {
        if suspects.is_empty() {
            return Ok(false);
        }
        if self.holds_suspect(cluster, claimant).await? {
            return Ok(true);
        }
        let serves = [served(cluster)];
        for suspect in suspects {
            if let Claimed::Granted(job) = self.leases.claim_alone(claimant, &serves, *suspect).await? {
                taken.push(*job);
                return Ok(true);
            }
        }
        Ok(false)
    }

    async fn holds_suspect(&self, cluster: &ClusterName, claimant: WorkerId) -> StoreResult<bool> {
        let mut after = None;
        loop {
            let held = self.leases.in_hands(cluster, &[claimant], after, PAGE).await?;
            let is_suspect =
                |job: &Job| job.life.submission.is_none() && job.life.fruitless_claims > SUSPECT_AFTER;
            if held.iter().any(is_suspect) {
                return Ok(true);
            }
            match held.last() {
                Some(last) => after = Some(last.id),
                None => return Ok(false),
            }
        }
    }

    /// What claimants of the cluster, dead or alive, have in hand and what they handed back; or one claimant's.
    pub async fn unsettled(
        &self,
        cluster: &ClusterName,
        claimant: Option<WorkerId>,
        after: Option<JobId>,
        limit: u32,
    ) -> StoreResult<Vec<Job>> {
        let owners = if let Some(claimant) = claimant {
            vec![claimant]
        } else {
            let workers = self.store.workers().await?;
            let claimants = workers.iter().filter(|worker| is_of(worker, cluster)).map(|worker| worker.id);
            claimants.chain([WorkerId::NOBODY]).collect()
        };
        self.leases.in_hands(cluster, &owners, after, limit).await
    }

    /// Takes a report: records what it names if nothing is recorded yet, then applies it as a worker's event.
    pub async fn report(&self, cluster: &ClusterName, job: JobId, report: &Report) -> StoreResult<Told> {
        let Some(mut known) = self.find(cluster, job).await? else { return Ok(Told::Absent) };
        let step = judge(&known.life, report);
        match step {
            Step::Past => return Ok(Told::Stale(known)),
            Step::Unnamed => return Ok(Told::Unnamed),
            Step::NotTheirs => return Ok(Told::NotTheirs),
            Step::Beaten { recorded } => return Ok(Told::Beaten { recorded, canceled: false }),
            Step::Record => {
                if let Some(beaten) = self.record(job, report).await? {
                    return Ok(beaten);
                }
                if matches!(&report.observation, Observation::Pending { reason: None }) {
                    // The record itself has made it PENDING.
                    return Ok(self.find(cluster, job).await?.map_or(Told::Absent, Told::Advanced));
                }
                known.life.submission = report.submission.clone().map(submission);
            }
            Step::Apply => {}
        }
        let event = event(&known, report);
        let applied = self.leases.apply(&[event]).await?.pop();
        failpoint::pass("claimant.applied");
        let Some(now) = self.find(cluster, job).await? else { return Ok(Told::Absent) };
        Ok(match applied {
            None | Some(Applied::Unknown) => Told::Absent,
            Some(Applied::Advanced) => Told::Advanced(now),
            // Recorded just now, and nothing more to say of it.
            Some(Applied::Duplicate) if step == Step::Record => Told::Advanced(now),
            Some(Applied::Duplicate) => Told::Duplicate(now),
            // Somebody has taken the job while we looked, or before.
            Some(Applied::Stale)
                if judge(&now.life, report) == Step::NotTheirs || is_not_for_them(&now.life, report) =>
            {
                Told::NotTheirs
            }
            Some(Applied::Stale) => Told::Stale(now),
        })
    }

    /// Makes what the report names the submission; answers what to say when it lost.
    async fn record(&self, job: JobId, report: &Report) -> StoreResult<Option<Told>> {
        let Some(id) = report.submission.clone() else { return Ok(Some(Told::Unnamed)) };
        let (attempt, epoch) = (report.attempt, report.epoch);
        let item = ToRecord { job, attempt, epoch, submission: submission(id) };
        Ok(match self.leases.record(&[item]).await?.pop() {
            Some(Recorded::Won) => {
                failpoint::pass("claimant.recorded");
                None
            }
            None | Some(Recorded::Lost { current: None }) => Some(Told::Absent),
            Some(Recorded::Lost { current: Some(current) }) => {
                let canceled = current.life.cancel_requested;
                let recorded = current.life.submission.map(|submission| submission.id);
                Some(Told::Beaten { recorded, canceled })
            }
        })
    }

    /// Gives a job up in good order; what is not the claimant's any more is left alone. False when there is none.
    pub async fn give_up(
        &self,
        cluster: &ClusterName,
        claimant: WorkerId,
        item: ToHandBack,
    ) -> StoreResult<bool> {
        if self.find(cluster, item.job).await?.is_none() {
            return Ok(false);
        }
        self.leases.hand_back(claimant, &[item]).await?;
        failpoint::pass("claimant.gave_up");
        Ok(true)
    }

    async fn find(&self, cluster: &ClusterName, job: JobId) -> StoreResult<Option<Box<Job>>> {
        let found = self.store.get(&Scope::All, job).await?;
        Ok(found.filter(|job| job.cluster == *cluster).map(Box::new))
    }
}

/// Only who holds a job may say that it is lost.
fn is_not_for_them(life: &Life, report: &Report) -> bool {
    let lost = matches!(&report.observation, Observation::Ended { ending: Ending::Lost, .. });
    lost && !life.state.is_terminal() && life.attempt == report.attempt && life.epoch != report.epoch
}

fn submission(id: String) -> Submission {
    Submission { id, detail: serde_json::Value::Null, reach: None }
}

/// The report as any worker would tell it.
fn event(job: &Job, report: &Report) -> StatusEvent {
    let (epoch, seq) = job.life.last_event;
    let next = if epoch == report.epoch { seq.saturating_add(1) } else { 1 };
    StatusEvent {
        job: job.id,
        attempt: report.attempt,
        epoch: report.epoch,
        seq: report.seq.unwrap_or(next),
        by: report.claimant,
        submission: job.life.submission.as_ref().map(|submission| submission.id.clone()),
        observation: report.observation.clone(),
        at: report.at,
    }
}

fn count(cluster: &ClusterName, kind: &'static str, jobs: usize) {
    let labels = [("cluster", cluster.to_string()), ("kind", kind.to_owned())];
    metrics::counter!("jobgate_claims_outside_total", &labels).increment(jobs as u64);
}

#[cfg(test)]
mod tests {
    use super::*;
    use jobgate_shared::domain::JobState;

    const ME: WorkerId = WorkerId(uuid::Uuid::from_u128(1));
    const OTHER: WorkerId = WorkerId(uuid::Uuid::from_u128(2));

    fn life(state: JobState, owner: WorkerId, epoch: u32, recorded: Option<&str>) -> Life {
        let submission = recorded.map(|id| submission(id.to_owned()));
        let owner = Some(owner);
        Life { state, owner, epoch, submission, ..Life::begin(false, DateTime::UNIX_EPOCH) }
    }

    fn ended(ending: Ending) -> Observation {
        Observation::Ended { ending, exit_code: None, reason: None, began: None, at: None }
    }

    fn report(observation: Observation, named: Option<&str>) -> Report {
        Report {
            claimant: ME,
            attempt: 1,
            epoch: 1,
            seq: None,
            submission: named.map(str::to_owned),
            observation,
            at: DateTime::UNIX_EPOCH,
        }
    }

    fn runs() -> Observation {
        Observation::Running { since: None, reason: None }
    }

    #[test]
    fn the_first_report_that_names_a_submission_records_it_and_one_that_needs_it_must_name_it() {
        let claimed = life(JobState::Claimed, ME, 1, None);
        let waits = || Observation::Pending { reason: None };
        for (observation, unnamed, named) in [
            (waits(), Step::Unnamed, Step::Record),
            (runs(), Step::Unnamed, Step::Record),
            (ended(Ending::Finished), Step::Unnamed, Step::Record),
            (ended(Ending::TimedOut), Step::Unnamed, Step::Record),
            (ended(Ending::Failed), Step::Apply, Step::Record),
            (ended(Ending::Canceled), Step::Apply, Step::Apply),
            (ended(Ending::Lost), Step::Apply, Step::Apply),
        ] {
            assert_eq!(judge(&claimed, &report(observation.clone(), None)), unnamed, "{observation:?}");
            assert_eq!(judge(&claimed, &report(observation.clone(), Some("a"))), named, "{observation:?}");
        }
    }

    #[test]
    fn another_submission_than_the_recorded_one_is_beaten_in_every_state() {
        let beaten = Step::Beaten { recorded: Some("a".to_owned()) };
        for state in [JobState::Pending, JobState::Running, JobState::Finished, JobState::Lost] {
            let life = life(state, ME, 1, Some("a"));
            assert_eq!(judge(&life, &report(runs(), Some("b"))), beaten, "{state}");
            assert_eq!(judge(&life, &report(runs(), Some("a"))), Step::Apply, "{state}");
            assert_eq!(judge(&life, &report(runs(), None)), Step::Apply, "{state}");
        }
        let canceled = life(JobState::Canceled, ME, 1, None);
        assert_eq!(judge(&canceled, &report(runs(), Some("b"))), Step::Beaten { recorded: None });
        assert_eq!(judge(&canceled, &report(ended(Ending::Canceled), Some("b"))), Step::Apply);
    }

    #[test]
    fn of_a_claim_that_went_to_another_only_the_end_of_the_recorded_submission_counts() {
        let adopted = life(JobState::Running, OTHER, 2, Some("a"));
        assert_eq!(judge(&adopted, &report(runs(), Some("a"))), Step::NotTheirs);
        assert_eq!(judge(&adopted, &report(ended(Ending::Finished), None)), Step::NotTheirs);
        assert_eq!(judge(&adopted, &report(ended(Ending::Finished), Some("a"))), Step::Apply);
        let claimed = life(JobState::Claimed, OTHER, 2, None);
        assert_eq!(judge(&claimed, &report(runs(), Some("a"))), Step::NotTheirs);
        let waits = Life { owner: None, ..life(JobState::Initialized, ME, 1, None) };
        assert_eq!(judge(&waits, &report(runs(), Some("a"))), Step::NotTheirs);
        let somebodys = life(JobState::Claimed, OTHER, 1, None);
        assert_eq!(judge(&somebodys, &report(runs(), Some("a"))), Step::NotTheirs, "a forged claimant");
    }

    #[test]
    fn what_is_past_is_told_apart_from_what_never_was() {
        let second = Life { attempt: 2, ..life(JobState::Claimed, ME, 3, None) };
        assert_eq!(judge(&second, &report(runs(), Some("a"))), Step::Past);
        let ahead = Report { attempt: 3, ..report(runs(), Some("a")) };
        assert_eq!(judge(&second, &ahead), Step::NotTheirs);
        let ahead = Report { attempt: 2, epoch: 4, ..report(runs(), Some("a")) };
        assert_eq!(judge(&second, &ahead), Step::NotTheirs);
    }
}
