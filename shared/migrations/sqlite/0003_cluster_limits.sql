-- Most jobs of a cluster in flight at once; null: no limit.
ALTER TABLE clusters ADD COLUMN max_in_flight INTEGER;
-- How many more jobs of each limited cluster may be claimed.
CREATE VIEW cluster_room (cluster, room) AS
SELECT c.name,
       max(0, c.max_in_flight
              - (SELECT coalesce(sum(n.jobs), 0) FROM counts n WHERE n.cluster = c.name AND n.state IN (2, 3, 4)))
  FROM clusters c
 WHERE c.max_in_flight IS NOT NULL;
