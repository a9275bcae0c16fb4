"""Runs: the record of every invocation, from the process that ran it to whoever reads it.

    Recorder ──ATLAS_RUNS (JetStream)──▶ Writer ──▶ runs (Postgres) ◀── Reader
        │                                              ▲
        └──the same message──▶ Tail                    └── Retention

What runs now is in `Running` of its process, which others ask over NATS.
"""
