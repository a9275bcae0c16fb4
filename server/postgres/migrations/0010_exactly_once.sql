-- A run of such a version is one transaction of the tenant's, which is committed once for all attempts at the run.
ALTER TABLE function_versions
  ADD COLUMN exactly_once boolean NOT NULL DEFAULT false;
