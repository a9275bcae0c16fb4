"""Runs, as those see them who start, watch and end them.

start ──COMMIT──▶ the run happens ··· StepWorker of any process takes each step ··· succeeded, failed or cancelled
"""

from collections.abc import Sequence
from dataclasses import replace
from typing import Final
from uuid import uuid4

from server.clock import Clock, SystemClock
from server.errors import AlreadyExists, FailedPrecondition, InvalidArgument, ResourceExhausted
from server.events.bus import EventBus
from server.events.envelope import MAX_DATA_BYTES
from server.events.json_text import Json
from server.fields import parse_id
from server.paging import Page, at, request
from server.postgres.control import Connection, Pool, transaction
from server.telemetry.metrics import Metrics
from server.workflows import inputs, records, store, stream, transitions
from server.workflows.events import by_hand, members_of
from server.workflows.nodes.step import StepFailed
from server.workflows.records import Filter, Run, StepRecord
from server.workflows.store import Workflow

MAX_RUNNING: Final = 10_000
"""Runs of a project that have not ended, above which the API starts no more."""


class Workflows:
    def __init__(
        self, pool: Pool, bus: EventBus, *, metrics: Metrics | None = None, clock: Clock | None = None
    ) -> None:
        self._pool = pool
        self._bus = bus
        self._metrics = metrics or Metrics()
        self._clock = clock or SystemClock()

    async def start(
        self, *, project_id: str, workflow_id: str, run_id: str, trigger_id: str | None, event: bytes
    ) -> None:
        """Start a run with the event, an envelope in JSON, as its trigger data. When this returns, it will happen.

        A run of that id that is there already stays as it is. NotFound when the project has no such workflow,
        InvalidArgument for an event that is no JSON object.
        """
        members_of(event)
        async with transaction(self._pool) as conn:
            if await _exists(conn, run_id):
                return
            workflow = await store.find(conn, project_id, workflow_id, lock=True)
            after = await _begin(conn, workflow, run_id, trigger_id, event)
        await stream.send(self._bus, after.tickets)

    async def run(self, project_id: str, workflow_id: str, data: Json, *, run_id: str = "") -> Run:
        """Start a run by hand, with an event around `data`. With a `run_id` twice it is one run.

        NotFound, InvalidArgument for too large data, ResourceExhausted when too many runs have not ended, AlreadyExists
        when the id is that of a run of another workflow.
        """
        workflow_id = parse_id("workflow_id", workflow_id)
        run_id = parse_id("run_id", run_id) if run_id else str(uuid4())
        if (size := len(data.text.encode("utf-8", "surrogatepass"))) > MAX_DATA_BYTES:
            raise InvalidArgument(
                "input",
                f"input has {size} bytes; at most {MAX_DATA_BYTES} are allowed",
                used=str(size),
                allowed=str(MAX_DATA_BYTES),
            )
        event = by_hand(project_id, run_id, data, self._clock.now())
        tickets: Sequence[stream.Ticket] = ()
        async with transaction(self._pool) as conn:
            workflow = await store.find(conn, project_id, workflow_id, lock=True)
            if not await _exists(conn, run_id):
                await _require_room(conn, project_id)
                tickets = (await _begin(conn, workflow, run_id, None, event)).tickets
            made = await records.get(conn, project_id, run_id)
        if made.workflow_id != workflow_id:
            raise AlreadyExists(
                f"run_id is {run_id}, the id of a run of another workflow",
                reason="WORKFLOW_RUN_EXISTS",
                metadata={"run_id": run_id, "workflow_id": made.workflow_id},
            )
        await stream.send(self._bus, tickets)
        return made

    async def get(self, project_id: str, run_id: str) -> tuple[Run, list[StepRecord]]:
        """As of one moment."""
        run_id = parse_id("run_id", run_id)
        async with transaction(self._pool) as conn:
            await conn.execute("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ")
            run = await records.get(conn, project_id, run_id)
            return run, await records.steps(conn, run_id)

    async def step(self, project_id: str, run_id: str, node_id: str) -> StepRecord:
        """With all of its input and output, unless another release stored what this one cannot read."""
        run_id = parse_id("run_id", run_id)
        async with transaction(self._pool) as conn:
            await records.get(conn, project_id, run_id)
            step = await records.step(conn, run_id, node_id)
            if step.input != inputs.MADE_AGAIN:
                return step
            event, definition = await records.beginning(conn, run_id)
        try:
            made = await inputs.Inputs(self._pool).again(run_id, event, store.loaded(definition).nodes[node_id])
        except (StepFailed, InvalidArgument):
            return replace(step, input=None, omitted=True)
        return replace(step, input=made)

    async def list(self, project_id: str, wanted: Filter, page_size: int = 0, page_token: str = "") -> Page[Run]:
        """Newest first."""
        wanted = wanted.checked()
        asked = request(f"workflow runs of {project_id} {wanted}", page_size, page_token, until=wanted.until)
        async with transaction(self._pool) as conn:
            before = (asked.after.moment, asked.after.id)
            found = await records.newest(conn, project_id, wanted, before=before, most=asked.size + 1)
        return asked.page(found, lambda run: at(run.created_at, run.id))

    async def cancel(self, project_id: str, run_id: str) -> Run:
        """End the run: nothing of it starts any more, and what runs of it is told to end.

        FailedPrecondition when it has ended already.
        """
        run_id = parse_id("run_id", run_id)
        async with transaction(self._pool) as conn:
            run = await records.get(conn, project_id, run_id, lock=True)
            if run.state != "running":
                raise FailedPrecondition(
                    f"The workflow run {run_id} has ended already: {run.state}",
                    reason="WORKFLOW_RUN_FINISHED",
                    metadata={"run_id": run_id, "state": run.state},
                )
            await transitions.end_run(conn, run_id, "cancelled")
            run = await records.get(conn, project_id, run_id)
        self._metrics.workflow_runs(run.state).add()
        await stream.tell(self._bus, stream.CANCELLED, run_id)
        await stream.tell(self._bus, stream.PROGRESS, run_id)
        return run


async def _begin(
    conn: Connection, workflow: Workflow, run_id: str, trigger_id: str | None, event: bytes
) -> transitions.After:
    await _keep_version(conn, workflow)
    cursor = await conn.execute(
        "INSERT INTO workflow_runs (id, project_id, workflow_id, version, state, trigger_id, event)"
        " VALUES (%s, %s, %s, %s, 'running', %s, %s) ON CONFLICT (id) DO NOTHING",
        [run_id, workflow.project_id, workflow.id, workflow.version, trigger_id, event],
    )
    if cursor.rowcount == 0:  # somebody else began it just now
        return transitions.LOST
    return await transitions.begin(conn, store.loaded(workflow.definition), run_id, workflow.project_id)


async def _keep_version(conn: Connection, workflow: Workflow) -> None:
    """The version is there until the transaction ends, and then as long as the run is."""
    key = [workflow.id, workflow.version]
    cursor = await conn.execute(
        "SELECT 1 FROM workflow_versions WHERE workflow_id = %s AND version = %s FOR KEY SHARE", key
    )
    if await cursor.fetchone() is None:
        await conn.execute(
            "INSERT INTO workflow_versions (workflow_id, version, project_id, definition)"
            " VALUES (%s, %s, %s, %s::json)"
            " ON CONFLICT (workflow_id, version) DO UPDATE SET definition = EXCLUDED.definition",
            [*key, workflow.project_id, workflow.definition],
        )


async def _exists(conn: Connection, run_id: str) -> bool:
    cursor = await conn.execute("SELECT 1 FROM workflow_runs WHERE id = %s", [run_id])
    return await cursor.fetchone() is not None


async def _require_room(conn: Connection, project_id: str) -> None:
    cursor = await conn.execute(
        "SELECT count(*) FROM (SELECT 1 FROM workflow_runs WHERE project_id = %s AND state = 'running' LIMIT %s) AS r",
        [project_id, MAX_RUNNING],
    )
    ((count,),) = await cursor.fetchall()
    if count >= MAX_RUNNING:
        raise ResourceExhausted(
            f"The project has {count} workflow runs that have not ended, which is all it may have; wait",
            reason="TOO_MANY_WORKFLOW_RUNS",
            metadata={"allowed": str(MAX_RUNNING)},
            retry_after_ms=5_000,
        )
