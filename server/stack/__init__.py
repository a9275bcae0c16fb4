"""The embedded stack: Postgres, NATS, Valkey, Envoy and the API processes as children of `python -m server up`."""
