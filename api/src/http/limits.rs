//! How much one client may ask for: sizes, counts and times, fixed or configured.

use jobgate_shared::settings::{Number, Period};
use serde::{Deserialize, Serialize};
use std::{ops::RangeInclusive, time::Duration};

/// Largest body of a single job.
pub(super) const MAX_JOB: usize = 1024 * 1024;
/// Largest body of a batch.
pub(super) const MAX_BATCH: usize = 32 * 1024 * 1024;
/// Most jobs of a batch.
pub(super) const MAX_BATCH_ITEMS: usize = 10_000;
/// Largest body of anything else.
pub(super) const MAX_SMALL: usize = 256 * 1024;
/// Largest outputs of a job, whatever patches they came by.
pub(super) const MAX_OUTPUTS: usize = 512 * 1024;
/// Most memory one document of a job may take beside its text: about 200 000 values, or 20 000 objects of two fields.
pub(super) const MAX_PARSED: usize = 16 * 1024 * 1024;
/// Largest page of a listing, and the usual one.
pub(super) const MAX_PAGE: u32 = 1_000;
/// Page of a listing when nothing is said.
pub(super) const DEFAULT_PAGE: u32 = 100;
/// Most jobs of one claim.
pub(super) const MAX_CLAIM: u32 = 100;
/// Jobs of one claim when nothing is said.
pub(super) const DEFAULT_CLAIM: u32 = 10;
/// How long a claimant's lease may be.
pub(super) const LEASE: RangeInclusive<Duration> = Duration::from_secs(5)..=Duration::from_hours(1);
/// How long it is when nothing is said.
pub(super) const USUAL_LEASE: Duration = Duration::from_mins(1);
/// Longest `?wait=`.
pub(super) const MAX_WAIT: Duration = Duration::from_mins(1);
/// How long a request may take, its body included.
pub(super) const QUICK: Duration = Duration::from_secs(30);
/// The same where waiting or much work is what was asked for.
pub(super) const PATIENT: Duration = Duration::from_secs(90);
/// The same for a batch, which may come over a slow line.
pub(super) const BULK: Duration = Duration::from_mins(5);
/// How long a bulk command works before it answers how to go on.
pub(super) const BULK_COMMAND: Duration = Duration::from_secs(20);

/// `[api.http]`
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct HttpConfig {
    /// Host names clients may use beside the address listened on; a proxy's public name belongs here.
    pub allowed_hosts: Vec<String>,
    /// Most connections at once; more wait to be accepted.
    pub max_connections: Number<1, 100_000>,
    /// How long a client may take to send the head of a request, the idle time before it included; one that takes nothing of
    /// its answers is cut off after seven times that.
    pub header_timeout: Period<100, 600_000>,
    /// How long requests under way may go on after a stop was asked for.
    pub drain_timeout: Period<0, 600_000>,
    /// Most event streams and followed logs at once.
    pub max_streams: Number<1, 100_000>,
    /// Most batches read at once, each up to 32 MiB.
    pub max_batches: Number<1, 1_000>,
    /// `/metrics` needs no token. Without this it needs one that reads every project.
    pub open_metrics: bool,
}

impl Default for HttpConfig {
    fn default() -> Self {
        Self {
            allowed_hosts: Vec::new(),
            max_connections: Number::new(4_096),
            header_timeout: Period::new(Duration::from_secs(10)),
            drain_timeout: Period::new(Duration::from_secs(10)),
            max_streams: Number::new(1_000),
            max_batches: Number::new(8),
            open_metrics: false,
        }
    }
}
