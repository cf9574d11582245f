//! What is seen while jobs run: bars on a terminal, a line now and then anywhere else.

use super::tracker::{Counts, Standing};
use crate::{
    commands::tell,
    logging,
    render::{clean_line, span},
};
use indicatif::{MultiProgress, ProgressBar, ProgressDrawTarget, ProgressStyle};
use std::{
    io::{IsTerminal as _, stderr},
    time::Duration,
};
use tokio::time::Instant;

/// Between two lines when there is no terminal.
const EVERY: Duration = Duration::from_secs(5);

/// Shows how a run gets on. Everything goes to standard error: standard output is for results.
pub(super) enum Progress {
    /// A bar for each of the four groups of states.
    Bars {
        all: MultiProgress,
        finished: ProgressBar,
        running: ProgressBar,
        waiting: ProgressBar,
        unwell: ProgressBar,
    },
    /// A line when something is worth one.
    Lines { began: Instant, told: Option<Instant>, last: Counts },
}

impl Progress {
    /// Bars if standard error is a terminal.
    pub(super) fn begin() -> Self {
        if !stderr().is_terminal() {
            return Self::Lines { began: Instant::now(), told: None, last: Counts::default() };
        }
        let all = MultiProgress::with_draw_target(ProgressDrawTarget::stderr_with_hz(10));
        logging::keep_above(Some(all.clone()));
        let bar = |name: &'static str, color: &str| {
            let template = format!("  {{prefix:<9}} {{wide_bar:.{color}}} {{pos:>6}} / {{len}}");
            let style =
                ProgressStyle::with_template(&template).unwrap_or_else(|_| ProgressStyle::default_bar());
            let bar = ProgressBar::new(0).with_style(style.progress_chars("━━ ")).with_prefix(name);
            all.add(bar)
        };
        let (finished, running) = (bar("finished", "green"), bar("running", "cyan"));
        let (waiting, unwell) = (bar("waiting", "blue"), bar("unwell", "red"));
        Self::Bars { all, finished, running, waiting, unwell }
    }

    /// Jobs stand elsewhere now.
    pub(super) fn counts(&mut self, counts: Counts) {
        match self {
            Self::Bars { finished, running, waiting, unwell, .. } => {
                let shown = [
                    (finished, counts.finished),
                    (running, counts.running),
                    (waiting, counts.waiting),
                    (unwell, counts.unwell),
                ];
                for (bar, position) in shown {
                    bar.set_length(counts.all());
                    bar.set_position(position);
                }
            }
            Self::Lines { began, told, last } => {
                let due = told.is_none_or(|at| at.elapsed() >= EVERY) || counts.ended() == counts.all();
                if due && counts != *last {
                    let passed = span(began.elapsed());
                    let Counts { waiting, running, finished, unwell } = counts;
                    tell(format_args!(
                        "{passed:>7}  {finished} finished, {running} running, {waiting} waiting, {unwell} unwell"
                    ));
                    (*told, *last) = (Some(Instant::now()), counts);
                }
            }
        }
    }

    /// A job ended; said only if not well.
    pub(super) fn ended(&self, id: &str, job: &Standing) {
        if job.state == jobgate_shared::domain::JobState::Finished {
            return;
        }
        let reason = job.reason.as_deref().unwrap_or("no reason given");
        self.say(&format!("{} {} ({id}): {}", job.state, clean_line(&job.name, 60), clean_line(reason, 200)));
    }

    /// A line above the bars.
    pub(super) fn say(&self, line: &str) {
        match self {
            Self::Bars { all, .. } => {
                // Fails only with standard error itself, and then there is nobody to tell.
                all.println(line).unwrap_or_default();
            }
            Self::Lines { .. } => tell(line),
        }
    }

    /// Takes the bars away.
    pub(super) fn end(&self) {
        if let Self::Bars { all, .. } = self {
            logging::keep_above(None);
            all.clear().unwrap_or_default();
        }
    }
}
