//! `jobgate list`: jobs, newest first.

use super::{Connection, Session, read, select::Select};
use crate::{
    client::{Client, ClientError, JobDoc, PageDoc, Request},
    config::Config,
    exit::Exit,
    render::{Table, age, span},
};
use chrono::{DateTime, Utc};
use jobgate_shared::clock;
use serde_json::Value;

/// Lists jobs, newest first
#[derive(Debug, clap::Args)]
pub(crate) struct List {
    #[command(flatten)]
    select: Select,
    /// Show at most so many
    #[arg(long, short = 'n', default_value_t = 50, conflicts_with = "all")]
    limit: usize,
    /// Show all
    #[arg(long)]
    all: bool,
    #[command(flatten)]
    connection: Connection,
}

/// Jobs a page holds.
const PAGE: usize = 200;

impl List {
    pub(crate) async fn run(self, config: &Config) -> anyhow::Result<Exit> {
        let Session { client, mut output } = self.connection.open(config)?;
        let limit = if self.all { usize::MAX } else { self.limit };
        let query = self.select.query(clock::system().as_ref());
        let mut pages = Pages::new(query);
        let (mut shown, mut table) = (0, table());
        let now = clock::system().now();
        while let Some(items) = pages.next(&client, limit - shown).await? {
            shown += items.len();
            for item in items {
                if output.is_json() {
                    output.document(&item)?;
                } else {
                    add_row(&mut table, &read(&item)?, now);
                }
            }
        }
        if !output.is_json() {
            output.line(table)?;
            if pages.has_more() {
                super::tell(format_args!("the newest {shown}; --all shows the rest"));
            }
        }
        Ok(Exit::Done)
    }
}

/// Walks the pages of a listing.
pub(crate) struct Pages {
    query: Vec<(&'static str, String)>,
    cursor: Option<String>,
    begun: bool,
}

impl Pages {
    /// The jobs these parameters mean.
    pub(crate) fn new(query: Vec<(&'static str, String)>) -> Self {
        Self { query, cursor: None, begun: false }
    }

    /// There is a page that was not read.
    pub(crate) fn has_more(&self) -> bool {
        !self.begun || self.cursor.is_some()
    }

    /// At most `limit` more jobs; `None` when there are no more or no more are wanted.
    pub(crate) async fn next(
        &mut self,
        client: &Client,
        limit: usize,
    ) -> Result<Option<Vec<Value>>, ClientError> {
        if limit == 0 || !self.has_more() {
            return Ok(None);
        }
        let page = [("limit", limit.min(PAGE).to_string())];
        let cursor = self.cursor.take().map(|cursor| ("cursor", cursor));
        let request = Request::get("/v1/jobs").query(self.query.clone()).query(page).query(cursor);
        let document = client.send(request).await?;
        let page: PageDoc = serde_json::from_value(document).map_err(|error| ClientError::Unreadable {
            url: format!("{}v1/jobs", client.base()),
            source: error.into(),
        })?;
        self.begun = true;
        self.cursor = page.next_cursor;
        Ok(Some(page.items))
    }
}

fn table() -> Table {
    Table::new(["ID", "NAME", "CLUSTER", "STATE", "TRY", "AGE", "RAN", "REASON"])
}

fn add_row(table: &mut Table, job: &JobDoc, now: DateTime<Utc>) {
    let tries = if job.max_attempts > 1 {
        format!("{}/{}", job.attempt, job.max_attempts)
    } else {
        job.attempt.to_string()
    };
    let state = if job.cancel_requested && !job.has_ended() {
        format!("{} (cancel)", job.state)
    } else {
        job.state.clone()
    };
    table.row(&[
        job.id.clone(),
        job.name.clone(),
        job.cluster.clone(),
        state,
        tries,
        job.created_at.map(|at| age(at, now)).unwrap_or_default(),
        ran(job, now).unwrap_or_default(),
        job.reason.clone().unwrap_or_default(),
    ]);
}

/// How long it ran, or has run.
pub(crate) fn ran(job: &JobDoc, now: DateTime<Utc>) -> Option<String> {
    let passed = job.finished_at.unwrap_or(now) - job.started_at?;
    passed.to_std().ok().map(span)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_row_shows_what_people_ask_first() {
        let job: JobDoc = serde_json::from_value(serde_json::json!({
            "id": "0190", "name": "sum", "cluster": "local", "state": "FAILED", "reason": "exit code 3",
            "attempt": 2, "max_attempts": 3, "created_at": "2030-01-01T00:00:00Z",
            "started_at": "2030-01-01T00:00:10Z", "finished_at": "2030-01-01T00:00:12Z", "new_field": 1
        }))
        .unwrap();
        let mut table = table();
        add_row(&mut table, &job, "2030-01-01T00:05:00Z".parse().unwrap());
        let shown = table.to_string();
        let row: Vec<&str> = shown.lines().nth(1).unwrap().split_whitespace().collect();
        assert_eq!(row, ["0190", "sum", "local", "FAILED", "2/3", "5m", "00s", "2.0s", "exit", "code", "3"]);
    }
}
