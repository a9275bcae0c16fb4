"""Workflows: graphs of steps that a trigger or a caller starts, kept in Postgres, run by any worker to their end."""
