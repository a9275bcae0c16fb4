"""Runs and steps as they are stored, for those who ask."""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Final, get_args

from psycopg.rows import dict_row

from server.errors import NotFound
from server.fields import parse_choice, parse_id
from server.postgres.control import Connection
from server.workflows.transitions import RunState

RUN_STATES: Final = get_args(RunState)
FINISHED: Final = tuple(state for state in RUN_STATES if state != "running")

SHOWN_BYTES: Final = 8 * 1024
"""Of a step's input and output as a run shows them; larger ones are left out, and shown with the step alone."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Run:
    id: str
    project_id: str
    workflow_id: str
    version: int
    state: RunState
    trigger_id: str | None
    error: Mapping[str, str] | None
    created_at: datetime
    finished_at: datetime | None
    event: bytes | None = None  # JSON; None in lists, and when it is larger than SHOWN_BYTES


@dataclass(frozen=True, slots=True, kw_only=True)
class StepRecord:
    """`input` and `output` are JSON, None when there is none; `omitted` when they are there and not shown."""

    node_id: str
    type: str
    state: str
    attempts: int
    due_at: datetime | None
    input: bytes | None
    output: bytes | None
    omitted: bool
    error: Mapping[str, str] | None
    history: Sequence[Mapping[str, Any]]
    began_at: datetime | None
    finished_at: datetime | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Filter:
    """Which runs; what is empty or None does not restrict. As the caller sent it."""

    workflow_id: str = ""
    state: str = ""
    since: datetime | None = None  # begun then or later
    until: datetime | None = None  # begun before

    def checked(self) -> "Filter":
        """InvalidArgument names the field."""
        if self.state:
            parse_choice("state", self.state, RUN_STATES)
        workflow_id = parse_id("workflow_id", self.workflow_id) if self.workflow_id else ""
        return Filter(workflow_id=workflow_id, state=self.state, since=self.since, until=self.until)


_RUN: Final = "id, project_id, workflow_id, version, state, trigger_id, error, created_at, finished_at"
_EVENT: Final = f"CASE WHEN octet_length(event) <= {SHOWN_BYTES} THEN event END AS event"
_STEP: Final = "node_id, type, state, attempts, due_at, error, history, began_at, finished_at"
_SMALL: Final = (
    f"CASE WHEN octet_length(input) BETWEEN 1 AND {SHOWN_BYTES} THEN input END AS input,"
    f" CASE WHEN octet_length(output) <= {SHOWN_BYTES} THEN output END AS output,"
    f" input = '' OR greatest(octet_length(input), octet_length(output)) > {SHOWN_BYTES} AS omitted"
)


async def get(conn: Connection, project_id: str, run_id: str, *, lock: bool = False) -> Run:
    """NotFound when the project has none of that id. With `lock` nobody else changes it until the transaction ends."""
    query = f"SELECT {_RUN}, {_EVENT} FROM workflow_runs WHERE id = %s AND project_id = %s"
    locked = f"{query} FOR UPDATE" if lock else query
    cursor = await conn.cursor(row_factory=dict_row).execute(locked.encode(), [run_id, project_id])
    if (row := await cursor.fetchone()) is None:
        raise NotFound(
            f"The project has no workflow run {run_id}", reason="WORKFLOW_RUN_NOT_FOUND", metadata={"run_id": run_id}
        )
    return Run(**row)


async def newest(
    conn: Connection, project_id: str, wanted: Filter, *, before: tuple[datetime, str], most: int
) -> list[Run]:
    conditions: list[tuple[str, object]] = [("project_id = %s", project_id), ("(created_at, id) < (%s, %s)", before)]
    if wanted.workflow_id:
        conditions.append(("workflow_id = %s", wanted.workflow_id))
    if wanted.since is not None:
        conditions.append(("created_at >= %s", wanted.since))
    values = [item for _, value in conditions for item in (value if isinstance(value, tuple) else (value,))]
    text = [condition for condition, _ in conditions]
    if wanted.state:
        text.append(f"state = '{wanted.state}'")  # checked; so that the planner sees which partial index fits
    cursor = await conn.cursor(row_factory=dict_row).execute(
        f"SELECT {_RUN} FROM workflow_runs WHERE {' AND '.join(text)}"
        " ORDER BY created_at DESC, id DESC LIMIT %s".encode(),
        [*values, most],
    )
    return [Run(**row) for row in await cursor.fetchall()]


async def steps(conn: Connection, run_id: str) -> list[StepRecord]:
    """In the order of the definition; large inputs and outputs are left out."""
    cursor = await conn.cursor(row_factory=dict_row).execute(
        f"SELECT {_STEP}, {_SMALL} FROM workflow_steps WHERE run_id = %s ORDER BY place".encode(), [run_id]
    )
    return [_step(row) for row in await cursor.fetchall()]


async def step(conn: Connection, run_id: str, node_id: str) -> StepRecord:
    """With all of its input and output as they are stored. NotFound when the run has no such step."""
    cursor = await conn.cursor(row_factory=dict_row).execute(
        f"SELECT {_STEP}, input, output, false AS omitted FROM workflow_steps"
        " WHERE run_id = %s AND node_id = %s".encode(),
        [run_id, node_id],
    )
    if (row := await cursor.fetchone()) is None:
        raise NotFound(
            f"The run {run_id} has no step {node_id[:64]!r}",
            reason="WORKFLOW_STEP_NOT_FOUND",
            metadata={"run_id": run_id, "node_id": node_id[:64]},
        )
    return _step(row)


async def beginning(conn: Connection, run_id: str) -> tuple[bytes, str]:
    """Of a run that is there: its event, and its definition as it was written."""
    cursor = await conn.execute(
        "SELECT r.event, v.definition::text FROM workflow_runs r JOIN workflow_versions v USING (workflow_id, version)"
        " WHERE r.id = %s",
        [run_id],
    )
    ((event, definition),) = await cursor.fetchall()
    return bytes(event), definition


async def results(
    conn: Connection, run_id: str, node_ids: Collection[str], outputs: Collection[str]
) -> Sequence[Mapping[str, Any]]:
    """What templates see of steps: node_id, state, error, and of those in `outputs` the output as bytes."""
    cursor = await conn.cursor(row_factory=dict_row).execute(
        "SELECT node_id, state, error, CASE WHEN node_id = ANY(%s) THEN output END AS output FROM workflow_steps"
        " WHERE run_id = %s AND node_id = ANY(%s)",
        [list(outputs), run_id, list(node_ids)],
    )
    return await cursor.fetchall()


async def output_bytes(conn: Connection, run_id: str, node_ids: Collection[str] | None = None) -> int:
    """Of the outputs of these steps, or of all, together; none of them is read."""
    cursor = await conn.execute(
        "SELECT coalesce(sum(octet_length(output)), 0)::bigint FROM workflow_steps"
        " WHERE run_id = %s AND coalesce(node_id = ANY(%s), true)",
        [run_id, None if node_ids is None else list(node_ids)],
    )
    row = await cursor.fetchone()
    assert row is not None
    return int(row[0])


def _step(row: Mapping[str, Any]) -> StepRecord:
    return StepRecord(**{**row, "omitted": bool(row["omitted"])})
