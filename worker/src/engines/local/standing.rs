//! What an attempt's files say about it, and what must be done before some of it may be said.

use super::{
    attempt::{Attempt, Token},
    cgroup::Cgroup,
    process::{self, Leftovers, World},
    spool::{Place, Spool},
};
use chrono::{DateTime, Utc};
use jobgate_shared::domain::{Ending, Observation};
use std::{io, path::Path, time::Instant};

/// Where an attempt stands.
#[derive(Debug)]
pub(super) enum Standing {
    /// It does not lie in the spool: never made, or forgotten.
    Missing,
    /// Made and never started.
    Inert,
    /// It will never begin.
    Tombstone { at: DateTime<Utc> },
    /// Its runner lives.
    Running { since: DateTime<Utc> },
    /// Its end is written.
    Ended(Observation),
    /// It began, its runner is gone, and no end was written. Its processes may still be there: see [`bury`].
    Abandoned { since: DateTime<Utc> },
}

/// Looks, and changes nothing.
pub(super) fn look(spool: &Spool, place: Place) -> io::Result<(Standing, Option<Attempt>)> {
    let Some(attempt) = spool.attempt(place)? else { return Ok((Standing::Missing, None)) };
    let standing = read(&attempt)?;
    // An attempt is taken away whole, but this may have read it while it was.
    if matches!(standing, Standing::Inert | Standing::Abandoned { .. }) && !spool.holds(place, &attempt)? {
        return Ok((Standing::Missing, None));
    }
    Ok((standing, Some(attempt)))
}

/// What the files of an attempt say that nobody takes away meanwhile.
pub(super) fn read(attempt: &Attempt) -> io::Result<Standing> {
    if let Some(end) = attempt.exit()? {
        return Ok(Standing::Ended(end));
    }
    let since = match attempt.token()? {
        None => return Ok(Standing::Inert),
        Some(Token::Tombstone { at }) => return Ok(Standing::Tombstone { at }),
        Some(Token::Runner { at }) => at,
    };
    if attempt.find_runner()?.is_some() {
        return Ok(Standing::Running { since });
    }
    // A runner writes the end before it goes, so now that it is gone the end is there, or never will be.
    Ok(match attempt.exit()? {
        Some(end) => Standing::Ended(end),
        None => Standing::Abandoned { since },
    })
}

/// What is known of an attempt whose runner is gone.
#[derive(Debug)]
pub(super) enum Burial {
    /// Nothing of it runs any more; the evidence that it ended unseen.
    Gone { evidence: String },
    /// Nothing of it runs any more, and that is what was asked for.
    Canceled(Observation),
    /// Something of it runs on, killed as it is.
    Restless,
}

/// Ends what is left of an abandoned attempt: nobody watches it, limits it or will ever tell its end. It is given `until` then
/// to be gone. Also says how many processes that were.
pub(super) fn bury(
    attempt: &Attempt,
    place: Place,
    cgroup: Option<&Path>,
    since: DateTime<Utc>,
    now: DateTime<Utc>,
    until: Instant,
) -> io::Result<(Burial, u32)> {
    let runner = attempt.runner()?.map(|record| record.runner);
    let mut ended = match &runner {
        Some(runner) => process::end_leftovers(runner, place.tag, until)?,
        // It writes who it is before it starts anything.
        None => Leftovers { killed: 0, all_gone: true },
    };
    if let Some(delegated) = cgroup {
        ended.all_gone &= Cgroup::at(delegated, &place.submission_id()).end(until)?;
    }
    if !ended.all_gone {
        return Ok((Burial::Restless, ended.killed));
    }
    if attempt.is_cancel_asked()? {
        let reason = Some("canceled; its runner was gone already".to_owned());
        let (began, at) = (Some(since), Some(now));
        let end = Observation::Ended { ending: Ending::Canceled, exit_code: None, reason, began, at };
        attempt.write_exit(&end)?;
        return Ok((Burial::Canceled(end), ended.killed));
    }
    let mut evidence = match &runner {
        None => "its runner ended before it began the job".to_owned(),
        Some(runner) if World::here()?.boot != runner.world.boot => {
            "its host has restarted since it began".to_owned()
        }
        Some(runner) => format!("its runner (process {}) is gone and wrote no end", runner.pid),
    };
    if let Some(words) = attempt.last_words() {
        evidence = format!("{evidence}: {words}");
    }
    Ok((Burial::Gone { evidence }, ended.killed))
}
