-- The tables of jobgate.
--
-- What never changes (jobs) is apart from what changes at every step (job_state), so that a step rewrites a narrow row
-- in its own page without touching an index. Everything that has to be *found* without knowing its id (what waits, what
-- a worker holds, what ended badly) is a small table of its own, written and removed in the same transaction.
--
-- State codes, everywhere: 0 HELD, 1 INITIALIZED, 2 CLAIMED, 3 PENDING, 4 RUNNING, 5 FINISHED, 6 FAILED, 7 CANCELED,
-- 8 TIMED_OUT, 9 LOST. All times are the server's, unless a column says otherwise.

-- What was asked for. Only labels, outputs and progress ever change. JSON is kept as text: nothing looks inside.
CREATE TABLE jobs (
    id              uuid        NOT NULL,  -- UUIDv7, made by the accepting process
    created_at      timestamptz NOT NULL,  -- when it was accepted
    run_at          timestamptz,           -- the time it was asked to wait for
    progress        smallint,              -- percent, as the job tells it
    project         text        COLLATE "C" NOT NULL,
    cluster         text        COLLATE "C" NOT NULL,
    name            text        NOT NULL,
    created_by      text        NOT NULL,  -- the token that posted it
    idempotency_key text,                  -- its row in idempotency_keys, if it has one
    labels          text[],                -- null: none
    spec            text        NOT NULL,  -- JobSpec as JSON
    inputs          text,                  -- JSON object; null: empty
    outputs         text,                  -- JSON object; null: empty
    CONSTRAINT jobs_pkey PRIMARY KEY (id)
);
-- Listings of one project, newest first.
CREATE INDEX jobs_by_project ON jobs (project, id DESC);

-- Where a job stands. No index but the key, so every step is a heap-only update; half of each page is kept free for
-- them. Columns are ordered by the step that first changes them: a step logs only what comes after the first change.
CREATE TABLE job_state (
    job_id            uuid        NOT NULL,
    project           text        COLLATE "C" NOT NULL,  -- copy of jobs
    cluster           text        COLLATE "C" NOT NULL,  -- copy of jobs
    retry             text,                  -- RetryPolicy as JSON; null: the default one
    max_attempts      integer     NOT NULL,
    priority          smallint    NOT NULL,  -- changed by hand only
    due_at            timestamptz NOT NULL,  -- not to be claimed before
    attempt           integer     NOT NULL,  -- from 1
    -- changed by a claim
    epoch             integer     NOT NULL,  -- counts claims
    owner             uuid,                  -- worker; all zeroes: handed back, anybody may adopt it
    claimed_at        timestamptz,
    fruitless_claims  smallint    NOT NULL,  -- claims of this attempt that recorded nothing
    -- changed by a record
    submission_id     text,                  -- what the resource manager calls it; written once an attempt
    submission_detail text,                  -- JSON the engine keeps beside the id; null: none
    submission_reach  text,                  -- where it can be acted on; null: everywhere
    submitted_at      timestamptz,
    -- changed by every step
    state             smallint    NOT NULL,
    version           integer     NOT NULL,  -- rises with every write, guards every write
    cancel_requested  boolean     NOT NULL,
    last_epoch        integer     NOT NULL,  -- epoch of the newest event applied
    last_seq          bigint      NOT NULL,  -- its place in that epoch
    started_at        timestamptz,           -- as the resource manager tells
    finished_at       timestamptz,           -- as the resource manager tells
    exit_code         integer,
    reason            text,                  -- why it stands where it stands, for people
    CONSTRAINT job_state_pkey PRIMARY KEY (job_id)
) WITH (
    fillfactor = 50,
    autovacuum_vacuum_scale_factor = 0.05,
    autovacuum_vacuum_threshold = 10000,
    autovacuum_analyze_scale_factor = 0.2
);

-- One row per HELD or INITIALIZED job. A row is in at most one of the two partial indexes: what was hinted at once and
-- claimed soon, the common life, never enters the queue.
CREATE TABLE waiting (
    job_id     uuid        NOT NULL,
    due_at     timestamptz NOT NULL,  -- copy of job_state
    hint_until timestamptz,           -- a hint is outstanding until then; null: never hinted, or taken back
    priority   smallint    NOT NULL,  -- copy of job_state
    held       boolean     NOT NULL,  -- state is HELD
    suspect    boolean     NOT NULL,  -- may be what kills workers: hinted and claimed alone
    cluster    text        COLLATE "C" NOT NULL,  -- copy of jobs
    CONSTRAINT waiting_pkey PRIMARY KEY (job_id)
) WITH (
    fillfactor = 90,
    autovacuum_vacuum_scale_factor = 0.1,
    autovacuum_vacuum_threshold = 10000,
    autovacuum_vacuum_cost_delay = 0,
    autovacuum_analyze_scale_factor = 0.2,
    vacuum_truncate = off
);
CREATE INDEX waiting_queue ON waiting (cluster, priority DESC, due_at, job_id) WHERE NOT held AND hint_until IS NULL;
CREATE INDEX waiting_hinted ON waiting (cluster, hint_until) WHERE NOT held AND hint_until IS NOT NULL;

-- The head of each queue (cluster, priority) of jobs that wait unhinted: one index descent for each, however long it is.
CREATE VIEW queue_heads AS
WITH RECURSIVE head AS (
    (SELECT cluster, priority, due_at
       FROM waiting
      WHERE NOT held AND hint_until IS NULL
      ORDER BY cluster, priority DESC, due_at
      LIMIT 1)
    UNION ALL
    SELECT further.cluster, further.priority, further.due_at
      FROM head
     CROSS JOIN LATERAL (
        (SELECT w.cluster, w.priority, w.due_at
           FROM waiting w
          WHERE w.cluster = head.cluster AND w.priority < head.priority AND NOT w.held AND w.hint_until IS NULL
          ORDER BY w.cluster, w.priority DESC, w.due_at
          LIMIT 1)
        UNION ALL
        (SELECT w.cluster, w.priority, w.due_at
           FROM waiting w
          WHERE w.cluster > head.cluster AND NOT w.held AND w.hint_until IS NULL
          ORDER BY w.cluster, w.priority DESC, w.due_at
          LIMIT 1)
        LIMIT 1
     ) AS further
)
SELECT cluster, priority, due_at FROM head;

-- One row per batch of claims (or of hand-backs): how the jobs of a dead worker are found. A job belongs to a row while
-- its owner and epoch are the row's; rows no job belongs to are pruned.
CREATE TABLE claims (
    id         bigint      GENERATED ALWAYS AS IDENTITY,
    worker_id  uuid        NOT NULL,  -- all zeroes: handed back
    claimed_at timestamptz NOT NULL,
    check_at   timestamptz NOT NULL,  -- when to look whether a job still belongs to it
    hint_until timestamptz,           -- the hint of the first `hinted` jobs is outstanding until then
    hinted     integer     NOT NULL,
    job_ids    uuid[]      NOT NULL,
    epochs     integer[]   NOT NULL,  -- under which epoch each job was claimed, in the order of job_ids
    CONSTRAINT claims_pkey PRIMARY KEY (id)
) WITH (autovacuum_vacuum_threshold = 1000, autovacuum_vacuum_cost_delay = 0, vacuum_truncate = off);
ALTER TABLE claims ALTER job_ids SET STORAGE EXTERNAL, ALTER epochs SET STORAGE EXTERNAL;
CREATE INDEX claims_by_worker ON claims (worker_id, id);
CREATE INDEX claims_to_check ON claims (check_at);

-- Jobs somebody has and somebody else wants ended; read by the owner's heartbeat.
CREATE TABLE cancel_requests (
    job_id uuid NOT NULL,
    owner  uuid NOT NULL,  -- follows job_state.owner
    CONSTRAINT cancel_requests_pkey PRIMARY KEY (job_id)
);
CREATE INDEX cancel_requests_by_owner ON cancel_requests (owner);

-- What history cannot derive from the times in job_state: holds, cancels, adoptions, bad ends, retries.
CREATE TABLE job_history (
    n          bigint      GENERATED ALWAYS AS IDENTITY,
    job_id     uuid        NOT NULL,
    at         timestamptz NOT NULL,
    attempt    integer     NOT NULL,
    from_state smallint,
    to_state   smallint    NOT NULL,
    project    text        COLLATE "C" NOT NULL,  -- copy of jobs
    reason     text,
    by         text,                  -- who caused it
    times      jsonb,                 -- AttemptTimes this change erased from job_state
    CONSTRAINT job_history_pkey PRIMARY KEY (job_id, n)
);
-- Listings of jobs that ended badly, newest first: of one project, of all.
CREATE INDEX job_history_ends ON job_history (to_state, project, job_id DESC) WHERE to_state >= 6;
CREATE INDEX job_history_all_ends ON job_history (to_state, job_id DESC) WHERE to_state >= 6;

-- What changed, one row per saved batch. The transaction's own id orders batches: one below every running transaction
-- can neither change nor be preceded by a newer one.
CREATE TABLE feed (
    batch   bigint      NOT NULL,  -- pg_current_xact_id()
    at      timestamptz NOT NULL,
    items   integer     NOT NULL,  -- how many changes
    words   text[]      NOT NULL,  -- projects, reasons and actors of the changes, each once
    entries bytea       NOT NULL,  -- the changes, packed (see feed.rs)
    CONSTRAINT feed_pkey PRIMARY KEY (batch)
);
ALTER TABLE feed ALTER entries SET STORAGE EXTERNAL;
-- The newest change no longer kept; one row.
CREATE TABLE feed_floor (
    one   boolean NOT NULL DEFAULT true CHECK (one),
    batch bigint  NOT NULL,
    items integer NOT NULL,
    CONSTRAINT feed_floor_pkey PRIMARY KEY (one)
);
INSERT INTO feed_floor (batch, items) VALUES (0, 0);

-- How many jobs stand in one place is the sum over its rows; appended by every batch, folded now and then.
CREATE TABLE count_deltas (
    project  text     COLLATE "C" NOT NULL,
    cluster  text     COLLATE "C" NOT NULL,
    priority smallint NOT NULL,
    state    smallint NOT NULL,
    jobs     bigint   NOT NULL
) WITH (autovacuum_vacuum_threshold = 2000, autovacuum_vacuum_cost_delay = 0, vacuum_truncate = off);

-- Which job a producer's own name for a submission stands for; removed with the job.
CREATE TABLE idempotency_keys (
    project text  COLLATE "C" NOT NULL,
    key     text  COLLATE "C" NOT NULL,
    body    bytea NOT NULL,  -- SHA-256 of what was posted
    job_id  uuid  NOT NULL,
    CONSTRAINT idempotency_keys_pkey PRIMARY KEY (project, key)
);

-- Leases, one row per worker process; an identity is never used again.
CREATE TABLE workers (
    id            uuid        NOT NULL,
    registered_at timestamptz NOT NULL,
    expires_at    timestamptz NOT NULL,  -- the lease holds until then
    jobs          integer     NOT NULL,  -- as it last told
    draining      boolean     NOT NULL,
    host          text        NOT NULL,
    clusters      text        NOT NULL,  -- what it serves and where: JSON array of WorkerCluster
    parked        text,                  -- what is wrong with which: JSON object; null: nothing
    CONSTRAINT workers_pkey PRIMARY KEY (id)
) WITH (fillfactor = 50, autovacuum_vacuum_threshold = 500, autovacuum_vacuum_cost_delay = 0);

-- What operators set.
CREATE TABLE clusters (
    name   text        COLLATE "C" NOT NULL,
    paused boolean     NOT NULL,
    set_by text        NOT NULL,
    set_at timestamptz NOT NULL,
    CONSTRAINT clusters_pkey PRIMARY KEY (name)
);

-- API tokens; never a secret.
CREATE TABLE tokens (
    id            uuid        NOT NULL,  -- the public half
    name          text        NOT NULL,
    project       text,                  -- null: every project
    roles         text        NOT NULL,  -- JSON array of Role
    secret_sha256 bytea       NOT NULL,
    created_by    text        NOT NULL,
    created_at    timestamptz NOT NULL,
    expires_at    timestamptz,
    CONSTRAINT tokens_pkey PRIMARY KEY (id)
);
