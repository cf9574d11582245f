//! One run, from a seed to a verdict: some time with faults, then none, and everything must settle and be true.

use crate::{
    city::{City, SWEPT_WITHIN},
    cluster::{End, Manager, Start},
    plan::{Flaw, Outcome, Plan},
    store::Rows,
    watch::is_legal,
    world::{RunClock, Seen, World, lock},
};
use jobgate_shared::{
    clock::Clock as _,
    domain::{Command, Job, JobId, JobState, SubmissionTag},
    random,
    store::memory::MemoryStore,
};
use jobgate_worker::engine::SubmitMode;
use std::{
    cell::RefCell,
    collections::BTreeMap,
    panic::{AssertUnwindSafe, catch_unwind},
    sync::{Arc, Once, atomic::Ordering},
    time::Duration,
};
use tokio::time::{Instant, sleep, sleep_until};

/// How long everything may take to settle once all is well: the longest waits between two tries of anything, and a
/// lease.
const SETTLES_WITHIN: Duration = Duration::from_mins(5);

/// How long after all is well every hint that was given has led to a claim, which is sooner than it is given again.
const HINTED_WITHIN: Duration = Duration::from_mins(2);

/// What a run came to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Verdict {
    pub(crate) seed: u64,
    /// What must never be and was.
    pub(crate) wrongs: Vec<String>,
    pub(crate) seen: Seen,
    /// What happened, if it was asked for.
    pub(crate) trace: Vec<String>,
    /// How long it took, by its own time.
    pub(crate) lasted: Duration,
}

thread_local! {
    /// Panics of the run on this thread.
    static PANICS: RefCell<Option<Vec<String>>> = const { RefCell::new(None) };
}

/// Lets panics of a run be found by the run, wherever they are caught; others are told as ever.
fn watch_panics() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        let tell = std::panic::take_hook();
        std::panic::set_hook(Box::new(move |panic| {
            let ours = PANICS.with_borrow_mut(|panics| {
                panics.as_mut().map(|panics| panics.push(panic.to_string())).is_some()
            });
            if !ours {
                tell(panic);
            }
        }));
    });
}

/// Runs a seed.
pub(crate) fn run(seed: u64, flaw: Flaw, traced: bool) -> Verdict {
    watch_panics();
    PANICS.set(Some(Vec::new()));
    let seeded = random::seed_this_thread(seed);
    let verdict = catch_unwind(AssertUnwindSafe(|| {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_time().start_paused(true).build();
        runtime.expect("a runtime").block_on(live(Plan::of(seed, flaw), traced))
    }));
    drop(seeded);
    let panics = PANICS.take().unwrap_or_default();
    let mut verdict = verdict.unwrap_or_else(|_| {
        let (wrongs, trace) = (Vec::new(), Vec::new());
        Verdict { seed, wrongs, seen: Seen::default(), trace, lasted: Duration::ZERO }
    });
    verdict.wrongs.extend(panics.into_iter().map(|panic| format!("a panic: {panic}")));
    verdict
}

async fn live(plan: Plan, traced: bool) -> Verdict {
    let seed = plan.seed;
    let world = World::new(plan, traced);
    let clock = RunClock::new(&world, chrono::TimeDelta::zero());
    let managers: Vec<Arc<Manager>> = world
        .plan
        .modes
        .iter()
        .zip(["a", "b"])
        .map(|(mode, name)| Manager::new(&world, name.parse().expect("a name"), *mode, clock.clone()))
        .collect();
    let rows = Rows::new(&world, MemoryStore::new(clock), managers.clone());
    let city = City::new(&world, rows, managers);
    for (at, action) in &world.plan.script {
        sleep_until(world.began + *at).await;
        city.perform(*action);
    }
    sleep_until(world.began + world.plan.chaos).await;
    city.heal();
    settle(&city).await;
    check(&city);
    let left = city.stop().await;
    if !left.is_empty() {
        world.wrong(|| format!("{left:?} do not stop"));
    }
    Verdict {
        seed,
        wrongs: world.wrongs(),
        seen: world.seen(),
        trace: world.taken_trace(),
        lasted: world.now(),
    }
}

/// Waits until every job has ended and nothing is left anywhere.
async fn settle(city: &Arc<City>) {
    let (world, healed) = (&city.world, Instant::now());
    // What is stranded is hinted to one worker, and hinted again only after some lives of a hint if that one dies.
    let hints = if world.plan.hints_once() { 6 * world.plan.hint_for } else { Duration::ZERO };
    let limit = SETTLES_WITHIN + world.plan.latest + hints;
    let mut looked = false;
    let mut over_since = None;
    loop {
        let busy = world.is_flying() || city.waiting.load(Ordering::SeqCst) > 0;
        let open =
            city.rows.watch(|watch| watch.jobs.values().filter(|job| !job.state.is_terminal()).count());
        if busy || open > 0 {
            over_since = None;
        } else {
            let leftovers: Vec<String> =
                city.managers.iter().flat_map(|manager| manager.leftovers()).collect();
            if leftovers.is_empty() {
                return;
            }
            let since = *over_since.get_or_insert_with(Instant::now);
            if since.elapsed() > SWEPT_WITHIN {
                world.wrong(|| format!("never swept: {leftovers:?}"));
                return;
            }
        }
        if !busy {
            // Posted, held or paused by users who were slow.
            let held = city.rows.watch(|watch| {
                let held = watch.jobs.iter().filter(|(_, job)| job.state == JobState::Held);
                held.map(|(id, _)| *id).collect::<Vec<JobId>>()
            });
            for job in held {
                city.ask(job, Command::Release);
            }
            city.resume_all();
        }
        // A second hint would settle what lost its only one.
        if world.plan.hints_once() && !looked && healed.elapsed() > HINTED_WITHIN {
            looked = true;
            let lost = unclaimed(city);
            if !lost.is_empty() {
                world.wrong(|| format!("not settled: the only hint of {lost:?} is lost"));
            }
        }
        if healed.elapsed() > limit {
            let open: BTreeMap<JobId, _> = city.rows.watch(|watch| {
                let open = watch.jobs.iter().filter(|(_, job)| !job.state.is_terminal());
                open.map(|(id, job)| (*id, job.state)).collect()
            });
            let waiting = city.waiting.load(Ordering::SeqCst);
            world.wrong(|| format!("not settled after {limit:?}: {open:?}, {waiting} users wait"));
            return;
        }
        sleep(Duration::from_millis(500)).await;
    }
}

/// Jobs that have long been due and that nobody has claimed in this attempt.
fn unclaimed(city: &City) -> Vec<JobId> {
    let known: Vec<JobId> = city.rows.watch(|watch| watch.jobs.keys().copied().collect());
    let long_ago = city.clock.now() - HINTED_WITHIN / 2;
    let waits = |job: &Job| {
        let life = &job.life;
        life.state == JobState::Initialized && life.fruitless_claims == 0 && life.due_at < long_ago
    };
    known.into_iter().filter(|id| city.rows.row(*id).is_some_and(|job| waits(&job))).collect()
}

/// Everything that must be true at the end.
fn check(city: &City) {
    let world = &city.world;
    let accepted = lock(&city.accepted).clone();
    let known: Vec<JobId> = city.rows.watch(|watch| watch.jobs.keys().copied().collect());
    let mut ids: Vec<JobId> = accepted.values().copied().collect();
    ids.sort_unstable();
    if ids != known {
        world.wrong(|| format!("accepted {ids:?}, stored {known:?}"));
    }
    let mut starts: BTreeMap<SubmissionTag, Vec<Start>> = BTreeMap::new();
    for start in city.managers.iter().flat_map(|manager| manager.starts()) {
        starts.entry(start.tag).or_default().push(start);
    }
    for (tag, starts) in &starts {
        check_starts(city, *tag, starts);
    }
    let mut counts: BTreeMap<JobState, u64> = BTreeMap::new();
    for id in known {
        let Some(job) = city.rows.row(id) else {
            world.wrong(|| format!("{id} is gone"));
            continue;
        };
        *counts.entry(job.life.state).or_default() += 1;
        let tag = SubmissionTag { job: id, attempt: job.life.attempt };
        check_job(city, &job, starts.get(&tag).map_or(&[], Vec::as_slice));
        check_story(city, &job);
        check_cancel(city, &job);
    }
    let depths = city.rows.depths();
    if depths != counts {
        world.wrong(|| format!("the store counts {depths:?}, its rows are {counts:?}"));
    }
}

fn mode_of<'a>(city: &'a City, job: &Job) -> &'a Manager {
    city.managers.iter().find(|manager| manager.cluster == job.cluster).expect("a cluster of this run")
}

/// No attempt begins twice, and none begins after it was called over. Times are those of the manager and of the commit;
/// what falls into the same millisecond counts as before. At-most-once tells LOST where it does not know, so there a
/// start may follow that.
fn check_starts(city: &City, tag: SubmissionTag, starts: &[Start]) {
    if starts.len() > 1 {
        city.world.wrong(|| format!("{tag} began {} times: {starts:?}", starts.len()));
    }
    let Some(job) = city.rows.row(tag.job) else { return };
    let unsure = mode_of(city, &job).mode == SubmitMode::AtMostOnce;
    let end = city.rows.watch(|watch| watch.ends.get(&tag).copied());
    if let Some((over, state)) = end
        && let Some(late) = starts.iter().find(|start| start.at > over)
        && !(unsure && state != JobState::Canceled)
    {
        city.world.wrong(|| format!("{late:?} came after {state} at {} ms", over.as_millis()));
    }
}

/// The row says what the manager knows of the recorded submission.
fn check_job(city: &City, job: &Job, starts: &[Start]) {
    let (world, life) = (&city.world, &job.life);
    let tag = SubmissionTag { job: job.id, attempt: life.attempt };
    let manager = mode_of(city, job);
    let recorded = life.submission.as_ref().map(|submission| submission.id.clone());
    let truth = recorded.as_deref().and_then(|id| manager.truth(id));
    let end = truth.and_then(|truth| truth.end);
    let reason = life.reason.as_deref().unwrap_or("");
    let true_end = match life.state {
        JobState::Finished => end == Some(End::Exit(0)) && life.exit_code == Some(0),
        JobState::Failed => match (end, recorded.is_some()) {
            (Some(End::Exit(code)), true) => code != 0 && life.exit_code == Some(code),
            (_, true) => false,
            (_, false) if reason.starts_with("given up") => true,
            (_, false) => world.plan.run(tag, false).refused && starts.is_empty(),
        },
        JobState::Canceled => recorded.is_none() || end == Some(End::Canceled),
        JobState::TimedOut => {
            end == Some(End::TimedOut) || end == Some(End::Canceled) && reason.contains("time limit")
        }
        JobState::Lost => match (truth, recorded.is_some()) {
            (Some(truth), true) => truth.forgotten || end == Some(End::Vanished),
            (_, true) => false,
            (_, false) => manager.mode == SubmitMode::AtMostOnce,
        },
        JobState::Held
        | JobState::Initialized
        | JobState::Claimed
        | JobState::Pending
        | JobState::Running => false,
    };
    if !true_end {
        world.wrong(|| {
            format!("{tag} is {} ({reason}), its manager says {truth:?} of {recorded:?}", life.state)
        });
    }
    let ran =
        matches!(life.state, JobState::Finished) || life.state == JobState::Failed && recorded.is_some();
    if ran && !matches!(starts, [start] if Some(&start.id) == recorded.as_ref()) {
        world.wrong(|| format!("{tag} is {} and began {starts:?}", life.state));
    }
}

/// What runs until it is canceled was canceled, unless it never ran.
fn check_cancel(city: &City, job: &Job) {
    let (world, life) = (&city.world, &job.life);
    if !city.is_forever(job.id) {
        return;
    }
    match (life.state, life.submission.is_some()) {
        (JobState::Canceled, recorded) => {
            if recorded {
                world.came(Outcome::EndedByCancel);
            }
        }
        // What `check_job` finds true of it: refused, given up, not to be known or forgotten.
        (JobState::Failed, false) | (JobState::Lost, _) => {}
        (state, _) => world.wrong(|| format!("{} would run for ever, was canceled and is {state}", job.id)),
    }
}

/// A job's story can be told: its steps follow one another, and its times do too.
fn check_story(city: &City, job: &Job) {
    let (world, life) = (&city.world, &job.life);
    let told = city.rows.watch(|watch| watch.jobs.get(&job.id).map(|known| (known.state, known.attempt)));
    if told != Some((life.state, life.attempt)) {
        world.wrong(|| format!("{} is {} {}, the feed told {told:?}", job.id, life.state, life.attempt));
    }
    let history = city.rows.history(job.id);
    let mut attempt = 1;
    for entry in &history {
        let sideways = entry.from == Some(entry.to) && !entry.to.is_terminal();
        if !sideways && !is_legal(entry.from, entry.to) {
            world.wrong(|| format!("the history of {} goes from {:?} to {}", job.id, entry.from, entry.to));
        }
        if entry.attempt < attempt {
            world.wrong(|| format!("the history of {} goes back to attempt {}", job.id, entry.attempt));
        }
        attempt = entry.attempt;
    }
    if history.last().map(|entry| (entry.to, entry.attempt)) != Some((life.state, life.attempt)) {
        world.wrong(|| format!("the history of {} ends with {:?}", job.id, history.last()));
    }
    let times = [Some(job.created_at), life.claimed_at, life.submitted_at, life.started_at, life.finished_at];
    let times: Vec<_> = times.into_iter().flatten().collect();
    if !times.is_sorted() {
        world.wrong(|| format!("the times of {} run backwards: {times:?}", job.id));
    }
}
