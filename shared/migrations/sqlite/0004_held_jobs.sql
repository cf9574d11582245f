-- Listings of held jobs: every state but FINISHED is found without looking at jobs in another.
CREATE INDEX job_state_held ON job_state (job) WHERE state = 0;
