-- What an attempt tells of itself, beside its progress. Like labels and outputs it lies with what was asked for, so that
-- telling it leaves the narrow row of job_state alone.
ALTER TABLE jobs
    ADD COLUMN reported_attempt integer,  -- whose progress, stage and message these are; null: nobody's
    ADD COLUMN reported_seq     bigint,   -- the greatest number among its reports
    ADD COLUMN stage            text,     -- what it is busy with, in its own word
    ADD COLUMN message          text;     -- a line for people
-- Progress told before belongs to the attempt under way.
UPDATE jobs j
   SET reported_attempt = s.attempt, reported_seq = 0
  FROM job_state s
 WHERE s.job_id = j.id AND j.progress IS NOT NULL;
