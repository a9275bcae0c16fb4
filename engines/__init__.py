"""Engines run code and know nothing of tenants: standard library and engine packages only, nothing of `server`."""
