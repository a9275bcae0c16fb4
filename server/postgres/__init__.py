"""Postgres: the control plane's pool, migrations and change announcements, and the tenants' schemas."""
