//! Times for people: how long, how long ago, and when exactly.

use chrono::{DateTime, SecondsFormat, Utc};
use std::time::Duration;

/// How long, in the two largest units that matter: `840ms`, `12s`, `3m 05s`, `2h 07m`, `4d 11h`.
pub(crate) fn span(duration: Duration) -> String {
    let seconds = duration.as_secs();
    let (days, hours, minutes) = (seconds / 86_400, seconds / 3_600, seconds / 60);
    if seconds == 0 {
        format!("{}ms", duration.as_millis())
    } else if seconds < 10 {
        format!("{:.1}s", duration.as_secs_f64())
    } else if minutes == 0 {
        format!("{seconds}s")
    } else if hours == 0 {
        format!("{minutes}m {:02}s", seconds % 60)
    } else if days == 0 {
        format!("{hours}h {:02}m", minutes % 60)
    } else {
        format!("{days}d {:02}h", hours % 24)
    }
}

/// How long ago, in whole units; a time ahead is shown with a plus.
pub(crate) fn age(then: DateTime<Utc>, now: DateTime<Utc>) -> String {
    let (sign, passed) = if then > now { ("+", then - now) } else { ("", now - then) };
    let whole = Duration::from_secs(passed.num_seconds().unsigned_abs());
    if whole.is_zero() {
        return "0s".to_owned();
    }
    if whole.as_secs() < 10 {
        return format!("{sign}{}s", whole.as_secs());
    }
    format!("{sign}{}", span(whole))
}

/// When, to the second, in UTC.
pub(crate) fn stamp(at: DateTime<Utc>) -> String {
    at.to_rfc3339_opts(SecondsFormat::Secs, true)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_span_shows_two_units_at_most() {
        let shown = [0, 840, 1_200, 12_000, 185_000, 7_620_000, 385_200_000]
            .map(|ms| span(Duration::from_millis(ms)));
        assert_eq!(shown, ["0ms", "840ms", "1.2s", "12s", "3m 05s", "2h 07m", "4d 11h"]);
    }

    #[test]
    fn an_age_looks_back_and_ahead() {
        let now: DateTime<Utc> = "2030-01-01T00:01:00Z".parse().unwrap();
        assert_eq!(age("2030-01-01T00:00:00Z".parse().unwrap(), now), "1m 00s");
        assert_eq!(age("2030-01-01T00:01:05Z".parse().unwrap(), now), "+5s");
        assert_eq!(age(now, now), "0s");
    }
}
