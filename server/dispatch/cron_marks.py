"""What the scheduler remembers, in the control database; every function works inside the caller's transaction.

cron_state   the minute that was evaluated last; locked by the one worker that looks
cron_ticks   published ticks of triggers with overlap skip or queue, until their deliveries have ended
deliveries   of each tick, from the moment that it is taken from the stream; of skipped ones, from here
"""

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Final, TypeVar

import orjson

from server.dispatch.cron_events import TYPE, Mark, Skipped, minute_of
from server.postgres.control import Connection
from server.triggers.ticks import MAX_BACK_S

UNSEEN_S: Final = 600.0
"""How long a published tick that has no delivery counts as unfinished. It waits in the stream, or its trigger has been
changed in between and it will never have one."""

ROWS_AT_ONCE: Final = 2_000

Minutes = Mapping[str, frozenset[datetime]]
"""By trigger; empty for those that have none."""

R = TypeVar("R")
_MARKED: Final = (
    "FROM cron_ticks t LEFT JOIN deliveries d ON d.id = t.delivery_id LEFT JOIN workflow_runs w ON w.id = t.delivery_id"
)
_UNFINISHED: Final = (
    "(d.state IN ('queued', 'running', 'held') OR w.state = 'running'"
    " OR (d.id IS NULL AND t.published_at > now() - make_interval(secs => %(unseen_s)s)))"
)
_LATE_S: Final = 2 * MAX_BACK_S  # by which the clocks of workers and of Postgres may differ


@dataclass(frozen=True, slots=True)
class Held:
    """The lock on the state. `evaluated` is None before the first look."""

    evaluated: datetime | None


async def hold(conn: Connection) -> Held | None:
    """Lock the state until the transaction ends; None while another worker holds it."""
    cursor = await conn.execute("SELECT evaluated FROM cron_state FOR UPDATE SKIP LOCKED")
    row = await cursor.fetchone()
    return None if row is None else Held(row[0])


async def store(conn: Connection, evaluated: datetime) -> None:
    await conn.execute("UPDATE cron_state SET evaluated = %s", [evaluated])


async def unfinished(conn: Connection) -> Minutes:
    """Marked ticks that wait in the stream, wait for a run, are held or run; of a workflow, until its run ends."""
    cursor = await conn.execute(
        f"SELECT t.trigger_id, t.minute {_MARKED} WHERE {_UNFINISHED}".encode(), {"unseen_s": UNSEEN_S}
    )
    return _by_trigger(await cursor.fetchall())


async def delivered(conn: Connection, trigger_ids: Sequence[str], after: datetime) -> Minutes:
    """Ticks later than `after` that have a delivery, in whatever state."""
    cursor = await conn.execute(
        "SELECT trigger_id, event_id FROM deliveries"
        " WHERE trigger_id = ANY(%s::uuid[]) AND event_type = %s AND created_at > %s",
        [list(trigger_ids), TYPE, after - timedelta(seconds=_LATE_S)],
    )
    found = [(trigger_id, minute_of(event_id)) for trigger_id, event_id in await cursor.fetchall()]
    return _by_trigger([(trigger_id, minute) for trigger_id, minute in found if minute is not None])


async def mark(conn: Connection, marks: Sequence[Mark]) -> None:
    for some in _batches(marks):
        await conn.execute(
            "INSERT INTO cron_ticks (trigger_id, minute, delivery_id) SELECT * FROM"
            " json_to_recordset(%s::json) AS new (trigger_id uuid, minute timestamptz, delivery_id uuid)"
            " ON CONFLICT DO NOTHING",
            [orjson.dumps(some).decode()],
        )


async def skip(conn: Connection, skipped: Sequence[Skipped]) -> None:
    """Into the ledger, with their events. One that is there already stays as it is."""
    for some in _batches(sorted(skipped, key=lambda row: row.id)):
        rows = orjson.dumps(some).decode()
        await conn.execute(
            "INSERT INTO delivered_events (project_id, event_id, body)"
            " SELECT project_id, event_id, convert_to(body, 'UTF8')"
            " FROM json_to_recordset(%s::json) AS new (project_id uuid, event_id text, body text)"
            " ON CONFLICT DO NOTHING",
            [rows],
        )
        await conn.execute(
            "INSERT INTO deliveries (id, project_id, trigger_id, event_id, event_type, sequence, state, due_at,"
            " outcome, error, finished_at)"
            " SELECT id, project_id, trigger_id, event_id, %s, 0, 'skipped', now(), outcome, error, now()"
            " FROM json_to_recordset(%s::json) AS"
            " new (id uuid, project_id uuid, trigger_id uuid, event_id text, outcome text, error json)"
            " ON CONFLICT DO NOTHING",
            [TYPE, rows],
        )


async def forget(conn: Connection) -> int:
    """Delete the marks of ticks that nothing waits for any more; how many."""
    cursor = await conn.execute(
        "DELETE FROM cron_ticks USING"
        f" (SELECT t.trigger_id, t.minute {_MARKED} WHERE NOT coalesce({_UNFINISHED}, false)) AS ended"
        " WHERE cron_ticks.trigger_id = ended.trigger_id AND cron_ticks.minute = ended.minute".encode(),
        {"unseen_s": UNSEEN_S},
    )
    return cursor.rowcount


def _batches(rows: Sequence[R]) -> Iterator[Sequence[R]]:
    """Few enough for one statement and for the patience of others on the event loop."""
    for first in range(0, len(rows), ROWS_AT_ONCE):
        yield rows[first : first + ROWS_AT_ONCE]


def _by_trigger(found: Sequence[tuple[str, datetime]]) -> Minutes:
    minutes: defaultdict[str, set[datetime]] = defaultdict(set)
    for trigger_id, minute in found:
        minutes[trigger_id].add(minute)
    return {trigger_id: frozenset(its) for trigger_id, its in minutes.items()}
