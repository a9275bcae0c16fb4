"""How steps and runs end; every function works inside the caller's transaction, and all that follows is in it.

A run's row is locked first, so that what its steps do to each other happens one after the other: two branches that end
at the same moment start their join once.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Final, Literal

import orjson

from server.postgres.control import Connection
from server.workflows import graph, queue
from server.workflows.definition import Definition
from server.workflows.graph import Step
from server.workflows.queue import Claimed
from server.workflows.stream import Ticket

RunState = Literal["running", "succeeded", "failed", "cancelled"]
UNFINISHED: Final = "'pending', 'ready', 'queued', 'running', 'waiting'"
MAX_HISTORY: Final = 40

_LONGER: Final = f"""CASE WHEN %s::jsonb IS NULL OR jsonb_array_length(history) >= {MAX_HISTORY} THEN history
  ELSE history || jsonb_build_array(%s::jsonb || jsonb_build_object('finished_at', now())) END"""
"""The attempts with one more, which is given twice, or null."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Ended:
    """How an attempt ended: well, with `output`, or with `error`, {"reason", "message"}."""

    input: bytes | None = None
    output: bytes | None = None
    branch: bool | None = None
    error: Mapping[str, str] | None = None
    invocation_id: str | None = None


@dataclass(frozen=True, slots=True)
class After:
    """What follows: tickets to publish after the transaction, and the run's state. `lost`: the step was not ours any
    more, and nothing is changed."""

    tickets: Sequence[Ticket] = ()
    run: RunState = "running"
    lost: bool = False


LOST: Final = After(lost=True)


async def begin(conn: Connection, definition: Definition, run_id: str, project_id: str) -> After:
    """The steps of a run whose row was just inserted."""
    nodes = [*definition.nodes.values()]
    first = set(graph.advance(definition, {node.id: Step("pending") for node in nodes}).start)
    columns = [
        [node.id for node in nodes],
        [*range(len(nodes))],
        [node.type for node in nodes],
        ["ready" if node.id in first else "pending" for node in nodes],
    ]
    await conn.execute(
        "INSERT INTO workflow_steps (run_id, project_id, node_id, place, type, state, due_at)"
        " SELECT %s, %s, node.*, now() FROM unnest(%s::text[], %s::integer[], %s::text[], %s::text[]) AS node",
        [run_id, project_id, *columns],
    )
    return After(await queue.send(conn, [project_id]))


async def finish(conn: Connection, definition: Definition, claimed: Claimed, ended: Ended) -> After:
    """The step ended for good, well or not; what comes after it starts, is skipped, or ends with the run."""
    failed = ended.error is not None
    cursor = await conn.execute(
        "WITH run AS MATERIALIZED (SELECT 1 FROM workflow_runs WHERE id = %s AND state = 'running' FOR UPDATE)"
        " UPDATE workflow_steps SET state = %s, lease = NULL, due_at = NULL, finished_at = now(), output = %s,"
        f" branch = %s, input = %s, error = %s, history = {_LONGER}"
        " WHERE run_id = %s AND node_id = %s AND lease = %s AND state = 'running' AND EXISTS (TABLE run)",
        [
            claimed.run_id,
            "failed" if failed else "succeeded",
            ended.output,
            ended.branch,
            ended.input,
            _json(ended.error),
            *[_attempt(claimed, ended)] * 2,
            claimed.run_id,
            claimed.node_id,
            claimed.lease,
        ],
    )
    if cursor.rowcount == 0:
        return LOST
    if failed and definition.nodes[claimed.node_id].on_error == "fail":
        assert ended.error is not None
        await end_run(conn, claimed.run_id, "failed", {**ended.error, "node_id": claimed.node_id})
        return After(await queue.send(conn, [claimed.project_id]), "failed")
    run = await _go_on(conn, definition, claimed.run_id)
    return After(await queue.send(conn, [claimed.project_id]), run)


async def wait(
    conn: Connection, claimed: Claimed, until: datetime, ended: Ended | None = None, *, refused: bool = False
) -> After:
    """The step goes on at that time: a delay that begins, or, with how its attempt ended, one that is tried again.
    `refused`: the attempt does not count."""
    cursor = await conn.execute(
        "UPDATE workflow_steps SET state = 'waiting', lease = NULL, due_at = %s, wake_at = %s,"
        " refusals = refusals + %s, attempts = attempts - %s, error = coalesce(%s, error), input = coalesce(%s, input),"
        f" history = {_LONGER}"
        " WHERE run_id = %s AND node_id = %s AND lease = %s AND state = 'running'",
        [
            until,
            until if ended is None else None,
            int(refused),
            int(refused or ended is None),
            None if ended is None else _json(ended.error),
            None if ended is None else ended.input,
            *[None if ended is None or refused else _attempt(claimed, ended)] * 2,
            claimed.run_id,
            claimed.node_id,
            claimed.lease,
        ],
    )
    return LOST if cursor.rowcount == 0 else After(await queue.send(conn, [claimed.project_id]))


async def end_run(conn: Connection, run_id: str, state: RunState, error: Mapping[str, str] | None = None) -> None:
    """The run, which is locked and runs, ends so, and with it whatever of it has not ended."""
    await conn.execute(
        "UPDATE workflow_runs SET state = %s, error = %s, finished_at = now() WHERE id = %s",
        [state, _json(error), run_id],
    )
    await conn.execute(
        "WITH open AS (SELECT run_id, node_id FROM workflow_steps"
        f" WHERE run_id = %s AND state IN ({UNFINISHED}) ORDER BY node_id FOR UPDATE)"
        " UPDATE workflow_steps s SET state = 'cancelled', lease = NULL, due_at = NULL, finished_at = now()"
        " FROM open WHERE s.run_id = open.run_id AND s.node_id = open.node_id",
        [run_id],
    )


async def _go_on(conn: Connection, definition: Definition, run_id: str) -> RunState:
    cursor = await conn.execute("SELECT node_id, state, branch FROM workflow_steps WHERE run_id = %s", [run_id])
    steps = {node_id: Step(state, branch) for node_id, state, branch in await cursor.fetchall()}
    following = graph.advance(definition, steps)
    if following.start:
        await conn.execute(
            "UPDATE workflow_steps SET state = 'ready', due_at = now() WHERE run_id = %s AND node_id = ANY(%s)",
            [run_id, list(following.start)],
        )
    if following.skip:
        await conn.execute(
            "UPDATE workflow_steps SET state = 'skipped', due_at = NULL, finished_at = now()"
            " WHERE run_id = %s AND node_id = ANY(%s)",
            [run_id, list(following.skip)],
        )
    if not following.over:
        return "running"
    await end_run(conn, run_id, "succeeded")
    return "succeeded"


async def lock(conn: Connection, run_id: str) -> bool:
    """Whether the run still runs; it does until the transaction ends."""
    cursor = await conn.execute("SELECT 1 FROM workflow_runs WHERE id = %s AND state = 'running' FOR UPDATE", [run_id])
    return await cursor.fetchone() is not None


def _attempt(claimed: Claimed, ended: Ended) -> str:
    told: dict[str, Any] = {"number": claimed.attempts, "began_at": claimed.claimed_at.isoformat()}
    if ended.error is not None:
        told["error"] = ended.error
    if ended.invocation_id is not None:
        told["invocation_id"] = ended.invocation_id
    return orjson.dumps(told).decode()


def _json(value: Mapping[str, str] | None) -> str | None:
    return None if value is None else orjson.dumps(value).decode()
