"""Steps on their way to a worker; every function works inside the caller's transaction.

    pending ──▶ ready ──send──▶ queued ──claim──▶ running ──▶ succeeded · failed · skipped · cancelled
                  ▲           ▲ │                  │ │                  (`server.workflows.transitions`)
                  │           └─┘ not claimed: again │
                  ├──── give_back, lease over ─────┘ └─wait─▶ waiting
                  └──────────────────── due ◀──────────────────┘

Of each project only WINDOW steps are queued or running at a time; the rest is ready, and is sent in the order in which
it became so as others end. So whoever starts thousands of runs stands in nobody's way but their own.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Final

from psycopg.rows import dict_row

from server.postgres.control import Connection
from server.tiers import Tier
from server.workflows.stream import Ticket

WINDOW: Final = 64
"""Half of what one worker runs at a time, so that there is room for others beside a project's long steps."""
LEASE_S: Final = 15.0
RESEND_S: Final = 5.0
"""After which a queued step that nobody claimed is sent again; while its message is there, that changes nothing."""

SWEEP_BATCH: Final = 500


@dataclass(frozen=True, slots=True, kw_only=True)
class Claimed:
    """A step that this process may run now. `attempts` counts this one."""

    run_id: str
    node_id: str
    project_id: str
    tier: Tier | None
    workflow_id: str
    version: int
    trigger_id: str | None
    event: bytes
    lease: str
    attempts: int
    refusals: int
    deaths: int
    wake_at: datetime | None
    claimed_at: datetime
    began_at: datetime  # of the first attempt


_BUSY: Final = """
WITH RECURSIVE busy AS (
  (SELECT project_id FROM workflow_steps WHERE state = 'ready' ORDER BY project_id LIMIT 1)
  UNION ALL
  SELECT (SELECT more.project_id FROM workflow_steps more
          WHERE more.state = 'ready' AND more.project_id > busy.project_id ORDER BY more.project_id LIMIT 1)
  FROM busy WHERE busy.project_id IS NOT NULL
)
SELECT project_id FROM busy WHERE project_id IS NOT NULL
"""
_TURN: Final = """
SELECT project_id FROM unnest(%s::uuid[]) AS asked (project_id) WHERE CASE
  WHEN EXISTS (SELECT 1 FROM workflow_steps s WHERE s.project_id = asked.project_id AND s.state = 'ready')
  THEN pg_try_advisory_xact_lock(hashtextextended('workflow_steps/' || asked.project_id, 0)) END
"""
_SEND: Final = """
WITH sent AS (
  SELECT asked.project_id, (SELECT count(*) FROM workflow_steps s
    WHERE s.project_id = asked.project_id AND s.state IN ('queued', 'running')) AS steps
  FROM unnest(%s::uuid[]) AS asked (project_id)
), chosen AS (
  SELECT next.run_id, next.node_id FROM sent CROSS JOIN LATERAL (
    SELECT run_id, node_id FROM workflow_steps
    WHERE project_id = sent.project_id AND state = 'ready'
    ORDER BY due_at LIMIT greatest(0, %s - sent.steps) FOR UPDATE SKIP LOCKED) AS next
)
UPDATE workflow_steps s SET state = 'queued', due_at = now() + make_interval(secs => %s)
FROM chosen WHERE s.run_id = chosen.run_id AND s.node_id = chosen.node_id
RETURNING s.run_id, s.node_id, s.claims
"""
_DUE: Final = """
WITH due AS (
  SELECT run_id, node_id, state FROM workflow_steps
  WHERE state IN ('queued', 'waiting') AND due_at <= now()
  ORDER BY due_at LIMIT %s FOR UPDATE SKIP LOCKED
)
UPDATE workflow_steps s SET
  state = CASE due.state WHEN 'queued' THEN 'queued' ELSE 'ready' END,
  due_at = CASE due.state WHEN 'queued' THEN now() + make_interval(secs => %s) ELSE s.due_at END
FROM due WHERE s.run_id = due.run_id AND s.node_id = due.node_id RETURNING s.state, s.run_id, s.node_id, s.claims
"""
_BURY: Final = """
WITH dead AS (
  SELECT run_id, node_id FROM workflow_steps WHERE state = 'running' AND due_at <= now()
  ORDER BY due_at LIMIT %s FOR UPDATE SKIP LOCKED
)
UPDATE workflow_steps s SET lease = NULL, state = 'ready', deaths = deaths + 1, attempts = attempts - 1,
  history = s.history || jsonb_build_object(
    'number', s.attempts, 'began_at', s.claimed_at, 'finished_at', now(),
    'error', jsonb_build_object('reason', 'WORKER_DIED', 'message', 'The worker that ran this attempt died'))
FROM dead WHERE s.run_id = dead.run_id AND s.node_id = dead.node_id
"""
_CLAIM: Final = """
WITH ticket AS (
  SELECT s.run_id, s.node_id FROM unnest(%s::uuid[], %s::text[], %s::integer[]) AS asked (run_id, node_id, claims)
  JOIN workflow_steps s ON s.run_id = asked.run_id AND s.node_id = asked.node_id AND s.claims = asked.claims
  WHERE s.state IN ('ready', 'queued') ORDER BY s.run_id, s.node_id FOR UPDATE OF s
)
UPDATE workflow_steps s SET state = 'running', lease = gen_random_uuid(), claims = s.claims + 1,
  attempts = s.attempts + 1, due_at = now() + make_interval(secs => %s), claimed_at = now(),
  began_at = coalesce(s.began_at, now())
FROM ticket, workflow_runs r, projects p
WHERE s.run_id = ticket.run_id AND s.node_id = ticket.node_id
  AND r.id = s.run_id AND r.state = 'running' AND p.id = s.project_id
RETURNING s.run_id, s.node_id, s.project_id, p.tier, r.workflow_id, r.version, r.trigger_id, r.event, s.lease,
  s.attempts, s.refusals, s.deaths, s.wake_at, s.claimed_at, s.began_at
"""


async def send(conn: Connection, project_ids: Sequence[str]) -> list[Ticket]:
    """Queue what is ready of these projects and has room; publish the tickets after the transaction.

    One at a time for a project, or each would count without what the others send. Nobody waits for that: what is ready
    while another sends is left to whoever sends next, at the latest a sweep.
    """
    cursor = await conn.execute(_TURN, [list(project_ids)])
    if not (turns := [str(project_id) for (project_id,) in await cursor.fetchall()]):
        return []
    cursor = await conn.execute(_SEND, [turns, WINDOW, RESEND_S])
    return [Ticket(str(run_id), node_id, claims) for run_id, node_id, claims in await cursor.fetchall()]


async def sweep(conn: Connection, *, may_bury: Callable[[], bool]) -> tuple[list[Ticket], bool]:
    """What is queued is sent again, what else is due is ready again, and what is ready is queued: the tickets, and
    whether more may be due. What runs is due only if the caller, asked after the first statement, knows it."""
    cursor = await conn.execute(_DUE, [SWEEP_BATCH, RESEND_S])
    due = await cursor.fetchall()
    again = [Ticket(str(run_id), node_id, claims) for state, run_id, node_id, claims in due if state == "queued"]
    buried = (await conn.execute(_BURY, [SWEEP_BATCH])).rowcount if may_bury() else 0
    cursor = await conn.execute(_BUSY)
    projects = [str(project_id) for (project_id,) in await cursor.fetchall()]
    sent = await send(conn, projects) if projects else []
    return [*again, *sent], SWEEP_BATCH in (len(due), buried)


async def claim(conn: Connection, tickets: Sequence[Ticket]) -> list[Claimed]:
    """Those of the steps that may be run here, under a lease each; not those claimed already, or of ended runs."""
    columns = [[t.run_id for t in tickets], [t.node_id for t in tickets], [t.claims for t in tickets]]
    cursor = await conn.cursor(row_factory=dict_row).execute(_CLAIM, [*columns, LEASE_S])
    return [Claimed(**row) for row in await cursor.fetchall()]


async def renew(conn: Connection, leases: Sequence[str]) -> set[str]:
    """Those that are still held; the others are lost, because the run ended or somebody else took the step."""
    cursor = await conn.execute(
        "WITH held AS (SELECT run_id, node_id FROM workflow_steps WHERE lease = ANY(%s::uuid[]) AND state = 'running'"
        " ORDER BY run_id, node_id FOR UPDATE)"
        " UPDATE workflow_steps s SET due_at = now() + make_interval(secs => %s)"
        " FROM held WHERE s.run_id = held.run_id AND s.node_id = held.node_id RETURNING s.lease",
        [list(leases), LEASE_S],
    )
    return {str(lease) for (lease,) in await cursor.fetchall()}


async def give_back(conn: Connection, claimed: Claimed) -> list[Ticket]:
    """As if it had not been claimed: for another worker, at once. Nothing happens when the lease was lost."""
    await conn.execute(
        "UPDATE workflow_steps SET state = 'ready', lease = NULL, due_at = now(), attempts = attempts - 1"
        " WHERE run_id = %s AND node_id = %s AND lease = %s AND state = 'running'",
        [claimed.run_id, claimed.node_id, claimed.lease],
    )
    return await send(conn, [claimed.project_id])
