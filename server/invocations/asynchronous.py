"""Asynchronous runs, as callers see them: accepted, withdrawn, and their results kept for a day.

accept ──COMMIT──▶ the caller has the id ··· AsyncWorker of any process runs it ··· result
"""

from dataclasses import dataclass
from typing import Final, Protocol

from server.clock import Clock, SystemClock
from server.errors import Cancelled, InvalidArgument, NotFound, ResourceExhausted
from server.fields import parse_id
from server.functions.catalog import Resolved
from server.invocations import async_queue
from server.invocations.answers import unpack
from server.invocations.async_queue import TRIGGER
from server.invocations.invoke import Call, Finished
from server.postgres.changes import Changes
from server.postgres.control import Pool, transaction
from server.runs import rows
from server.runs.record import Run, RunRecord, State, cancelled, storable
from server.runs.recorder import Sink

TOPIC: Final = "async_run"
"""Of the announcements that wake workers."""

KEEP_S: Final = 24 * 3600.0
MAX_INPUT_BYTES: Final = 6 * 1024 * 1024
MAX_QUEUED: Final = 10_000
MAX_QUEUED_BYTES: Final = 256 * 1024 * 1024
SWEEP_BATCH: Final = 500


@dataclass(frozen=True, slots=True)
class Pending:
    """A run that has not ended."""

    run_id: str
    state: State


class Resolves(Protocol):
    """`server.functions.catalog.Catalog`."""

    async def resolve(self, project_id: str, slug: str) -> Resolved: ...


class AsyncRuns:
    """`server.runs.reader.Queue`."""

    def __init__(
        self, pool: Pool, changes: Changes, catalog: Resolves, sink: Sink, *, clock: Clock | None = None
    ) -> None:
        self._pool = pool
        self._changes = changes
        self._catalog = catalog
        self._sink = sink
        self._clock = clock or SystemClock()

    async def accept(self, call: Call) -> str:
        """Queue the run; when this returns, the run will happen at least once. Its id; a call twice is one run.

        NotFound when the project has no such function, InvalidArgument for too large an input, ResourceExhausted when
        the project has too much queued.
        """
        if (size := len(call.body.data)) > MAX_INPUT_BYTES:
            raise InvalidArgument(
                "input",
                f"The input has {size} bytes; an asynchronous run takes {MAX_INPUT_BYTES}",
                used=str(size),
                allowed=str(MAX_INPUT_BYTES),
            )
        function = (await self._catalog.resolve(call.project_id, call.slug)).function
        run = Run(
            id=call.run_id,
            project_id=call.project_id,
            function_id=function.id,
            slug=function.slug,
            version=0,
            runtime=function.runtime,
            trigger=TRIGGER,
            created_at=self._clock.now(),
            request_id=call.request_id,
            trace_id=call.traceparent[3:35],
        )
        async with transaction(self._pool) as conn:
            if await async_queue.insert(conn, call, created_at=run.created_at):
                _require_room(*await async_queue.waiting(conn, call.project_id))
                await rows.enqueue(conn, run)
                await self._changes.announce(conn, TOPIC, call.project_id)
        return run.id

    async def result(self, project_id: str, run_id: str) -> Finished | Pending:
        """What a synchronous call would have got; raises the error that it would have raised.

        NotFound for an unknown id and KEEP_S after the run ended.
        """
        run_id = parse_id("run_id", run_id)
        async with transaction(self._pool) as conn:
            cursor = await conn.execute(
                "SELECT state, answer FROM async_runs WHERE id = %s AND project_id = %s"
                " AND (finished_at IS NULL OR finished_at > now() - make_interval(secs => %s))",
                [run_id, project_id, KEEP_S],
                binary=True,
            )
            row = await cursor.fetchone()
        if row is None:
            raise NotFound(
                f"The project has no asynchronous run {run_id}, or its result is no longer kept",
                reason="RUN_NOT_FOUND",
                metadata={"run_id": run_id},
            )
        state, packed = row
        if packed is None:
            return Pending(run_id, state)
        answer = unpack(bytes(packed))
        if isinstance(answer, Finished):
            return answer
        raise answer

    async def withdraw(self, project_id: str, run_id: str) -> RunRecord | None:
        """Take a run from the queue for good; how it ended, or None when it does not wait there."""
        answer = Cancelled("The run was cancelled", reason="CANCELLED", metadata={"run_id": run_id})
        async with transaction(self._pool) as conn:
            if not await async_queue.withdraw(conn, project_id, run_id, answer):
                return None
            queued = await rows.get(conn, project_id, run_id)
            assert queued is not None, "a queued run has its row"
            record = storable(cancelled(queued.run, at=self._clock.now()))
            await rows.finish(conn, [record])
        self._sink.add(record)
        return record

    async def sweep(self) -> None:
        """Delete results that are no longer kept."""
        forgotten = SWEEP_BATCH
        while forgotten == SWEEP_BATCH:
            async with transaction(self._pool) as conn:
                forgotten = await async_queue.forget(conn, older_than_s=KEEP_S, most=SWEEP_BATCH)


def _require_room(count: int, total_bytes: int) -> None:
    """ResourceExhausted when that is more than a project may have waiting."""
    for used, allowed, unit in ((count, MAX_QUEUED, "runs"), (total_bytes, MAX_QUEUED_BYTES, "bytes")):
        if used > allowed:
            raise ResourceExhausted(
                f"The project has {allowed} {unit} of asynchronous runs waiting, which is all it may have; wait",
                reason="TOO_MANY_QUEUED",
                metadata={"allowed": str(allowed), "unit": unit},
                retry_after_ms=5_000,
            )
