//! The metrics of the API and of the recorder, described.

use jobgate_shared::telemetry::Metric;

/// Metrics of HTTP, acceptance, the dispatcher and housekeeping.
pub const API: &[Metric] = &[
    Metric::counter("jobgate_http_requests_total", &["route", "method", "status"], "Requests answered."),
    Metric::histogram(
        "jobgate_http_request_seconds",
        &["route"],
        "Requests, from their head to the answer's.",
    ),
    Metric::counter("jobgate_http_panics_total", &[], "Requests whose handler panicked; a defect."),
    Metric::counter("jobgate_http_accept_errors_total", &[], "Connections the system would not give us."),
    Metric::counter("jobgate_jobs_accepted_total", &[], "Jobs stored, each once however often it is posted."),
    Metric::histogram(
        "jobgate_accept_seconds",
        &[],
        "Acceptance: from the posted jobs of one request to their durable commit.",
    ),
    Metric::histogram("jobgate_accept_commit_seconds", &[], "Commits of accepted jobs, tries together."),
    Metric::histogram("jobgate_accept_commit_rows", &[], "Jobs in one commit."),
    Metric::counter(
        "jobgate_accept_hints_failed_total",
        &[],
        "Hints the broker did not take after an acceptance; the dispatcher gives them.",
    ),
    Metric::gauge(
        "jobgate_jobs",
        &["cluster", "priority", "state"],
        "Jobs, as every API process measures them for itself: take the maximum.",
    ),
    Metric::gauge(
        "jobgate_oldest_due_seconds",
        &["cluster", "priority", "state"],
        "How long the oldest due job waits for a worker (so its state is INITIALIZED), measured as jobgate_jobs is.",
    ),
    Metric::gauge(
        "jobgate_hints_outstanding",
        &["cluster"],
        "Due jobs workers were told of and have not taken.",
    ),
    Metric::counter(
        "jobgate_hints_published_total",
        &["cluster", "kind"],
        "Jobs hinted by the dispatcher: fresh, again, or for rescue.",
    ),
    Metric::histogram(
        "jobgate_dispatch_latency_seconds",
        &[],
        "From a job's being due to its first hint, where the dispatcher gave it.",
    ),
    Metric::counter(
        "jobgate_lease_expiries_total",
        &[],
        "Leases of workers that ran out, as every API process finds for itself: take the maximum.",
    ),
    Metric::counter("jobgate_rescued_jobs_total", &[], "Jobs of dead workers handed on."),
    Metric::counter(
        "jobgate_claims_outside_total",
        &["cluster", "kind"],
        "Jobs granted to services outside: fresh, or adopted from a claimant that is gone.",
    ),
    Metric::counter(
        "jobgate_claim_reports_total",
        &["cluster", "outcome"],
        "Reports of services outside, by what became of them.",
    ),
    Metric::counter("jobgate_retired_jobs_total", &[], "Ended jobs removed by retention."),
];

/// Metrics of the recorder.
pub const RECORDER: &[Metric] = &[
    Metric::counter("jobgate_events_total", &["outcome"], "Status events, by what the rows made of them."),
    Metric::counter(
        "jobgate_duplicates_dropped_total",
        &[],
        "Status events that told a row what it said already.",
    ),
    Metric::histogram(
        "jobgate_record_latency_seconds",
        &[],
        "From a worker's seeing a change to the row's saying so.",
    ),
    Metric::gauge("jobgate_events_behind", &[], "Messages of status events that wait for a recorder."),
];
