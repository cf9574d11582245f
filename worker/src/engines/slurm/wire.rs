//! What slurmrestd sends, in every shape its versions gave it, read into one: v0.0.38 says `"job_state": "FAILED"` and a wait
//! status, v0.0.40 and later `["FAILED"]` and a structure. Fields nobody here needs are skipped while reading, and so are
//! other people's jobs.

use chrono::{DateTime, Utc};
use serde::{Deserialize, Deserializer};
use serde_json::value::RawValue;

/// What every tag begins with, and so every name.
const OURS: &str = "jobgate-";

/// Any answer: its errors, and the jobs it lists.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub(super) struct Answer {
    /// Of these nothing is overlooked: without them an answer would be a success.
    #[serde(deserialize_with = "listed")]
    pub(super) errors: Vec<ErrorEntry>,
    /// `None` of an answer that lists none, which is no empty list.
    #[serde(deserialize_with = "jobs")]
    pub(super) jobs: Option<Vec<JobRecord>>,
    /// Of a submit.
    #[serde(deserialize_with = "number")]
    pub(super) job_id: Option<i64>,
    /// Of a cancel, in v0.0.42: how each job took it. What went wrong with one stands here alone, over HTTP 200, so of these
    /// nothing is overlooked either.
    #[serde(deserialize_with = "listed")]
    pub(super) status: Vec<JobStatus>,
}

/// How one job took a cancel.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(default)]
pub(super) struct JobStatus {
    #[serde(deserialize_with = "or_default")]
    pub(super) error: StatusError,
}

#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(default)]
pub(super) struct StatusError {
    /// 0 is none; where it cannot be read, nothing is known to have been done.
    #[serde(deserialize_with = "number")]
    pub(super) code: Option<i64>,
    #[serde(deserialize_with = "or_default")]
    pub(super) message: String,
}

/// One error of an answer.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(default)]
pub(super) struct ErrorEntry {
    /// Some handlers spell it `error_code`.
    #[serde(alias = "error_code", deserialize_with = "number")]
    pub(super) error_number: Option<i64>,
    #[serde(deserialize_with = "or_default")]
    pub(super) error: String,
    #[serde(deserialize_with = "or_default")]
    pub(super) description: String,
}

/// One job, of slurmctld or of slurmdbd.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(default)]
pub(super) struct JobRecord {
    #[serde(deserialize_with = "number")]
    pub(super) job_id: Option<i64>,
    #[serde(deserialize_with = "or_default")]
    pub(super) name: String,
    #[serde(deserialize_with = "or_default")]
    pub(super) user_name: String,
    /// slurmdbd's is an object, of which nothing is needed.
    #[serde(deserialize_with = "or_default")]
    pub(super) comment: String,
    #[serde(deserialize_with = "states")]
    pub(super) job_state: Vec<String>,
    #[serde(deserialize_with = "or_default")]
    pub(super) state_reason: String,
    /// 0 while it is held, whatever reason is shown.
    #[serde(deserialize_with = "number")]
    pub(super) priority: Option<i64>,
    #[serde(deserialize_with = "exit")]
    pub(super) exit_code: Option<Exit>,
    #[serde(deserialize_with = "number")]
    pub(super) restart_cnt: Option<i64>,
    #[serde(deserialize_with = "number")]
    pub(super) submit_time: Option<i64>,
    #[serde(deserialize_with = "number")]
    pub(super) start_time: Option<i64>,
    #[serde(deserialize_with = "number")]
    pub(super) end_time: Option<i64>,
    /// slurmdbd's state and times.
    #[serde(deserialize_with = "or_default")]
    pub(super) state: DbState,
    #[serde(deserialize_with = "or_default")]
    pub(super) time: DbTime,
}

#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(default)]
pub(super) struct DbState {
    #[serde(deserialize_with = "states")]
    pub(super) current: Vec<String>,
    #[serde(deserialize_with = "or_default")]
    pub(super) reason: String,
}

#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(default)]
pub(super) struct DbTime {
    #[serde(deserialize_with = "number")]
    pub(super) submission: Option<i64>,
    #[serde(deserialize_with = "number")]
    pub(super) start: Option<i64>,
    #[serde(deserialize_with = "number")]
    pub(super) end: Option<i64>,
}

/// How a batch script ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Exit {
    Code(i32),
    Signal(i32),
}

/// A list, which may be null; anything else is an error.
fn listed<'de, D: Deserializer<'de>, T: Deserialize<'de>>(input: D) -> Result<Vec<T>, D::Error> {
    Ok(Option::deserialize(input)?.unwrap_or_default())
}

/// The jobs that may be ours, by a word all our names begin with. Of the others nothing is read, so none of them can void an
/// answer; one that may be ours and cannot be read is no absence and does.
fn jobs<'de, D: Deserializer<'de>>(input: D) -> Result<Option<Vec<JobRecord>>, D::Error> {
    let Some(jobs) = Option::<Vec<Box<RawValue>>>::deserialize(input)? else { return Ok(None) };
    let mut ours = Vec::new();
    for job in jobs.iter().map(|job| job.get()).filter(|job| job.contains(OURS)) {
        let job: JobRecord = serde_json::from_str(job).map_err(serde::de::Error::custom)?;
        if job.name.is_empty() || job.name.starts_with(OURS) {
            job.is_whole().map_err(serde::de::Error::custom)?;
            ours.push(job);
        }
    }
    Ok(Some(ours))
}

impl Answer {
    /// What it says went wrong, wherever its version says that.
    pub(super) fn faults(&self) -> Vec<ErrorEntry> {
        let of_jobs = self.status.iter().map(|status| ErrorEntry {
            error_number: status.error.code,
            error: status.error.message.clone(),
            description: String::new(),
        });
        self.errors.iter().cloned().chain(of_jobs).collect()
    }
}

impl JobRecord {
    /// Whether what says whose it is and how it stands could be read.
    fn is_whole(&self) -> Result<(), &'static str> {
        let has_id = self.job_id.is_some_and(|id| u32::try_from(id).is_ok_and(|id| id > 0));
        match self {
            Self { name, .. } if name.is_empty() => Err("a job without a name that can be read"),
            _ if !has_id => Err("a job of ours without an id that can be read"),
            Self { job_state, state, .. } if job_state.is_empty() && state.current.is_empty() => {
                Err("a job of ours without a state that can be read")
            }
            _ => Ok(()),
        }
    }
}

/// A moment of Slurm, in seconds; 0 is none.
pub(super) fn moment(seconds: Option<i64>) -> Option<DateTime<Utc>> {
    seconds.filter(|seconds| *seconds > 0).and_then(|seconds| DateTime::from_timestamp(seconds, 0))
}

/// A value, or something else in its place: a job none of ours is may hold whatever it likes, and voids no answer.
#[derive(Deserialize)]
#[serde(untagged)]
enum Or<T> {
    Known(T),
    Other(serde::de::IgnoredAny),
}

fn or_default<'de, D: Deserializer<'de>, T: Deserialize<'de> + Default>(input: D) -> Result<T, D::Error> {
    Ok(match Or::deserialize(input)? {
        Or::Known(known) => known,
        Or::Other(_) => T::default(),
    })
}

fn states<'de, D: Deserializer<'de>>(input: D) -> Result<Vec<String>, D::Error> {
    #[derive(Deserialize)]
    #[serde(untagged)]
    enum Shape {
        Many(Vec<String>),
        One(String),
    }
    Ok(match Or::deserialize(input)? {
        Or::Known(Shape::Many(states)) => states,
        Or::Known(Shape::One(state)) => vec![state],
        Or::Other(_) => Vec::new(),
    })
}

#[derive(Clone, Copy, Deserialize)]
#[serde(untagged)]
enum Number {
    Plain(i64),
    Set {
        set: bool,
        #[serde(default)]
        infinite: bool,
        #[serde(default)]
        number: f64,
    },
    /// Among them the largest numbers, which stand for none.
    Other(serde::de::IgnoredAny),
}

impl Number {
    fn value(self) -> Option<i64> {
        match self {
            Self::Plain(number) => Some(number),
            #[expect(
                clippy::cast_possible_truncation,
                reason = "ids, seconds and counts are whole and small"
            )]
            Self::Set { set: true, infinite: false, number } => Some(number as i64),
            Self::Set { .. } | Self::Other(_) => None,
        }
    }
}

fn number<'de, D: Deserializer<'de>>(input: D) -> Result<Option<i64>, D::Error> {
    Ok(Number::deserialize(input)?.value())
}

fn exit<'de, D: Deserializer<'de>>(input: D) -> Result<Option<Exit>, D::Error> {
    #[derive(Deserialize)]
    struct Signal {
        #[serde(default, alias = "signal_id")]
        id: Option<Number>,
    }
    #[derive(Deserialize)]
    struct Parts {
        #[serde(default)]
        return_code: Option<Number>,
        #[serde(default)]
        signal: Option<Signal>,
    }
    #[derive(Deserialize)]
    #[serde(untagged)]
    enum Shape {
        Wait(i32),
        Parts(Parts),
    }
    let narrow = |number: i64| i32::try_from(number).ok();
    Ok(match Or::deserialize(input)? {
        Or::Known(Shape::Wait(status)) if status & 0x7f != 0 => Some(Exit::Signal(status & 0x7f)),
        Or::Known(Shape::Wait(status)) => Some(Exit::Code((status >> 8) & 0xff)),
        Or::Known(Shape::Parts(Parts { return_code, signal })) => {
            let signal = signal.and_then(|s| s.id).and_then(Number::value).and_then(narrow);
            let code = return_code.and_then(Number::value).and_then(narrow);
            signal.filter(|signal| *signal > 0).map(Exit::Signal).or(code.map(Exit::Code))
        }
        Or::Other(_) => None,
    })
}
