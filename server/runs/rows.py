"""Runs as rows of the control database. Every function works inside the caller's transaction.

    queued ──▶ running ──▶ finished         asynchronous runs; `again` takes one back from running to queued
                 (no row) ──▶ finished      all others

`finish` is the only way into finished, and there is none out: a record that comes again changes nothing.
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Final

import orjson
from psycopg.rows import dict_row

from engines.contract import Metrics
from server.postgres.control import Connection
from server.runs.record import Run, RunError, RunRecord, encode, log_lines, metrics_of

_RUN: Final = "id, project_id, function_id, slug, version, runtime, trigger, created_at, request_id, trace_id"
_ENDED: Final = "state, outcome, error, metrics, finished_at, logs, logs_truncated, bytes"
BRIEF: Final = f"{_RUN}, state, outcome, error, metrics, finished_at, logs_truncated"
"""Columns of a record without its console lines."""

WHOLE: Final = f"{BRIEF}, logs"

_NO_METRICS: Final = orjson.dumps(Metrics()).decode()

_FINISH: Final = f"""
WITH given AS (
  SELECT * FROM json_to_recordset(%s::json) AS given (
    id uuid, project_id uuid, function_id uuid, slug text, version integer, runtime text, trigger text,
    created_at timestamptz, request_id text, trace_id text, state text, outcome text, error text, metrics json,
    finished_at timestamptz, logs text, logs_truncated boolean, bytes integer)
  WHERE project_id = ANY(%s)
), written AS (
  INSERT INTO runs ({_RUN}, {_ENDED})
  SELECT {_RUN}, state, outcome, error::json, metrics, finished_at, logs::json, logs_truncated, bytes
  FROM given ORDER BY id
  ON CONFLICT (id) DO UPDATE SET
    function_id = excluded.function_id, version = excluded.version, runtime = excluded.runtime, state = excluded.state,
    outcome = excluded.outcome, error = excluded.error, metrics = excluded.metrics, finished_at = excluded.finished_at,
    logs = excluded.logs, logs_truncated = excluded.logs_truncated, bytes = excluded.bytes
  WHERE runs.state <> 'finished' AND runs.project_id = excluded.project_id
  RETURNING project_id, bytes, created_at
)
INSERT INTO run_usage AS known (project_id, bytes, oldest_at)
SELECT project_id, sum(bytes), min(created_at) FROM written GROUP BY project_id ORDER BY project_id
ON CONFLICT (project_id) DO UPDATE
SET bytes = known.bytes + excluded.bytes, oldest_at = least(known.oldest_at, excluded.oldest_at)
"""


async def finish(conn: Connection, records: Iterable[RunRecord]) -> None:
    """Write finished runs of projects that are there; the records are `storable`."""
    by_id = {record.run.id: record for record in records}
    projects = sorted({record.run.project_id for record in by_id.values()})
    cursor = await conn.execute(
        "SELECT id FROM projects WHERE id = ANY(%s::uuid[]) ORDER BY id FOR KEY SHARE", [projects]
    )
    there = [row[0] for row in await cursor.fetchall()]
    if there:
        rows = orjson.dumps([_row(record) for record in by_id.values()]).decode()
        await conn.execute(_FINISH.encode(), [rows, there])


async def enqueue(conn: Connection, run: Run) -> None:
    """A run that waits for its turn."""
    await conn.execute(
        f"INSERT INTO runs ({_RUN}, state, outcome, metrics, logs_truncated, bytes)"
        " VALUES (%s, %s, %s, %s, %s, %s, %s, %s, %s, %s, 'queued', '', %s, false, 0) ON CONFLICT (id) DO NOTHING",
        [
            run.id,
            run.project_id,
            run.function_id,
            run.slug,
            run.version,
            run.runtime,
            run.trigger,
            run.created_at,
            run.request_id,
            run.trace_id,
            _NO_METRICS,
        ],
    )


async def start(conn: Connection, run_ids: Sequence[str]) -> None:
    await conn.execute("UPDATE runs SET state = 'running' WHERE id = ANY(%s::uuid[]) AND state = 'queued'", [run_ids])


async def again(conn: Connection, run_ids: Sequence[str]) -> None:
    await conn.execute("UPDATE runs SET state = 'queued' WHERE id = ANY(%s::uuid[]) AND state = 'running'", [run_ids])


async def get(conn: Connection, project_id: str, run_id: str) -> RunRecord | None:
    """The whole record."""
    cursor = await conn.cursor(row_factory=dict_row).execute(
        f"SELECT {WHOLE} FROM runs WHERE id = %s AND project_id = %s", [run_id, project_id]
    )
    row = await cursor.fetchone()
    return None if row is None else record_of(row)


def record_of(row: Mapping[str, Any]) -> RunRecord:
    """The record of a row with the columns BRIEF or WHOLE."""
    return RunRecord(
        run=Run(**{name: row[name] for name in _RUN.split(", ")}),
        state=row["state"],
        outcome=row["outcome"],
        error=RunError(**row["error"]) if row["error"] else None,
        metrics=metrics_of(row["metrics"]),
        finished_at=row["finished_at"],
        logs=tuple(log_lines(row.get("logs") or ())),
        logs_truncated=row["logs_truncated"],
    )


def _row(record: RunRecord) -> dict[str, object]:
    run = record.run
    return {
        "id": run.id,
        "project_id": run.project_id,
        "function_id": run.function_id,
        "slug": _text(run.slug),
        "version": run.version,
        "runtime": _text(run.runtime),
        "trigger": _text(run.trigger),
        "created_at": run.created_at,
        "request_id": _text(run.request_id),
        "trace_id": _text(run.trace_id),
        "state": "finished",
        "outcome": record.outcome,
        "error": _as_text(record.error),
        "metrics": record.metrics,
        "finished_at": record.finished_at or run.created_at,
        "logs": _as_text(record.logs or None),
        "logs_truncated": record.logs_truncated,
        "bytes": len(encode(record)),
    }


def _as_text(value: object) -> str | None:
    """JSON as a text in the JSON of a row: a column may hold NULs as JSON has them, json_to_recordset may not."""
    return None if value is None else orjson.dumps(value).decode()


def _text(text: str) -> str:
    return text.replace("\0", "\ufffd")
