//! The crash matrix: every point × its first and n-th passing × both forms × every kind of manager. A process aborts
//! there, is started again, and then everything that was accepted must end as it would have, having begun once.
//!
//! * `plan`: the cells. `orders`: what is ordered of the failpoints. `deployment`: the processes that crash.
//! * `claimant`: the service outside that works off their clusters, in one kind of deployment.
//! * `scene`, `away`: what is asked of them meanwhile. `judge`: what must hold afterwards.
//!
//! A cell whose point was not passed fails; so does a point that cannot be passed and was.

mod away;
mod claimant;
mod deployment;
mod judge;
mod orders;
mod plan;
mod scene;

use anyhow::{Context as _, Result, bail, ensure};
use deployment::Deployment;
use futures::{StreamExt as _, stream};
use jobgate_shared::{clock, domain::SubmissionTag, store::sqlite::SqliteStore};
use judge::{Verdict, judge};
pub use plan::Part;
use plan::{Cell, Form, Manager, POINTS, Point, cells};
use scene::Scene;
use std::{
    collections::{BTreeMap, BTreeSet},
    fmt::Write as _,
    time::Duration,
};
use tokio::time::{Instant, timeout};

use crate::wait::until;

/// Deployments that crash side by side.
const SIDE_BY_SIDE: usize = 14;
/// Cells one deployment goes through, about.
const SHARE: usize = 24;
/// How long a point may take to be passed.
const PASSED: Duration = Duration::from_secs(90);
/// How long after a drive its point may still be passed: a heartbeat, and what follows from its answer.
const FOLLOWS: Duration = Duration::from_millis(1500);
/// How long after a crash everything may take to end, on a busy machine.
const RECOVERS: Duration = Duration::from_mins(1);
/// Where drives end somebody or let a call sleep, besides the point that is meant.
const ORDERED: [&str; 9] = [
    "create.begins",
    "record.committed",
    "forget.begins",
    "accept.hinting",
    "dispatch.marked",
    "rescue.marked",
    "lease.registered",
    "claim.committed",
    "publish.begins",
];
/// How long the sweep may take for what is old enough, and to become so.
const SWEPT: Duration = Duration::from_secs(30);

/// What became of the matrix.
#[derive(Debug, Default)]
pub struct Report {
    /// How long each cell took to recover.
    recovered: BTreeMap<(&'static str, usize, Form, Manager), Duration>,
    /// What did not hold, or never happened.
    pub failures: Vec<String>,
}

/// Runs a part of the matrix.
pub async fn run(part: &Part) -> Report {
    let mut shares = Vec::new();
    for form in Form::ALL {
        for manager in Manager::ALL {
            let cells = cells(form, manager, part);
            let count = cells.len().div_ceil(SHARE);
            for share in 0..count {
                let cells: Vec<Cell> = cells.iter().copied().skip(share).step_by(count).collect();
                shares.push((form, manager, cells));
            }
        }
    }
    // Those with three processes take longest.
    shares.reverse();
    let ran = shares.into_iter().map(|(form, manager, cells)| run_share(form, manager, cells));
    let reports: Vec<Report> = stream::iter(ran).buffer_unordered(SIDE_BY_SIDE).collect().await;
    let mut all = Report::default();
    if reports.is_empty() {
        all.failures.push(format!("{part:?} has no cell"));
    }
    for report in reports {
        all.recovered.extend(report.recovered);
        all.failures.extend(report.failures);
    }
    all
}

/// Cells one after the other, in one deployment as long as nothing fails in it.
async fn run_share(form: Form, manager: Manager, cells: Vec<Cell>) -> Report {
    let mut report = Report::default();
    let mut standing: Option<Crashing> = None;
    for cell in cells {
        let place = format!("{} ({}) {} {}", cell.point.name, cell.nth, form.name(), manager.name());
        let mut crashing = match standing.take() {
            Some(crashing) => crashing,
            None => match Crashing::start(form, manager).await {
                Ok(crashing) => crashing,
                Err(error) => {
                    report.failures.push(format!("{place}: no deployment: {error:#}"));
                    continue;
                }
            },
        };
        match crashing.cell(cell).await {
            Ok(recovered) => {
                report.recovered.insert((cell.point.name, cell.nth, form, manager), recovered);
                standing = Some(crashing);
            }
            Err(error) => {
                let words = crashing.deployment.last_words();
                report.failures.push(format!("{place}: {error:#}\n{words}"));
            }
        }
    }
    if let Some(crashing) = standing
        && let Err(error) = crashing.end().await
    {
        report.failures.push(format!("at the end of {} {}: {error:#}", form.name(), manager.name()));
    }
    report
}

/// A deployment under crashes, and every end it has told.
struct Crashing {
    deployment: Deployment,
    verdicts: Vec<Verdict>,
}

impl Crashing {
    async fn start(form: Form, manager: Manager) -> Result<Self> {
        let deployment = Deployment::start(form, manager).await?;
        for point in POINTS.iter().filter(|point| !point.can_occur(form, manager)) {
            deployment.orders.abort_at(point.name, 1)?;
        }
        Ok(Self { deployment, verdicts: Vec::new() })
    }

    /// Crashes once at a point; answers how long everything took to be as if nothing had happened.
    async fn cell(&mut self, Cell { point, nth }: Cell) -> Result<Duration> {
        let mut scene = Scene::default();
        let (orders, deployment) = (self.deployment.orders.clone(), &mut self.deployment);
        orders.abort_at(point.name, nth)?;
        let asked = Instant::now();
        while !orders.aborted(point.name) {
            let played = tokio::select! {
                biased;
                () = orders.abortion(point.name) => break,
                played = async {
                    deployment.revive().await?;
                    scene.play(point.drive, deployment).await
                } => played,
            };
            if timeout(FOLLOWS, orders.abortion(point.name)).await.is_err() && asked.elapsed() >= PASSED {
                played.context("the last try")?;
                bail!("nobody passed it");
            }
        }
        let aborted = Instant::now();
        if point.ends_a_role() {
            deployment.see_abort().await?;
        }
        let (form, manager) = (deployment.form, deployment.manager);
        for ordered in POINTS.iter().filter(|ordered| ordered.can_occur(form, manager)) {
            if ordered.name == point.name || ORDERED.contains(&ordered.name) {
                orders.withdraw(ordered.name)?;
            }
        }
        deployment.revive().await.context("after it")?;
        scene.bring_to_end(deployment, RECOVERS).await.context("after it")?;
        let recovered = aborted.elapsed();
        let begun = deployment.begun()?;
        let client = deployment.client()?;
        for (kind, id) in scene.jobs() {
            let job = client.get(&format!("/v1/jobs/{id}")).await?;
            let history = client.get(&format!("/v1/jobs/{id}/history")).await?;
            let judged = judge(&job, &history, kind, deployment.manager, point, &begun);
            self.verdicts.push(judged.with_context(|| history.to_string())?);
        }
        Ok(recovered)
    }

    /// What must hold when all is over: nothing began after its end, nothing is left, nobody else was accepted.
    async fn end(mut self) -> Result<()> {
        let Self { deployment, verdicts } = &mut self;
        until("nothing is left in the manager", SWEPT, async || {
            let left = deployment.leftovers()?;
            ensure!(left.is_empty(), "{left:?}");
            Ok(())
        })
        .await?;
        let rows: u64 = deployment.client()?.states().await?.values().sum();
        ensure!(rows == verdicts.len() as u64, "{rows} rows, {} jobs were accepted", verdicts.len());
        deployment.end().await?;
        let mut begun: BTreeMap<String, usize> = BTreeMap::new();
        for (SubmissionTag { job, attempt }, times) in deployment.begun()? {
            ensure!(times == 1, "attempt {attempt} of {job} began {times} times");
            *begun.entry(job.to_string()).or_default() += times;
        }
        for Verdict { id, begun: before } in &*verdicts {
            let now = begun.remove(id).unwrap_or(0);
            ensure!(now == *before, "{id} began after it had ended: {before} times, then {now}");
        }
        ensure!(begun.is_empty(), "nobody accepted what began: {begun:?}");
        let can_occur = |point: &Point| point.can_occur(deployment.form, deployment.manager);
        for point in POINTS.iter().filter(|point| !can_occur(point)) {
            ensure!(!deployment.orders.aborted(point.name), "{} was passed", point.name);
        }
        if deployment.form == Form::Sqlite {
            let store = SqliteStore::open(&deployment.store_file(), clock::system()).await?;
            store.check_integrity().await?;
            store.close().await;
        }
        Ok(())
    }
}

impl Report {
    /// Every point with its cells: `ok`, `-` where it cannot be passed, `FAILED`; a blank was not asked for.
    pub fn table(&self, part: &Part) -> String {
        let mut text = format!("{:<20} passing", "point");
        let columns: Vec<(Form, Manager)> =
            Form::ALL.into_iter().flat_map(|form| Manager::ALL.map(|manager| (form, manager))).collect();
        for (form, manager) in &columns {
            write!(text, " {:>15}", format!("{}/{}", &form.name()[..2], manager.name())).unwrap_or_default();
        }
        for point in part.points() {
            for nth in part.passings(point) {
                write!(text, "\n{:<20} {nth:>7}", point.name).unwrap_or_default();
                for &(form, manager) in &columns {
                    let asked = cells(form, manager, part)
                        .iter()
                        .any(|cell| cell.point.name == point.name && cell.nth == nth);
                    let word = match self.recovered.get(&(point.name, nth, form, manager)) {
                        Some(recovered) => format!("ok {:.1} s", recovered.as_secs_f64()),
                        None if !point.can_occur(form, manager) => "-".to_owned(),
                        None if asked => "FAILED".to_owned(),
                        None => String::new(),
                    };
                    write!(text, " {word:>15}").unwrap_or_default();
                }
            }
        }
        let slowest = self.recovered.values().max().copied().unwrap_or_default();
        let points: BTreeSet<_> = self.recovered.keys().map(|(name, ..)| name).collect();
        let (cells, points) = (self.recovered.len(), points.len());
        text + &format!("\n{cells} cells, {points} points; the slowest recovery took {slowest:.1?}\n")
    }
}
