"""Rows of the ledger as dispatch leaves them, written by hand."""

import json
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import uuid4

import pytest

from server.dispatch.identity import delivery_id
from server.postgres.changes import Changes
from server.postgres.control import Connection, Pool, transaction
from tests.fix_triggers import add_function, add_trigger

EVENT_BODY = b'{"id": "e1", "type": "order.paid", "data": {"n": 12345678901234567890.10}}'
NOW = datetime(2026, 6, 1, tzinfo=UTC)
FINISHED = ("done", "dead", "skipped", "cancelled")


def an_attempt(number: int = 1, outcome: str = "exception", **fields: Any) -> dict[str, Any]:
    began_at = datetime(2026, 3, 1, tzinfo=UTC) + timedelta(minutes=number)
    return {
        "attempt": number,
        "run_id": str(uuid4()),
        "began_at": began_at.isoformat(),
        "ended_at": (began_at + timedelta(seconds=1)).isoformat(),
        "outcome": outcome,
        "reason": "FUNCTION_EXCEPTION",
        "message": "boom",
        **fields,
    }


async def put_delivery(pool: Pool, project_id: str, trigger_id: str, **columns: Any) -> str:
    """A delivery and, unless `body` is None, its event; the delivery's id. Dead unless said otherwise."""
    async with transaction(pool) as conn:
        return await insert_delivery(conn, project_id, trigger_id, **columns)


async def insert_delivery(
    conn: Connection, project_id: str, trigger_id: str, *, body: bytes | None = EVENT_BODY, **columns: Any
) -> str:
    event_id = columns.get("event_id", str(uuid4()))
    values: dict[str, Any] = {
        "id": delivery_id(trigger_id, event_id),
        "project_id": project_id,
        "trigger_id": trigger_id,
        "event_id": event_id,
        "event_type": "order.paid",
        "sequence": 1,
        "state": "dead",
        "due_at": datetime.now(UTC),
        **columns,
    }
    if values["state"] in FINISHED:
        values.setdefault("finished_at", datetime.now(UTC))
    if values["state"] == "dead":
        values.setdefault("outcome", "exception")
        values.setdefault("error", {"reason": "FUNCTION_EXCEPTION", "message": "boom"})
        values.setdefault("history", [an_attempt()])
        values.setdefault("attempts", 1)
    told = {name: json.dumps(value) if name in ("history", "error") else value for name, value in values.items()}
    await conn.execute(
        f"INSERT INTO deliveries ({', '.join(told)}) VALUES ({', '.join(['%s'] * len(told))})".encode(),
        list(told.values()),
    )
    if body is not None:
        await conn.execute(
            "INSERT INTO delivered_events (project_id, event_id, body, stored_at) VALUES (%s, %s, %s, %s)"
            " ON CONFLICT DO NOTHING",
            [project_id, event_id, body, values.get("created_at", datetime.now(UTC))],
        )
    return str(values["id"])


async def put_parked(pool: Pool, sequence: int, body: bytes, **columns: Any) -> None:
    values = {
        "sequence": sequence,
        "subject": "atlasdb.events.odd",
        "reason": "The message is not an event",
        "body": body,
        "body_bytes": len(body),
        **columns,
    }
    async with transaction(pool) as conn:
        await conn.execute(
            f"INSERT INTO parked_messages ({', '.join(values)}) VALUES ({', '.join(['%s'] * len(values))})".encode(),
            list(values.values()),
        )


async def count(pool: Pool, table: str, where: str = "true") -> int:
    async with transaction(pool) as conn:
        cursor = await conn.execute(f"SELECT count(*) FROM {table} WHERE {where}".encode())
        ((number,),) = await cursor.fetchall()
    return int(number)


@pytest.fixture
async def trigger_id(pool: Pool, changes: Changes, project_id: str) -> str:
    """Of the project, on a function; enabled."""
    await changes.start()
    return await add_trigger(pool, changes, await add_function(pool, project_id))
