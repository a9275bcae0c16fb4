"""The ledger in the control database, as dispatch writes it; every function works inside the caller's transaction.

insert ──▶ running ──end──▶ done · dead · cancelled        `due_at` is when a queued one may start. What runs does
   │        ▲  │                                           so under the lease of its process, and is queued again
   ├──▶ queued ◀─ end, or lost                             when that is over.
   └──▶ held ─▶ queued, when its trigger goes on
"""

from collections.abc import Sequence
from typing import Final, Literal, NamedTuple

from server.events.envelope import Event
from server.postgres.arrays import texts, words
from server.postgres.control import Connection

LOST: Final = "lost"
"""The outcome of an attempt whose process died, stopped, or was cut off from the database for longer than its lease."""

BATCH: Final = 1_000
"""Rows that one statement changes at most: some 50 ms of work."""

_INSERT: Final = """
WITH mine AS MATERIALIZED (SELECT FROM dispatch_leases WHERE id = %b::uuid FOR KEY SHARE),
bodies AS (
  INSERT INTO delivered_events (project_id, event_id, body, cause_run, cause_trigger, cause_depth)
  SELECT * FROM unnest(%t::uuid[], %t::text[], %b::bytea[], %t::uuid[], %t::uuid[], %t::integer[])
  ON CONFLICT DO NOTHING
), inserted AS (
INSERT INTO deliveries (id, project_id, trigger_id, event_id, event_type, sequence, order_key, run_id, state, lease,
  due_at, began_at, attempts)
SELECT id, project_id, trigger_id, event_id, event_type, sequence, order_key, CASE WHEN starts THEN run_id END,
  CASE WHEN wanted = 'running' AND NOT starts THEN 'queued' ELSE wanted END, CASE WHEN starts THEN %b::uuid END,
  now(), CASE WHEN starts THEN now() END, CASE WHEN starts THEN 1 ELSE 0 END
FROM (
  SELECT *, wanted = 'running' AND EXISTS (SELECT FROM mine) AS starts
  FROM unnest(%t::uuid[], %t::uuid[], %t::uuid[], %t::text[], %t::text[], %t::bigint[], %t::text[], %t::uuid[],
    %t::text[]) AS given (id, project_id, trigger_id, event_id, event_type, sequence, order_key, run_id, wanted)
) AS pairs
ON CONFLICT (id) DO NOTHING RETURNING id, state
)
SELECT id::text FROM inserted WHERE state = 'running'
"""
_END: Final = """
UPDATE deliveries AS d SET state = e.state, lease = NULL, attempts = e.attempts, refusals = e.refusals,
  due_at = now() + make_interval(secs => e.delay_s), outcome = coalesce(e.outcome, d.outcome),
  error = CASE WHEN e.outcome IS NULL THEN d.error ELSE e.error::json END,
  history = CASE WHEN e.entry IS NULL THEN d.history ELSE d.history || e.entry::jsonb END,
  finished_at = CASE WHEN e.state <> 'queued' THEN now() END
FROM unnest(%t::uuid[], %t::uuid[], %t::text[], %t::float8[], %t::integer[], %t::integer[], %t::text[], %t::text[],
  %t::text[]) AS e (id, run_id, state, delay_s, attempts, refusals, outcome, error, entry)
WHERE d.id = e.id AND d.run_id = e.run_id AND d.state = 'running'
"""
_DROP: Final = {
    "cancelled": "state = 'cancelled', finished_at = now(), error = json_build_object('reason', 'TRIGGER_DISABLED',"
    " 'message', 'Its trigger was disabled or deleted before it could run')",
    "held": "state = 'held'",
}
_IS: Final = {
    "cancelled": "NOT EXISTS (SELECT FROM triggers t WHERE t.id = %(trigger_id)s AND t.enabled)",
    "held": "EXISTS (SELECT FROM triggers t WHERE t.id = %(trigger_id)s AND t.enabled AND t.paused)",
    "queued": "EXISTS (SELECT FROM triggers t WHERE t.id = %(trigger_id)s AND t.enabled AND NOT t.paused)",
}
_LOSE: Final = """
UPDATE deliveries AS d SET state = 'queued', lease = NULL, due_at = now(), outcome = 'lost',
  error = json_build_object('reason', 'WORKER_LOST', 'message', %(message)s::text),
  history = d.history || jsonb_build_object('attempt', d.attempts, 'run_id', d.run_id, 'began_at', d.began_at,
    'ended_at', now(), 'outcome', 'lost', 'reason', 'WORKER_LOST', 'message', %(message)s::text)
WHERE d.id IN (
  SELECT id FROM deliveries r WHERE r.state = 'running'
    AND NOT EXISTS (SELECT FROM dispatch_leases l WHERE l.id = r.lease)
  LIMIT %(most)s FOR UPDATE SKIP LOCKED)
"""
_LOST_MESSAGE: Final = "The worker that ran this died, or was cut off from the database"
_HELD: Final = """
WITH RECURSIVE held AS (
  (SELECT trigger_id FROM deliveries WHERE state = 'held' ORDER BY trigger_id LIMIT 1)
  UNION ALL
  SELECT (SELECT trigger_id FROM deliveries WHERE state = 'held' AND trigger_id > held.trigger_id
          ORDER BY trigger_id LIMIT 1)
  FROM held WHERE held.trigger_id IS NOT NULL
)
SELECT held.trigger_id, coalesce(t.enabled, false) FROM held LEFT JOIN triggers t ON t.id = held.trigger_id
WHERE held.trigger_id IS NOT NULL AND NOT (coalesce(t.enabled, false) AND t.paused) ORDER BY held.trigger_id
"""


State = Literal["running", "queued", "held"]


class Pair(NamedTuple):
    """An event and a trigger that it fired, and what is to become of them."""

    id: str
    project_id: str
    trigger_id: str
    event_id: str
    event_type: str
    sequence: int
    order_key: str | None
    run_id: str  # of its first attempt, if that begins now
    state: State


class Body(NamedTuple):
    project_id: str
    event_id: str
    body: bytes
    cause_run: str | None
    cause_trigger: str | None
    cause_depth: int | None


class End(NamedTuple):
    """How an attempt ended. `entry`, for the history, `error` are JSON; without an outcome nothing is told of it, as
    when the attempt was none."""

    id: str
    run_id: str
    state: Literal["queued", "done", "dead", "cancelled"]
    delay_s: float
    attempts: int
    refusals: int
    outcome: str | None
    error: str | None
    entry: str | None


def body_of(event: Event, body: bytes) -> Body:
    """Of an event that was read from it."""
    if event.cause is None:
        return Body(event.project_id, event.id, body, None, None, None)
    cause = event.cause
    return Body(event.project_id, event.id, body, cause.run_id, cause.trigger_id, cause.depth)


async def insert(conn: Connection, lease: str, bodies: Sequence[Body], pairs: Sequence[Pair]) -> set[str]:
    """Write pairs, at least one, with their events; the ids of those that run now. Those that are known stay as they
    are. Where `lease` is over, what was to run is queued."""
    bodies = sorted(bodies, key=lambda each: (each.project_id, each.event_id))  # in one order, so that nobody deadlocks
    pairs = sorted(pairs, key=lambda each: each.id)
    projects, event_ids, contents, cause_runs, cause_triggers, depths = zip(*bodies, strict=True)
    ids, projects_of, triggers, events_of, types, sequences, order_keys, run_ids, states = zip(*pairs, strict=True)
    cursor = await conn.cursor(binary=True).execute(
        _INSERT,
        [
            lease,
            *(words(projects), texts(event_ids), list(contents)),
            *(words(cause_runs), words(cause_triggers), words(depths)),
            lease,
            *(words(ids), words(projects_of), words(triggers), texts(events_of), texts(types)),
            *(words(sequences), texts(order_keys), words(run_ids), words(states)),
        ],
    )
    return {found for (found,) in await cursor.fetchall()}


async def end(conn: Connection, ends: Sequence[End]) -> int:
    """Write how attempts ended, at least one; how many of them were still what is said here to have run."""
    ids, run_ids, states, delays_s, attempts, refusals, outcomes, errors, entries = zip(
        *sorted(ends, key=lambda each: each.id), strict=True
    )
    cursor = await conn.execute(
        _END,
        [
            *(words(ids), words(run_ids), words(states), words(delays_s), words(attempts), words(refusals)),
            *(words(outcomes), texts(errors), texts(entries)),
        ],
    )
    return cursor.rowcount


async def lose(conn: Connection) -> int:
    """Queue again what ran under leases that are over: at most BATCH; how many. Of leases that `bury` removed."""
    cursor = await conn.execute(_LOSE, {"message": _LOST_MESSAGE, "most": BATCH})
    return cursor.rowcount


async def running(conn: Connection, lease: str) -> set[str]:
    """The ids of the runs that are said to run under a lease."""
    cursor = await conn.execute("SELECT run_id FROM deliveries WHERE state = 'running' AND lease = %s", [lease])
    return {str(found) for (found,) in await cursor.fetchall()}


async def disown(conn: Connection, lease: str, runs: Sequence[str]) -> None:
    """These do not run under that lease; `lose` queues them."""
    await conn.execute(
        "UPDATE deliveries SET lease = NULL WHERE state = 'running' AND lease = %s AND run_id = ANY(%s::uuid[])",
        [lease, list(runs)],
    )


async def bury(conn: Connection) -> int:
    """Remove leases that ran out; how many. Waits for those who claim under them."""
    cursor = await conn.execute("DELETE FROM dispatch_leases WHERE expires_at < now()")
    return cursor.rowcount


async def drop(conn: Connection, trigger_id: str, state: Literal["cancelled", "held"], *, ordered: bool) -> int:
    """Of a trigger that is gone, or paused: queued ones become so, at most BATCH; how many. None if it is not so."""
    keys = "order_key IS NOT NULL AND state IN ('queued', 'running', 'held')" if ordered else "order_key IS NULL"
    cursor = await conn.execute(
        f"UPDATE deliveries SET {_DROP[state]} WHERE state = 'queued' AND id IN ("
        f"SELECT id FROM deliveries WHERE trigger_id = %(trigger_id)s AND state = 'queued' AND {keys}"
        f" LIMIT %(most)s FOR UPDATE SKIP LOCKED) AND {_IS[state]}".encode(),
        {"trigger_id": trigger_id, "most": BATCH},
    )
    return cursor.rowcount


async def held(conn: Connection) -> list[tuple[str, bool]]:
    """Triggers that hold events and are not paused any more, and whether each is enabled."""
    return await (await conn.execute(_HELD)).fetchall()


async def release(conn: Connection, trigger_id: str, *, enabled: bool) -> int:
    """What it holds is queued, or cancelled: at most BATCH; how many."""
    state = "queued" if enabled else "cancelled"
    change = "state = 'queued', due_at = now(), released_at = now()" if enabled else _DROP["cancelled"]
    cursor = await conn.execute(
        f"UPDATE deliveries SET {change} WHERE id IN (SELECT id FROM deliveries WHERE trigger_id = %(trigger_id)s"
        f" AND state = 'held' LIMIT %(most)s FOR UPDATE SKIP LOCKED) AND {_IS[state]}".encode(),
        {"trigger_id": trigger_id, "most": BATCH},
    )
    return cursor.rowcount
