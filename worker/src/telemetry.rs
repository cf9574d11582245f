//! The metrics of a worker and its engines, described.

use jobgate_shared::telemetry::Metric;

/// Metrics of a worker.
pub const METRICS: &[Metric] = &[
    Metric::gauge("jobgate_worker_jobs", &[], "Jobs in this worker's hands that have not ended."),
    Metric::gauge(
        "jobgate_worker_unsettled",
        &[],
        "Jobs in this worker's hands that have ended and whose row does not say so yet, or whose logs are on their way.",
    ),
    Metric::counter("jobgate_worker_leases_lost_total", &[], "Leases of this worker that ran out."),
    Metric::counter("jobgate_jobs_adopted_total", &[], "Jobs taken over from another worker."),
    Metric::counter(
        "jobgate_hints_stale_total",
        &[],
        "Hinted jobs that could not be claimed: somebody was first.",
    ),
    Metric::histogram("jobgate_claim_seconds", &[], "Claims of many jobs, one statement each."),
    Metric::histogram(
        "jobgate_claim_wait_seconds",
        &["cluster"],
        "From a job's being due to its claim, by the store's clock.",
    ),
    Metric::histogram(
        "jobgate_rm_call_seconds",
        &["cluster", "call"],
        "Calls to a resource manager but polls: create and start submit.",
    ),
    Metric::counter(
        "jobgate_rm_calls_total",
        &["cluster", "call", "outcome"],
        "Calls to a resource manager: answered, or away.",
    ),
    Metric::counter(
        "jobgate_rm_requests_total",
        &["cluster"],
        "Requests and commands a resource manager was asked with: a call may come to several, or to none.",
    ),
    Metric::histogram(
        "jobgate_poll_seconds",
        &["cluster"],
        "Polls of a resource manager, for all jobs at once.",
    ),
    Metric::histogram(
        "jobgate_record_submission_seconds",
        &[],
        "Records of many submissions, one statement each.",
    ),
    Metric::counter(
        "jobgate_events_applied_directly_total",
        &[],
        "Status events written to the rows by the worker: the broker was away.",
    ),
    Metric::counter(
        "jobgate_leftovers_swept_total",
        &["cluster"],
        "Inert submissions no row records, removed.",
    ),
    Metric::counter(
        "jobgate_claims_unheard_total",
        &[],
        "Jobs found in this worker's name that no claim had told it of, claimed again.",
    ),
    Metric::counter("jobgate_log_bytes_total", &[], "Bytes of logs shipped."),
    Metric::counter("jobgate_log_ship_errors_total", &[], "Tries to ship logs that failed."),
    Metric::counter("jobgate_local_runners_started_total", &["cluster"], "Runner processes started."),
    Metric::counter(
        "jobgate_local_runner_failures_total",
        &["cluster"],
        "Runner processes that could not be started, or ended before they had a job.",
    ),
    Metric::counter(
        "jobgate_local_processes_killed_total",
        &["cluster"],
        "Processes of jobs whose runner was gone, killed because nobody watched them.",
    ),
    Metric::counter(
        "jobgate_commands_cut_off_total",
        &["cluster"],
        "Commands of a scheduler killed because they took too long.",
    ),
    Metric::gauge("jobgate_local_spool_attempts", &["cluster"], "Attempts in the spool at the last sweep."),
];
