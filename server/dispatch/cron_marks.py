"""What the scheduler remembers, in the control database; every function works inside the caller's transaction.

cron_state   the minute that was evaluated last; locked by the one worker that looks
cron_ticks   published ticks of triggers with overlap skip or queue, until their deliveries have ended
deliveries   of each tick, from the moment that it is taken from the stream; of skipped ones, from here
"""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Final

from server.dispatch.cron_events import TYPE, Skipped, minute_of
from server.dispatch.identity import delivery_id
from server.postgres.control import Connection
from server.triggers.ticks import MAX_BACK_S, Tick

UNSEEN_S: Final = 600.0
"""How long a published tick that has no delivery counts as unfinished. It waits in the stream, or its trigger has been
changed in between and it will never have one."""

Minutes = Mapping[str, frozenset[datetime]]
"""By trigger; empty for those that have none."""

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


async def unfinished(conn: Connection, trigger_ids: Sequence[str]) -> Minutes:
    """Of marked ticks: those that wait in the stream, wait for a run, are held, or run."""
    cursor = await conn.execute(
        "SELECT t.trigger_id, t.minute FROM cron_ticks t LEFT JOIN deliveries d ON d.id = t.delivery_id"
        " WHERE t.trigger_id = ANY(%s::uuid[]) AND (d.state IN ('queued', 'running', 'held')"
        " OR (d.id IS NULL AND t.published_at > now() - make_interval(secs => %s)))",
        [list(trigger_ids), UNSEEN_S],
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


async def mark(conn: Connection, ticks: Sequence[Tick]) -> None:
    """Those that later ticks of their triggers have to wait for."""
    await conn.execute(
        "INSERT INTO cron_ticks (trigger_id, minute, delivery_id)"
        " SELECT * FROM unnest(%s::uuid[], %s::timestamptz[], %s::uuid[]) ON CONFLICT DO NOTHING",
        [
            [tick.trigger_id for tick in ticks],
            [tick.minute for tick in ticks],
            [delivery_id(tick.trigger_id, tick.message_id) for tick in ticks],
        ],
    )


async def skip(conn: Connection, skipped: Sequence[Skipped]) -> None:
    """Into the ledger, with their events. One that is there already stays as it is."""
    rows = sorted(skipped, key=lambda row: row.id)
    projects, events = [row.project_id for row in rows], [row.event_id for row in rows]
    await conn.execute(
        "INSERT INTO delivered_events (project_id, event_id, body)"
        " SELECT * FROM unnest(%s::uuid[], %s::text[], %s::bytea[]) ON CONFLICT DO NOTHING",
        [projects, events, [row.body for row in rows]],
    )
    await conn.execute(
        "INSERT INTO deliveries (id, project_id, trigger_id, event_id, event_type, sequence, state, due_at,"
        " outcome, error, finished_at)"
        " SELECT id, project_id, trigger_id, event_id, %s, 0, 'skipped', now(), outcome, error::json, now()"
        " FROM unnest(%s::uuid[], %s::uuid[], %s::uuid[], %s::text[], %s::text[], %s::text[])"
        " AS new (id, project_id, trigger_id, event_id, outcome, error) ON CONFLICT DO NOTHING",
        [
            TYPE,
            [row.id for row in rows],
            projects,
            [row.trigger_id for row in rows],
            events,
            [row.outcome for row in rows],
            [row.error.decode() for row in rows],
        ],
    )


async def forget(conn: Connection) -> int:
    """Delete the marks of ticks that nothing waits for any more; how many."""
    cursor = await conn.execute(
        "DELETE FROM cron_ticks t WHERE NOT EXISTS (SELECT 1 FROM deliveries d WHERE d.id = t.delivery_id"
        " AND d.state IN ('queued', 'running', 'held'))"
        " AND (t.published_at <= now() - make_interval(secs => %s)"
        " OR EXISTS (SELECT 1 FROM deliveries d WHERE d.id = t.delivery_id))",
        [UNSEEN_S],
    )
    return cursor.rowcount


def _by_trigger(found: Sequence[tuple[str, datetime]]) -> Minutes:
    minutes: defaultdict[str, set[datetime]] = defaultdict(set)
    for trigger_id, minute in found:
        minutes[trigger_id].add(minute)
    return {trigger_id: frozenset(its) for trigger_id, its in minutes.items()}
