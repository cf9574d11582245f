-- Most jobs of a cluster in flight at once; null: no limit.
ALTER TABLE clusters ADD COLUMN max_in_flight integer CONSTRAINT clusters_max_in_flight_check CHECK (max_in_flight >= 0);
-- How many more jobs of each limited cluster may be claimed. Below zero while more are in flight than a limit set later allows.
CREATE VIEW cluster_room AS
SELECT c.name AS cluster, c.max_in_flight - coalesce(n.jobs, 0) AS room
  FROM clusters c
 CROSS JOIN LATERAL (
       SELECT sum(d.jobs)::bigint AS jobs FROM count_deltas d WHERE d.cluster = c.name AND d.state IN (2, 3, 4)) n
 WHERE c.max_in_flight IS NOT NULL;
