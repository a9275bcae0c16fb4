"""A trigger that begins with events of the past: `start_from`, given when it is created.

    start_from ··· events that the stream has ··· the trigger is in force ··· live events
                   └────────── Backfills ───────┘

What is of both is one delivery: it has one id.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any, Final

from psycopg.rows import class_row

from server.errors import InvalidArgument, ResourceExhausted
from server.events.envelope import parse_time, spelled
from server.events.json_text import Json
from server.postgres.control import Connection
from server.triggers.drafts import Draft
from server.triggers.patterns import CRON

START_FROM: Final = "start_from"
MAX_RUNNING: Final = 10
"""Of a project at the same time: each reads the stream, and keeps what it has not come to from being removed."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Backfill:
    """How far it is. `state` is running, done, stopped: the trigger was disabled, or truncated: it is through, but
    events that it had not come to were removed, because the stream was nearly full or they had reached their age.
    `looked_at` counts events of its types, of all projects."""

    state: str
    start_from: datetime
    looked_at: int
    fired: int
    finished_at: datetime | None


def taken_out(members: Mapping[str, Json]) -> tuple[dict[str, Json], Json | None]:
    """The other members, and where to start from, if that is said."""
    others = {name: member for name, member in members.items() if name != START_FROM}
    given = members.get(START_FROM)
    return others, None if given is None or given.value is None else given


def start_of(given: Json, draft: Draft, now: datetime, keep_hours: float) -> datetime:
    """InvalidArgument for what is no time that the stream reaches back to, or does not go with the draft."""
    if not isinstance(given.value, str):
        raise InvalidArgument(START_FROM, f"{START_FROM} must be a time such as 2026-01-31T09:00:00Z")
    start = parse_time(START_FROM, given.value)
    if draft.event_type == CRON:
        raise InvalidArgument(
            START_FROM, f"{START_FROM} is not for cron; config.catch_up_s makes up for missed firings"
        )
    if not draft.enabled:
        raise InvalidArgument(START_FROM, f"{START_FROM} is given, but a trigger that is not enabled drops its events")
    earliest = now - timedelta(hours=keep_hours)
    if not earliest <= start <= now:
        raise InvalidArgument(
            START_FROM,
            f"{START_FROM} is {spelled(start)}; events are kept for {keep_hours:g} hours, so that it must be a time "
            f"from {spelled(earliest)} to now",
            value=given.value,
        )
    return start


async def insert(conn: Connection, project_id: str, trigger_id: str, start: datetime) -> Backfill:
    """Under the project's turn. ResourceExhausted when enough of the project's are running."""
    cursor = await conn.execute(
        "SELECT count(*) FROM trigger_backfills WHERE project_id = %s AND state = 'running'", [project_id]
    )
    ((running,),) = await cursor.fetchall()
    if running >= MAX_RUNNING:
        raise ResourceExhausted(
            f"{running} triggers of the project are still on their way through the events of the past, which is as many"
            f" as may at the same time; create this one when one of them is through, or without {START_FROM}",
            reason="BACKFILL_LIMIT",
            metadata={"limit": "backfills", "used": str(running), "allowed": str(MAX_RUNNING)},
        )
    await conn.execute(
        "INSERT INTO trigger_backfills (trigger_id, project_id, start_from) VALUES (%s, %s, %s)",
        [trigger_id, project_id, start],
    )
    return Backfill(state="running", start_from=start, looked_at=0, fired=0, finished_at=None)


async def find(conn: Connection, trigger_id: str) -> Backfill | None:
    cursor = await conn.cursor(row_factory=class_row(Backfill)).execute(
        "SELECT state, start_from, looked_at, fired, finished_at FROM trigger_backfills WHERE trigger_id = %s",
        [trigger_id],
    )
    return await cursor.fetchone()


def plain(backfill: Backfill) -> dict[str, Any]:
    """For JSON."""
    return {
        "state": backfill.state,
        "start_from": spelled(backfill.start_from),
        "looked_at": backfill.looked_at,
        "fired": backfill.fired,
        "finished_at": None if backfill.finished_at is None else spelled(backfill.finished_at),
    }
