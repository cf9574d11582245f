//! What the matrix is made of: every point with the work that passes it, and where it cannot be passed at all.

/// Where the rows are, and with that how many processes there are.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Form {
    /// `serve`.
    Sqlite,
    /// `api`, `worker` and `recorder`, with RabbitMQ between.
    Postgres,
}

/// What stands behind the clusters.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Manager {
    /// Processes of this host.
    Local,
    /// The engine that runs nothing, over a state that outlives the workers, in each way of submitting.
    TwoPhase,
    /// The same.
    UniqueName,
    /// The same.
    Fenced,
    /// The same.
    AtMostOnce,
    /// A service outside, which claims over HTTP; no worker has a cluster.
    Claimant,
}

impl Form {
    /// Both.
    pub(super) const ALL: [Self; 2] = [Self::Sqlite, Self::Postgres];

    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Sqlite => "sqlite",
            Self::Postgres => "postgres",
        }
    }
}

impl Manager {
    /// Every one.
    pub(super) const ALL: [Self; 6] =
        [Self::Local, Self::TwoPhase, Self::UniqueName, Self::Fenced, Self::AtMostOnce, Self::Claimant];

    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Local => "local",
            Self::TwoPhase => "two_phase",
            Self::UniqueName => "unique_name",
            Self::Fenced => "fenced",
            Self::AtMostOnce => "at_most_once",
            Self::Claimant => "claimant",
        }
    }
}

/// What makes processes pass a point.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Drive {
    /// Jobs that run and end, well and otherwise.
    Run,
    /// A job that is held, then released.
    Release,
    /// A waiting job that is cancelled, then retried.
    Retry,
    /// A job that is cancelled while it runs.
    Cancel,
    /// A job that is cancelled while it is being created.
    CancelUnrecorded,
    /// A job that is cancelled once it is recorded, before it begins.
    CancelUnbegun,
    /// The worker is told to stop while a job runs.
    Drain,
    /// The worker is killed while a job runs, and started again.
    Kill,
    /// A submission nobody knows lies in the manager.
    Leftover,
    /// The worker is ended before it lets go of what has ended.
    Unforgotten,
    /// A running job is cancelled by a filter that means it.
    CancelMany,
    /// The worker is ended by whatever it creates, again and again.
    Suspect,
    /// A claim has committed and its answer does not reach the worker's core, for longer than two looks at the rows.
    Unheard,
    /// A job ends while the broker is away for its worker.
    TellRows,
    /// The worker is told to stop while the broker is away for it, an event in hand.
    TellRowsDraining,
    /// The broker is away for the api as it hints what was just posted.
    UnhintPosted,
    /// The broker is away for the api as it hints what is due.
    UnhintDue,
    /// What a dead worker left is hinted to nobody: the broker is away for the api, or the adopter is not there yet.
    UnhintStranded,
    /// A claimant begins anew.
    Newcomer,
    /// A claimant gives up what it has claimed.
    GiveUp,
}

/// Where a point can be passed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Reach {
    Everywhere,
    /// Where workers have clusters.
    Workers,
    /// The same, with a broker of its own. That of one process is never away: it ends with the process, and refuses a
    /// hint only when 200 000 jobs wait in its queue.
    Broker,
    /// Where claimants have them.
    Claimants,
    /// With processes of this host only.
    Local,
    /// Where submissions can be inert.
    Inert,
    /// Where a job is submitted again that may have been submitted.
    Again,
}

/// One point of the product.
#[derive(Debug, Clone, Copy)]
pub(super) struct Point {
    pub(super) name: &'static str,
    pub(super) drive: Drive,
    pub(super) reach: Reach,
    /// Which passing is the n-th.
    pub(super) nth: usize,
}

impl Point {
    /// The process that ends there is a role, not a job's own.
    pub(super) fn ends_a_role(&self) -> bool {
        !self.name.starts_with("runner.") && !self.name.starts_with("exec.")
    }

    /// It can be passed in this form, with this manager.
    pub(super) fn can_occur(&self, form: Form, manager: Manager) -> bool {
        let workers = manager != Manager::Claimant;
        match self.reach {
            Reach::Everywhere => true,
            Reach::Workers => workers,
            Reach::Broker => workers && form == Form::Postgres,
            Reach::Claimants => !workers,
            Reach::Local => manager == Manager::Local,
            Reach::Inert => matches!(manager, Manager::Local | Manager::TwoPhase | Manager::Fenced),
            Reach::Again => workers && manager != Manager::AtMostOnce,
        }
    }
}

const fn point(name: &'static str, drive: Drive, reach: Reach, nth: usize) -> Point {
    Point { name, drive, reach, nth }
}

use Drive::{
    Cancel, CancelMany, CancelUnbegun, CancelUnrecorded, Drain, GiveUp, Kill, Leftover, Newcomer, Release,
    Retry, Run, Suspect, TellRows, TellRowsDraining, Unforgotten, Unheard, UnhintDue, UnhintPosted,
    UnhintStranded,
};
use Reach::{Again, Broker, Claimants, Everywhere, Inert, Local, Workers};

/// Every point, and how the matrix gets there.
pub(super) const POINTS: &[Point] = &[
    point("accept.taken", Run, Everywhere, 2),
    point("accept.committed", Run, Everywhere, 2),
    point("accept.hinting", Run, Workers, 2),
    point("accept.hinted", Run, Workers, 2),
    point("accept.unhinting", UnhintPosted, Broker, 2),
    point("accept.unhinted", UnhintPosted, Broker, 2),
    point("command.taken", Retry, Everywhere, 2),
    point("cancel.recorded", Cancel, Everywhere, 2),
    point("hold.recorded", Release, Everywhere, 2),
    point("release.recorded", Release, Everywhere, 2),
    point("retry.recorded", Retry, Everywhere, 2),
    point("bulk.paged", CancelMany, Everywhere, 2),
    point("dispatch.marked", Release, Workers, 2),
    point("dispatch.hinted", Release, Workers, 2),
    point("dispatch.unhinting", UnhintDue, Broker, 2),
    point("dispatch.unhinted", UnhintDue, Broker, 2),
    point("rescue.marked", Kill, Workers, 2),
    point("rescue.hinted", Kill, Workers, 2),
    point("rescue.unhinting", UnhintStranded, Workers, 2),
    point("rescue.unhinted", UnhintStranded, Workers, 2),
    point("events.taken", Run, Workers, 3),
    point("events.applied", Run, Workers, 3),
    point("events.acknowledged", Run, Workers, 3),
    point("lease.registered", Kill, Everywhere, 2),
    point("claim.hinted", Run, Workers, 3),
    point("claim.committed", Run, Workers, 3),
    point("claim.acknowledged", Run, Workers, 3),
    point("alone.refused", Suspect, Again, 2),
    point("alone.committed", Suspect, Again, 2),
    point("adopt.hinted", Kill, Workers, 2),
    point("adopt.committed", Kill, Workers, 2),
    point("adopt.acknowledged", Kill, Workers, 2),
    point("unheard.found", Unheard, Workers, 2),
    point("unheard.claimed", Unheard, Workers, 2),
    point("create.begins", Run, Workers, 3),
    point("create.done", Run, Workers, 3),
    point("record.begins", Run, Workers, 2),
    point("record.committed", Run, Workers, 2),
    point("start.begins", Run, Workers, 3),
    point("start.done", Run, Workers, 3),
    point("watch.seen", Run, Workers, 3),
    point("publish.begins", Run, Workers, 3),
    point("publish.confirmed", Run, Workers, 3),
    point("apply.begins", TellRows, Broker, 2),
    point("apply.done", TellRows, Broker, 2),
    point("settle.known", Run, Workers, 2),
    point("forget.begins", Run, Workers, 3),
    point("forget.done", Run, Workers, 3),
    point("logs.appended", Run, Local, 2),
    point("logs.finished", Run, Local, 3),
    point("cancel.known", Cancel, Workers, 2),
    point("cancel.begins", Cancel, Workers, 2),
    point("cancel.done", Cancel, Workers, 2),
    point("discard.begins", CancelUnrecorded, Workers, 2),
    point("discard.done", CancelUnrecorded, Workers, 2),
    point("drain.begins", Drain, Everywhere, 2),
    point("hand_back.begins", Drain, Workers, 2),
    point("hand_back.done", Drain, Workers, 2),
    point("hand_over.begins", TellRowsDraining, Broker, 2),
    point("hand_over.done", TellRowsDraining, Broker, 2),
    point("drain.finished", Drain, Everywhere, 2),
    point("drain.deregistered", Drain, Everywhere, 2),
    point("claimant.registered", Newcomer, Claimants, 2),
    point("claimant.marked", Run, Claimants, 2),
    point("claimant.claimed", Run, Claimants, 3),
    point("claimant.recorded", Run, Claimants, 3),
    point("claimant.applied", Run, Claimants, 5),
    point("claimant.gave_up", GiveUp, Claimants, 2),
    point("sweep.found", Leftover, Inert, 2),
    point("sweep.discarded", Leftover, Inert, 2),
    point("sweep.shipped", Unforgotten, Local, 2),
    point("store.writing", Run, Everywhere, 7),
    point("store.written", Run, Everywhere, 7),
    point("spool.prepared", Run, Local, 3),
    point("spool.named", Run, Local, 3),
    point("spool.spawned", Run, Local, 3),
    point("spool.cancel_asked", Cancel, Local, 2),
    point("spool.buried", CancelUnbegun, Local, 2),
    point("spool.discarded", CancelUnrecorded, Local, 2),
    point("spool.trashed", Run, Local, 2),
    point("runner.ready", Run, Local, 3),
    point("runner.token", Run, Local, 3),
    point("runner.known", Run, Local, 3),
    point("runner.child", Run, Local, 3),
    point("runner.ended", Run, Local, 3),
    point("runner.exit_written", Run, Local, 3),
    point("runner.exited", Run, Local, 3),
    point("exec.begins", Run, Local, 3),
    point("exec.ready", Run, Local, 3),
];

/// One place in the matrix.
#[derive(Debug, Clone, Copy)]
pub(super) struct Cell {
    pub(super) point: &'static Point,
    /// Which passing.
    pub(super) nth: usize,
}

/// How much of the matrix.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Part {
    /// Each point once, where it is cheapest to reach.
    Slice,
    /// Every cell.
    Whole,
    /// Every cell of the point of this name.
    Point(String),
}

impl Part {
    pub(super) fn points(&self) -> impl Iterator<Item = &'static Point> {
        POINTS.iter().filter(move |point| match self {
            Self::Slice | Self::Whole => true,
            Self::Point(name) => point.name == name,
        })
    }

    /// Which passings of a point.
    pub(super) fn passings(&self, point: &Point) -> Vec<usize> {
        if *self == Self::Slice { vec![1] } else { vec![1, point.nth] }
    }
}

/// The cells of one form and manager.
pub(super) fn cells(form: Form, manager: Manager, part: &Part) -> Vec<Cell> {
    let cheapest = |point: &Point| match point.reach {
        Everywhere | Workers | Inert | Again => (Form::Sqlite, Manager::TwoPhase),
        Broker => (Form::Postgres, Manager::TwoPhase),
        Claimants => (Form::Sqlite, Manager::Claimant),
        Local => (Form::Sqlite, Manager::Local),
    };
    let meant = |point: &&Point| {
        point.can_occur(form, manager) && (*part != Part::Slice || (form, manager) == cheapest(point))
    };
    let occurrences =
        |point: &'static Point| part.passings(point).into_iter().map(move |nth| Cell { point, nth });
    part.points().filter(meant).flat_map(occurrences).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use jobgate_shared::failpoint;
    use std::collections::BTreeSet;

    #[test]
    fn every_point_of_the_product_has_its_place_in_the_matrix() {
        let planned: BTreeSet<_> = POINTS.iter().map(|point| point.name).collect();
        let there: BTreeSet<_> = failpoint::POINTS.iter().map(|(name, _)| *name).collect();
        assert_eq!(planned, there);
        assert_eq!(planned.len(), POINTS.len());
    }

    #[test]
    fn the_quick_slice_has_every_point_once_and_the_whole_has_both_occurrences() {
        let columns = || Form::ALL.into_iter().flat_map(|form| Manager::ALL.map(|manager| (form, manager)));
        let all = |part: &Part| columns().flat_map(|(form, manager)| cells(form, manager, part)).count();
        assert_eq!(all(&Part::Slice), POINTS.len());
        let places =
            |point: &Point| columns().filter(|(form, manager)| point.can_occur(*form, *manager)).count();
        assert_eq!(all(&Part::Whole), POINTS.iter().map(places).sum::<usize>() * 2);
        assert!(POINTS.iter().all(|point| point.nth > 1));
    }
}
