-- A token for a service outside that works off the jobs of one cluster.
ALTER TABLE tokens ADD COLUMN cluster text COLLATE "C";  -- the one it works for; null: it works for none
