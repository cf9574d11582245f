//! Which jobs a command means: by state, label, cluster, name and age.

use chrono::{DateTime, Utc};
use jobgate_shared::{
    clock::Clock,
    domain::{ClusterName, JobState},
};
use std::str::FromStr;

/// Filters; together they narrow.
#[derive(Debug, Clone, Default, clap::Args)]
pub(crate) struct Select {
    /// In one of these states, such as RUNNING,PENDING
    #[arg(long, value_name = "STATE", value_delimiter = ',', value_parser = parse_state)]
    pub(crate) state: Vec<JobState>,
    /// With this label; given several times, with all of them
    #[arg(long, value_name = "LABEL")]
    pub(crate) label: Vec<String>,
    /// Of this cluster
    #[arg(long, value_name = "CLUSTER")]
    pub(crate) cluster: Option<ClusterName>,
    /// Of exactly this name
    #[arg(long, value_name = "NAME")]
    pub(crate) name: Option<String>,
    /// Accepted since: a time such as 2030-01-31T12:00:00Z, or how long ago, such as 2h
    #[arg(long, value_name = "WHEN")]
    pub(crate) since: Option<Moment>,
    /// Accepted before: a time, or how long ago
    #[arg(long, value_name = "WHEN")]
    pub(crate) before: Option<Moment>,
}

impl Select {
    /// No filter is given.
    pub(crate) fn is_empty(&self) -> bool {
        self.query(&jobgate_shared::clock::SystemClock).is_empty()
    }

    /// As query parameters.
    pub(crate) fn query(&self, clock: &dyn Clock) -> Vec<(&'static str, String)> {
        let mut query = Vec::new();
        if !self.state.is_empty() {
            let states: Vec<&str> = self.state.iter().map(|s| s.as_str()).collect();
            query.push(("state", states.join(",")));
        }
        query.extend(self.label.iter().map(|label| ("label", label.clone())));
        query.extend(self.cluster.iter().map(|cluster| ("cluster", cluster.to_string())));
        query.extend(self.name.iter().map(|name| ("name", name.clone())));
        query.extend(self.since.map(|moment| ("created_after", moment.at(clock).to_rfc3339())));
        query.extend(self.before.map(|moment| ("created_before", moment.at(clock).to_rfc3339())));
        query
    }
}

/// A state, in any case.
fn parse_state(text: &str) -> Result<JobState, String> {
    text.to_uppercase().parse().map_err(|()| {
        let names: Vec<&str> = JobState::ALL.iter().map(|s| s.as_str()).collect();
        format!("must be one of {}", names.join(", "))
    })
}

/// A point in time, given as such or by its distance from now.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Moment {
    /// This one.
    At(DateTime<Utc>),
    /// So long ago (or, where a command looks ahead, from now).
    Distance(chrono::TimeDelta),
}

impl Moment {
    /// Looking back.
    pub(crate) fn at(self, clock: &dyn Clock) -> DateTime<Utc> {
        match self {
            Self::At(at) => at,
            Self::Distance(distance) => clock.now() - distance,
        }
    }

    /// Looking ahead.
    pub(crate) fn ahead(self, clock: &dyn Clock) -> DateTime<Utc> {
        match self {
            Self::At(at) => at,
            Self::Distance(distance) => clock.now() + distance,
        }
    }
}

impl FromStr for Moment {
    type Err = String;
    fn from_str(text: &str) -> Result<Self, String> {
        if let Ok(at) = DateTime::parse_from_rfc3339(text) {
            return Ok(Self::At(at.to_utc()));
        }
        // A century, so that no sum of time and distance overflows.
        let distance = humantime::parse_duration(text)
            .ok()
            .and_then(|d| chrono::TimeDelta::from_std(d).ok())
            .filter(|d| d.num_days() < 36_525);
        distance
            .map(Self::Distance)
            .ok_or_else(|| "must be a time such as 2030-01-31T12:00:00Z or a duration such as 2h".to_owned())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::Parser;

    #[derive(Debug)]
    struct Noon;
    impl Clock for Noon {
        fn now(&self) -> DateTime<Utc> {
            "2030-01-31T12:00:00Z".parse().unwrap()
        }
    }

    #[derive(Parser)]
    struct Line {
        #[command(flatten)]
        select: Select,
    }

    fn query(args: &[&str]) -> Vec<String> {
        let line = Line::try_parse_from([&["x"], args].concat()).unwrap();
        line.select.query(&Noon).into_iter().map(|(k, v)| format!("{k}={v}")).collect()
    }

    #[test]
    fn filters_become_parameters() {
        assert!(query(&[]).is_empty());
        let args = ["--state", "running,Pending", "--label", "a", "--label", "b", "--since", "2h"];
        assert_eq!(
            query(&args),
            ["state=RUNNING,PENDING", "label=a", "label=b", "created_after=2030-01-31T10:00:00+00:00"]
        );
        assert_eq!(
            query(&["--before", "2030-01-01T00:00:00+01:00"]),
            ["created_before=2029-12-31T23:00:00+00:00"]
        );
    }

    #[test]
    fn an_impossible_filter_is_a_wrong_usage() {
        for args in [["--state", "DONE"], ["--since", "yesterday"], ["--cluster", "A B"]] {
            assert!(Line::try_parse_from([&["x"], &args[..]].concat()).is_err(), "{args:?}");
        }
    }
}
