"""The queue of asynchronous runs in the control database; every function works inside the caller's transaction.

    queued ──claim──▶ running ──finish──▶ finished          `due_at` is when a queued one may start,
       ▲                 │                                  and when the lease of a running one is over
       └────give_back────┴──lease over (`leases`)

Each has a row in `runs` as well, of the same state.
"""

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Final

import orjson
from psycopg.rows import dict_row

from server.invocations.answers import Answer, pack
from server.invocations.invoke import Body, Call, Request
from server.invocations.leases import LEASE_S
from server.postgres.control import Connection
from server.runs import rows
from server.runs.record import RunRecord

TRIGGER: Final = "async"


@dataclass(frozen=True, slots=True, kw_only=True)
class Claimed:
    """A run that this process may run now. `attempts` counts this one."""

    call: Call
    lease: str
    attempts: int
    refusals: int
    created_at: datetime


_WAITING: Final = """
WITH RECURSIVE busy AS (
  (SELECT project_id FROM async_runs WHERE state <> 'finished' ORDER BY project_id LIMIT 1)
  UNION ALL
  SELECT (SELECT more.project_id FROM async_runs more
          WHERE more.state <> 'finished' AND more.project_id > busy.project_id ORDER BY more.project_id LIMIT 1)
  FROM busy WHERE busy.project_id IS NOT NULL
)
SELECT project_id,
  (SELECT count(*) FROM async_runs r WHERE r.project_id = busy.project_id AND r.state = 'running') AS running
FROM busy WHERE project_id IS NOT NULL AND EXISTS (
  SELECT 1 FROM async_runs d WHERE d.project_id = busy.project_id AND d.state = 'queued' AND d.due_at <= now())
"""
_CLAIM: Final = """
WITH chosen AS (
  SELECT due.id FROM unnest(%s::uuid[], %s::integer[]) AS share (project_id, most)
  CROSS JOIN LATERAL (
    SELECT id FROM async_runs
    WHERE project_id = share.project_id AND state = 'queued' AND due_at <= now()
    ORDER BY due_at LIMIT share.most FOR UPDATE SKIP LOCKED) AS due
)
UPDATE async_runs AS claimed SET state = 'running', attempts = attempts + 1, lease = gen_random_uuid(),
  due_at = now() + make_interval(secs => %s)
FROM chosen, projects WHERE claimed.id = chosen.id AND projects.id = claimed.project_id
RETURNING claimed.id, claimed.project_id, projects.tier, slug, body_kind, input, request, request_id, traceparent,
  attempts, refusals, lease, claimed.created_at
"""


def shares(free: int, running: Mapping[str, int], *, reserved: int = 0) -> dict[str, int]:
    """How many of `free` places each waiting project gets: one by one to the one with the fewest runs.

    The last `reserved` of them only to projects without any, so that nobody's long runs are all that runs.
    """
    given: Counter[str] = Counter()
    while free > 0 and running:
        poorest = min(running, key=lambda project_id: running[project_id] + given[project_id])
        if free <= reserved and running[poorest] + given[poorest] > 0:
            break
        given[poorest] += 1
        free -= 1
    return dict(given)


async def claim(conn: Connection, free: int, *, reserved: int = 0) -> list[Claimed]:
    """At most `free` runs that are due, fairly by project as `shares` has it, under a lease each."""
    cursor = await conn.execute(_WAITING)
    given = shares(free, dict(await cursor.fetchall()), reserved=reserved)
    if not given:
        return []
    claiming = await conn.cursor(row_factory=dict_row, binary=True).execute(
        _CLAIM, [list(given), list(given.values()), LEASE_S]
    )
    claimed = [_claimed(row) for row in await claiming.fetchall()]
    await rows.start(conn, [item.call.run_id for item in claimed])
    return claimed


async def finish(conn: Connection, claimed: Claimed, answer: Answer, record: RunRecord) -> bool:
    """Store how it ended; False when the lease was lost or the run withdrawn, and nothing is changed."""
    cursor = await conn.execute(
        "UPDATE async_runs SET state = 'finished', answer = %s, finished_at = now(), lease = NULL, input = '',"
        " request = '' WHERE id = %s AND lease = %s AND state = 'running'",
        [pack(answer), claimed.call.run_id, claimed.lease],
    )
    if cursor.rowcount == 0:
        return False
    await rows.finish(conn, [record])
    return True


async def give_back(conn: Connection, claimed: Claimed, *, delay_s: float, attempts: int, refusals: int) -> None:
    """Queue it again, due after `delay_s`. Nothing happens when the lease was lost."""
    cursor = await conn.execute(
        "UPDATE async_runs SET state = 'queued', lease = NULL, due_at = now() + make_interval(secs => %s),"
        " attempts = %s, refusals = %s WHERE id = %s AND lease = %s AND state = 'running'",
        [delay_s, attempts, refusals, claimed.call.run_id, claimed.lease],
    )
    if cursor.rowcount:
        await rows.again(conn, [claimed.call.run_id])


async def withdraw(conn: Connection, project_id: str, run_id: str, answer: Answer) -> bool:
    """End one that waits, or whose process died, with that answer; False when there is none."""
    cursor = await conn.execute(
        "UPDATE async_runs SET state = 'finished', answer = %s, finished_at = now(), lease = NULL, input = '',"
        " request = '' WHERE id = %s AND project_id = %s"
        " AND (state = 'queued' OR (state = 'running' AND due_at <= now()))",
        [pack(answer), run_id, project_id],
    )
    return cursor.rowcount == 1


async def insert(conn: Connection, call: Call, *, created_at: datetime) -> bool:
    """Queue it; False when it is there already."""
    request = call.request
    seen = {"method": request.method, "path": request.path, "query": request.query, "headers": request.headers}
    cursor = await conn.execute(
        "INSERT INTO async_runs (id, project_id, slug, state, body_kind, input, input_bytes, request, request_id,"
        " traceparent, due_at, created_at) VALUES (%s, %s, %s, 'queued', %s, %s, %s, %s, %s, %s, now(), %s)"
        " ON CONFLICT (id) DO NOTHING",
        [
            call.run_id,
            call.project_id,
            call.slug,
            call.body.kind,
            call.body.data,
            len(call.body.data),
            orjson.dumps(seen),
            call.request_id,
            call.traceparent,
            created_at,
        ],
    )
    return cursor.rowcount == 1


async def waiting(conn: Connection, project_id: str) -> tuple[int, int]:
    """How many runs of the project are not finished, and the bytes of their inputs."""
    cursor = await conn.execute(
        "SELECT count(*), coalesce(sum(input_bytes), 0) FROM async_runs WHERE project_id = %s AND state <> 'finished'",
        [project_id],
    )
    ((count, total),) = await cursor.fetchall()
    return int(count), int(total)


async def forget(conn: Connection, *, older_than_s: float, most: int) -> int:
    """Delete finished ones with their answers; how many."""
    cursor = await conn.execute(
        "DELETE FROM async_runs WHERE id IN (SELECT id FROM async_runs WHERE state = 'finished'"
        " AND finished_at < now() - make_interval(secs => %s) LIMIT %s)",
        [older_than_s, most],
    )
    return cursor.rowcount


def _claimed(row: Mapping[str, Any]) -> Claimed:
    call = Call(
        project_id=str(row["project_id"]),
        tier=row["tier"],
        slug=row["slug"],
        body=Body(kind=row["body_kind"], data=bytes(row["input"])),
        request=Request(**orjson.loads(row["request"])),
        trigger=TRIGGER,
        request_id=row["request_id"],
        traceparent=row["traceparent"],
        run_id=str(row["id"]),
        accepted_at=row["created_at"],
    )
    return Claimed(
        call=call,
        lease=str(row["lease"]),
        attempts=row["attempts"],
        refusals=row["refusals"],
        created_at=row["created_at"],
    )
