"""One claimed step to its end: attempted, how it ended written with all that follows, and then told."""

import asyncio
import random
from collections.abc import Mapping
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from typing import Final

from server.clock import Clock
from server.errors import AtlasError, InvalidArgument, Unavailable
from server.events.bus import EventBus
from server.log import logger
from server.postgres.control import Connection, Pool, transaction
from server.tasks import whole
from server.telemetry.metrics import Metrics
from server.workflows import queue, records, stream, transitions
from server.workflows.attempting import Attempting, Definitions
from server.workflows.claims import Claims
from server.workflows.definition import MAX_RUN_BYTES, Definition, Node
from server.workflows.inputs import stored
from server.workflows.nodes.step import Attempt, NodeType, Output, StepFailed, Wait
from server.workflows.queue import Claimed
from server.workflows.retrying import died, failure, retry_at
from server.workflows.transitions import After, Ended

log = logger("workflows")

WRITE_ATTEMPTS: Final = 600
"""At a second or more each, to write how a step ended or give it back; then its lease is over and it is run again."""

WRITE_PAUSE_S: Final = 1.0


@dataclass(frozen=True, slots=True)
class _Failed:
    """`at` is by the database's clock, as every time in its rows."""

    why: StepFailed
    told: Ended
    at: datetime


class Stepping:
    def __init__(
        self, pool: Pool, bus: EventBus, types: Mapping[str, NodeType], claims: Claims, metrics: Metrics, clock: Clock
    ) -> None:
        self._pool = pool
        self._bus = bus
        self._claims = claims
        self._attempting = Attempting(pool, types)
        self._definitions = Definitions(pool)
        self._metrics = metrics
        self._clock = clock

    async def run(self, claimed: Claimed) -> None:
        """Cancelled, it gives the step back unless its lease is lost."""
        began_s = self._clock.monotonic_s()
        await stream.tell(self._bus, stream.PROGRESS, claimed.run_id)
        try:
            try:
                definition = await self._definitions.of(claimed.workflow_id, claimed.version)
            except InvalidArgument as why:
                await whole(self._end_run(claimed, why))
                return
            node = definition.nodes[claimed.node_id]
            ended = await self._attempt(claimed, node)
        except asyncio.CancelledError:
            if not self._claims.is_lost(claimed.lease):
                await whole(self._give_back(claimed))
            raise
        except Unavailable as why:
            log.warning("workflows.unread", f"A step is given back: {why}", run_id=claimed.run_id)
            await asyncio.sleep(WRITE_PAUSE_S)
            await whole(self._give_back(claimed, WRITE_ATTEMPTS))
            return
        finally:
            self._metrics.workflow_running().set(len(self._claims) - 1)
        self._metrics.workflow_step_s(node.type).observe(self._clock.monotonic_s() - began_s)
        await whole(self._write(claimed, definition, ended))

    async def _attempt(self, claimed: Claimed, node: Node) -> Ended | Wait | _Failed:
        attempt: Attempt | None = None
        began_s = self._clock.monotonic_s()
        try:
            if (too_often := died(claimed)) is not None:
                raise too_often
            attempt = await self._attempting.prepare(claimed, node)
            got = await self._attempting.run(attempt)
            if isinstance(got, Wait):
                return got
        except StepFailed as why:
            failed = why
        except Unavailable:
            raise
        except Exception:
            log.exception("workflows.fault", "A step failed with a fault of ours", run_id=claimed.run_id)
            failed = StepFailed("INTERNAL_FAULT", "Something failed on our side", again=True)
        else:
            return _ended(attempt, got)
        took = timedelta(seconds=self._clock.monotonic_s() - began_s)
        return _Failed(failed, failure(failed, attempt), claimed.claimed_at + took)

    async def _write(self, claimed: Claimed, definition: Definition, ended: Ended | Wait | _Failed) -> None:
        """How it ended, as soon as the database takes it."""
        for attempt in range(WRITE_ATTEMPTS):
            try:
                after, outcome = await self._written(claimed, definition, ended)
            except Unavailable as why:
                if attempt == 0:
                    log.warning("workflows.unwritten", f"The end of a step waits to be written: {why}")
                await asyncio.sleep(WRITE_PAUSE_S)
            else:
                await self._tell(claimed, definition.nodes[claimed.node_id], after, outcome)
                return
        log.error("workflows.unwritten", "The end of a step was not written; it will run again", run_id=claimed.run_id)

    async def _written(
        self, claimed: Claimed, definition: Definition, ended: Ended | Wait | _Failed
    ) -> tuple[After, str]:
        async with transaction(self._pool) as conn:
            if isinstance(ended, Wait):
                return await transitions.wait(conn, claimed, ended.until), "waiting"
            if isinstance(ended, Ended):
                ended = await _bounded(conn, claimed, ended)
                after = await transitions.finish(conn, definition, claimed, ended)
                return after, "succeeded" if ended.error is None else "failed"
            why, refused = ended.why, ended.why.no_room
            node = definition.nodes[claimed.node_id]
            again = retry_at(why, claimed, node.retry, now=ended.at, jitter=random.uniform(0.5, 1.0))  # noqa: S311
            if again is not None:
                after = await transitions.wait(conn, claimed, again, ended.told, refused=refused)
                return after, "refused" if refused else "retried"
            return await transitions.finish(conn, definition, claimed, ended.told), "failed"

    async def _tell(self, claimed: Claimed, node: Node, after: After, outcome: str) -> None:
        self._metrics.workflow_steps(node.type, "lost" if after.lost else outcome).add()
        if after.lost:
            log.info("workflows.lost", "A step ended after its lease did", run_id=claimed.run_id, node_id=node.id)
            return
        await stream.send(self._bus, after.tickets)
        if after.run != "running":
            self._metrics.workflow_runs(after.run).add()
            await stream.tell(self._bus, stream.CANCELLED, claimed.run_id)
        await stream.tell(self._bus, stream.PROGRESS, claimed.run_id)

    async def _end_run(self, claimed: Claimed, why: InvalidArgument) -> None:
        """The run's version is none that this release knows how to run."""
        log.error("workflows.unreadable", f"A stored workflow is refused: {why}", workflow_id=claimed.workflow_id)
        error = {"reason": "DEFINITION_UNREADABLE", "message": why.message, "node_id": claimed.node_id}
        async with transaction(self._pool) as conn:
            if await transitions.lock(conn, claimed.run_id):
                await transitions.end_run(conn, claimed.run_id, "failed", error)
        await stream.tell(self._bus, stream.PROGRESS, claimed.run_id)

    async def _give_back(self, claimed: Claimed, attempts: int = 1) -> None:
        """What cannot be given back is taken as that of a dead worker, once its lease is over."""
        for left in reversed(range(attempts)):
            try:
                async with transaction(self._pool) as conn:
                    tickets = await queue.give_back(conn, claimed)
            except AtlasError as why:
                if left:
                    await asyncio.sleep(WRITE_PAUSE_S)
                else:
                    log.warning("workflows.unwritten", f"A step is left to its lease: {why}", run_id=claimed.run_id)
            else:
                await stream.send(self._bus, tickets)
                return


def _ended(attempt: Attempt, got: Output) -> Ended:
    invocation_id = attempt.invocation_id if attempt.node.type == "function" else None
    return Ended(
        input=stored(attempt.node, attempt.input), output=got.json, branch=got.branch, invocation_id=invocation_id
    )


async def _bounded(conn: Connection, claimed: Claimed, ended: Ended) -> Ended:
    """As it is, or failed because its run would hold too much."""
    size = len(ended.output or b"")
    if size <= records.SHOWN_BYTES:
        return ended
    await transitions.lock(conn, claimed.run_id)
    if (held := await records.output_bytes(conn, claimed.run_id)) + size <= MAX_RUN_BYTES:
        return ended
    message = (
        f"The step's output has {size} bytes and those of the run have {held} already;"
        f" together {MAX_RUN_BYTES} are allowed: hand on less"
    )
    return replace(ended, output=None, branch=None, error={"reason": "RUN_OUTPUTS_TOO_LARGE", "message": message})
