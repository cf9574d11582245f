-- What an attempt tells of itself is kept as one, with the attempt it is about; progress told before belongs to the
-- attempt under way.
UPDATE jobs
   SET asked = json_set(asked, '$.report', json_object(
           'attempt', (SELECT s.life ->> '$.attempt' FROM job_state s WHERE s.job = jobs.id),
           'seq', 0,
           'progress', asked ->> '$.progress',
           'stage', NULL,
           'message', NULL))
 WHERE asked ->> '$.progress' IS NOT NULL;
