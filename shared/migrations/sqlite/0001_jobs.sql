-- The embedded store. One process writes, through one connection, so counts can be kept in place.
-- Ids are 16 bytes; times are microseconds since 1970; documents are JSON.

-- What was asked for. Written once, and by hand (labels, priority, outputs, progress).
CREATE TABLE jobs (
    id            BLOB PRIMARY KEY,      -- UUIDv7: newest last
    project       TEXT    NOT NULL,
    name          TEXT    NOT NULL,
    cluster       TEXT    NOT NULL,
    labels        TEXT    NOT NULL,      -- JSON list of strings
    created_at    INTEGER NOT NULL,
    asked         TEXT    NOT NULL       -- the job as accepted and patched; its life and priority are in job_state
);
CREATE INDEX jobs_by_project ON jobs (project, id);

-- What changes, with what deciding about it takes: narrow, so that a change writes little.
CREATE TABLE job_state (
    job           BLOB PRIMARY KEY,
    project       TEXT    NOT NULL,
    cluster       TEXT    NOT NULL,
    priority      INTEGER NOT NULL,      -- -100 to 100, higher first
    max_attempts  INTEGER NOT NULL,
    retry         TEXT    NOT NULL,      -- JSON
    life          TEXT    NOT NULL,      -- JSON, the truth; the columns after it repeat what is searched for
    version       INTEGER NOT NULL DEFAULT 0,
    state         INTEGER NOT NULL,      -- 0 HELD, 1 INITIALIZED, 2 CLAIMED, 3 PENDING, 4 RUNNING, 5 FINISHED, 6 FAILED, 7 CANCELED, 8 TIMED_OUT, 9 LOST
    owner         BLOB,
    cancel        INTEGER NOT NULL,      -- a cancel was asked for and is not carried out
    finished_at   INTEGER,
    hinted_until  INTEGER                -- stranded, and a hint for it is outstanding until then
) WITHOUT ROWID;

CREATE INDEX job_state_owned ON job_state (owner) WHERE state IN (2, 3, 4);
CREATE INDEX job_state_ended ON job_state (finished_at, job) WHERE state >= 5;
CREATE INDEX job_state_other ON job_state (state, job) WHERE state > 5;

-- One row for each job that is INITIALIZED, gone when it is claimed.
CREATE TABLE waiting (
    job           BLOB PRIMARY KEY,
    cluster       TEXT    NOT NULL,
    priority      INTEGER NOT NULL,
    due_at        INTEGER NOT NULL,
    suspect       INTEGER NOT NULL,      -- it may be what kills workers: hint it alone
    hinted_until  INTEGER                -- a hint for it is outstanding until then
) WITHOUT ROWID;
CREATE INDEX waiting_in_order ON waiting (cluster, priority, due_at, job);
CREATE INDEX waiting_hinted   ON waiting (cluster, hinted_until) WHERE hinted_until IS NOT NULL;

-- Changes off the happy path; the rest of a history is derived from the life's times.
CREATE TABLE deviations (
    n    INTEGER PRIMARY KEY AUTOINCREMENT,
    job  BLOB NOT NULL,
    what TEXT NOT NULL
);
CREATE INDEX deviations_by_job ON deviations (job, n);

-- What was committed, in order: one row for each change.
CREATE TABLE feed (
    batch   INTEGER PRIMARY KEY AUTOINCREMENT,
    at      INTEGER NOT NULL,
    changes TEXT    NOT NULL,            -- JSON list, in order
    length  INTEGER NOT NULL             -- how many
);
-- Where the part of the feed that is no longer kept ended.
CREATE TABLE feed_forgotten (
    only_row INTEGER PRIMARY KEY CHECK (only_row = 1),
    batch    INTEGER NOT NULL,
    length   INTEGER NOT NULL
);
INSERT INTO feed_forgotten VALUES (1, 0, 0);

CREATE TABLE counts (
    project  TEXT    NOT NULL,
    cluster  TEXT    NOT NULL,
    priority INTEGER NOT NULL,
    state    INTEGER NOT NULL,
    jobs     INTEGER NOT NULL,
    PRIMARY KEY (project, cluster, priority, state)
) WITHOUT ROWID;

CREATE TABLE idempotency_keys (
    project TEXT NOT NULL,
    key     TEXT NOT NULL,
    body    BLOB NOT NULL,               -- SHA-256
    job     BLOB NOT NULL,
    PRIMARY KEY (project, key)
) WITHOUT ROWID;
CREATE INDEX idempotency_keys_by_job ON idempotency_keys (job);

CREATE TABLE workers (
    id         BLOB PRIMARY KEY,
    expires_at INTEGER NOT NULL,
    told       TEXT    NOT NULL          -- the worker as it last told
) WITHOUT ROWID;

CREATE TABLE clusters (
    name   TEXT PRIMARY KEY,
    paused INTEGER NOT NULL,
    by     TEXT    NOT NULL,
    at     INTEGER NOT NULL
) WITHOUT ROWID;

CREATE TABLE tokens (
    id    BLOB PRIMARY KEY,
    token TEXT NOT NULL                  -- never the secret, only its SHA-256
) WITHOUT ROWID;
