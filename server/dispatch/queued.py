"""Which queued deliveries are due, and taking them up. Every function works inside the caller's transaction.

A page of triggers is found by jumping from one to the next in an index, never through a backlog. Of deliveries with an
order key only the heads are looked at: the first unfinished one of each key, found likewise. A head starts when the
stream is done up to it, so that nothing earlier can still come, and when nothing of its key runs.
"""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Final

from psycopg.rows import dict_row

from server.postgres.control import Connection

FIRST: Final = "00000000-0000-0000-0000-000000000000"
PAGE: Final = 256
KEYS: Final = 128
"""Heads that one look at a trigger sees."""

_UNORDERED: Final = "state = 'queued' AND order_key IS NULL"
_ORDERED: Final = "order_key IS NOT NULL AND state IN ('queued', 'running', 'held')"

_WAITING: Final = """
WITH RECURSIVE waiting AS (
  (SELECT trigger_id, project_id FROM deliveries WHERE {rows} AND trigger_id > %(after)s ORDER BY trigger_id LIMIT 1)
  UNION ALL
  SELECT next.trigger_id, next.project_id FROM waiting CROSS JOIN LATERAL (
    SELECT trigger_id, project_id FROM deliveries WHERE {rows} AND trigger_id > waiting.trigger_id
    ORDER BY trigger_id LIMIT 1) AS next
)
SELECT trigger_id, project_id, {due} FROM waiting LIMIT %(page)s
"""
_DUE: Final = f"""(SELECT count(*) FROM (SELECT FROM deliveries d
  WHERE d.{_UNORDERED} AND d.trigger_id = waiting.trigger_id AND d.due_at <= now() LIMIT %(most)s) AS due)"""
_TAKE: Final = """
WITH mine AS MATERIALIZED (SELECT FROM dispatch_leases WHERE id = %(lease)s FOR KEY SHARE),
{chosen}
UPDATE deliveries AS d SET state = 'running', lease = %(lease)s, run_id = gen_random_uuid(), began_at = now(),
  attempts = d.attempts + 1
FROM chosen LEFT JOIN delivered_events AS e ON e.project_id = chosen.project_id AND e.event_id = chosen.event_id
WHERE d.id = chosen.id AND d.state = 'queued' AND EXISTS (SELECT FROM mine)
RETURNING d.id, d.project_id, d.trigger_id, d.event_id, d.sequence, d.run_id, d.attempts, d.refusals, e.body,
  greatest(d.created_at, d.released_at, d.replayed_at) AS since, d.created_at
"""
_SHARED: Final = f"""chosen AS (
  SELECT due.* FROM unnest(%(triggers)s::uuid[], %(shares)s::integer[]) AS share (trigger_id, most)
  CROSS JOIN LATERAL (
    SELECT id, project_id, event_id FROM deliveries
    WHERE trigger_id = share.trigger_id AND {_UNORDERED} AND due_at <= now()
    ORDER BY due_at LIMIT share.most FOR UPDATE SKIP LOCKED) AS due
)"""
_NAMED: Final = "chosen AS (SELECT id, project_id, event_id FROM deliveries WHERE id = ANY(%(ids)s::uuid[]))"
_HEADS: Final = f"""
WITH RECURSIVE heads AS (
  (SELECT id, order_key, sequence, state, due_at FROM deliveries
   WHERE trigger_id = %(trigger_id)s AND {_ORDERED} AND order_key > %(after)s ORDER BY order_key, sequence LIMIT 1)
  UNION ALL
  SELECT next.* FROM heads CROSS JOIN LATERAL (
    SELECT id, order_key, sequence, state, due_at FROM deliveries
    WHERE trigger_id = %(trigger_id)s AND {_ORDERED} AND order_key > heads.order_key
    ORDER BY order_key, sequence LIMIT 1) AS next
)
SELECT id, order_key, sequence, state = 'queued' AND due_at <= now() AND NOT EXISTS (
  SELECT FROM deliveries r WHERE r.trigger_id = %(trigger_id)s AND r.order_key = heads.order_key
    AND r.order_key IS NOT NULL AND r.state = 'running') AS ready
FROM heads LIMIT %(keys)s
"""


@dataclass(frozen=True, slots=True)
class Waiting:
    """A trigger with queued deliveries, of which `due` may start as far as the clock goes."""

    trigger_id: str
    project_id: str
    due: int


@dataclass(frozen=True, slots=True)
class Taken:
    """A delivery that this process may run now. `attempts` counts this one; `body` is None when the event is gone;
    `since` is when it was taken up, released or replayed, whichever is last."""

    id: str
    project_id: str
    trigger_id: str
    event_id: str
    sequence: int
    run_id: str
    attempts: int
    refusals: int
    body: bytes | None
    since: datetime
    created_at: datetime


@dataclass(frozen=True, slots=True)
class Head:
    id: str
    order_key: str
    sequence: int
    ready: bool  # but for the stream


async def waiting(conn: Connection, after: str, page: int, most: int) -> list[Waiting]:
    """Triggers beyond `after` with queued deliveries that have no order key: at most `page`, by id. `due` is counted up
    to `most`."""
    query = _WAITING.format(rows=_UNORDERED, due=_DUE).encode()
    cursor = await conn.execute(query, {"after": after, "page": page, "most": most})
    return [Waiting(*row) for row in await cursor.fetchall()]


async def waiting_in_order(conn: Connection, after: str, page: int) -> list[Waiting]:
    """Likewise of triggers whose deliveries have order keys; `due` is 1."""
    query = _WAITING.format(rows=_ORDERED, due="1").encode()
    cursor = await conn.execute(query, {"after": after, "page": page})
    return [Waiting(*row) for row in await cursor.fetchall()]


async def lock(conn: Connection, trigger_ids: Collection[str]) -> dict[str, int]:
    """Of these triggers those that nobody else starts deliveries of, until the end of the transaction, and how many
    deliveries of each run in all processes. For triggers with order keys or a concurrency limit."""
    cursor = await conn.execute(
        "SELECT id FROM triggers WHERE id = ANY(%s::uuid[]) ORDER BY id FOR NO KEY UPDATE SKIP LOCKED",
        [list(trigger_ids)],
    )
    locked = [str(found) for (found,) in await cursor.fetchall()]
    cursor = await conn.execute(
        "SELECT trigger_id, count(*) FROM deliveries WHERE state = 'running' AND trigger_id = ANY(%s::uuid[])"
        " GROUP BY trigger_id",
        [locked],
    )
    return dict.fromkeys(locked, 0) | dict(await cursor.fetchall())


async def heads(conn: Connection, trigger_id: str, after: str) -> list[Head]:
    """The first unfinished delivery of each key beyond `after`: at most KEYS, by key. For who has the lock."""
    cursor = await conn.execute(_HEADS.encode(), {"trigger_id": trigger_id, "after": after, "keys": KEYS})
    return [Head(str(found), *rest) for found, *rest in await cursor.fetchall()]


async def take(conn: Connection, lease: str, shares: Mapping[str, int]) -> list[Taken]:
    """Take up as many of each trigger's, without order key, as its share; those that are due longest. None when the
    lease is over."""
    given = {"lease": lease, "triggers": list(shares), "shares": list(shares.values())}
    return await _taken(conn, _TAKE.format(chosen=_SHARED), given)


async def take_named(conn: Connection, lease: str, ids: Sequence[str]) -> list[Taken]:
    """Take up these, as far as they are queued."""
    return await _taken(conn, _TAKE.format(chosen=_NAMED), {"lease": lease, "ids": list(ids)})


async def _taken(conn: Connection, query: str, given: Mapping[str, Any]) -> list[Taken]:
    cursor = await conn.cursor(row_factory=dict_row, binary=True).execute(query.encode(), given)
    return [
        Taken(**row | {name: str(row[name]) for name in ("id", "project_id", "trigger_id", "run_id")})
        for row in await cursor.fetchall()
    ]
