"""Runs what AsyncRuns accepted, in any number of processes, each run at least once.

    woken, or once a second ──▶ claim as many as can start now ──▶ Invoker ──▶ how it ended, in one transaction
                                                                      └──▶ back into the queue, for later

A run goes back when no sandbox was free, when something of ours was not there, and when this process ends first. One
whose process died comes back when its lease is over. After MAX_ATTEMPTS it has crashed.
"""

import asyncio
import contextlib
import random
from dataclasses import replace
from typing import Final, Protocol

from engines.contract import Result
from server.clock import Clock, SystemClock
from server.errors import AtlasError, Unavailable
from server.invocations import async_queue
from server.invocations.answers import Answer
from server.invocations.async_queue import Claimed
from server.invocations.asynchronous import TOPIC
from server.invocations.attempts import MAX_ATTEMPTS, Attempts, Retry, died, fault, outcome_of, retry
from server.invocations.invoke import Call, Finished
from server.invocations.leases import Leases
from server.log import logger
from server.postgres.changes import Changes
from server.postgres.control import Connection, Pool, transaction
from server.runs import rows
from server.runs.record import RunError, RunRecord, finished, storable
from server.runs.recorder import Sink
from server.tasks import end_task, whole

log = logger("async")

CONCURRENCY: Final = 40
RESERVED: Final = 5
"""One place in so many is for projects of which nothing runs."""

POLL_S: Final = 1.0
DRAIN_S: Final = 6.0


class Invokes(Protocol):
    """`server.invocations.invoke.Invoker`."""

    async def invoke(self, call: Call) -> Finished: ...


class AsyncWorker:
    def __init__(
        self,
        pool: Pool,
        changes: Changes,
        invoker: Invokes,
        attempts: Attempts,
        sink: Sink,
        *,
        concurrency: int = CONCURRENCY,
        clock: Clock | None = None,
    ) -> None:
        """Subscribes to `changes`: make it before they start. `attempts` is the Invoker's sink, `sink` is behind it."""
        self._pool = pool
        self._invoker = invoker
        self._attempts = attempts
        self._sink = sink
        self._concurrency = concurrency
        self._clock = clock or SystemClock()
        self._leases = Leases(pool, "async_runs")
        self._wake = asyncio.Event()
        self._running: set[asyncio.Task[None]] = set()
        self._task: asyncio.Task[None] | None = None
        changes.subscribe(TOPIC, lambda _: self._wake.set(), self._wake.set)

    def __repr__(self) -> str:
        return f"<AsyncWorker {len(self._running)} of {self._concurrency} running>"

    async def start(self) -> None:
        await self._leases.start()
        self._task = asyncio.create_task(self._work_for_ever(), name="async runs")

    async def close(self, drain_s: float = DRAIN_S) -> None:
        """Claim no more; let runs end for that long, then kill them and give them back to the queue."""
        if self._task is not None:
            await end_task(self._task)
        if self._running:
            await asyncio.wait(self._running, timeout=drain_s)
        for task in self._running:
            task.cancel()
        if self._running:
            await asyncio.wait(self._running, timeout=DRAIN_S)  # what cannot be written now is left to its lease
        await self._leases.close()

    async def _work_for_ever(self) -> None:
        while True:
            self._wake.clear()
            try:
                await self._claim()
            except AtlasError as why:
                log.warning("async.claim", f"No asynchronous runs can be claimed: {why}")
            except Exception:
                log.exception("async.fault", "No asynchronous runs can be claimed")
            await self._woken()

    async def _woken(self) -> None:
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(POLL_S):
                await self._wake.wait()

    async def _claim(self) -> None:
        """Until nothing is due that a free place is for."""
        while (free := self._concurrency - len(self._running)) > 0:
            async with transaction(self._pool) as conn:
                claimed = await async_queue.claim(conn, free, reserved=self._concurrency // RESERVED)
            if not claimed:
                return
            for item in claimed:
                task = asyncio.create_task(self._run(item), name=f"async run {item.call.run_id}")
                self._running.add(task)
                task.add_done_callback(self._ended)

    def _ended(self, task: asyncio.Task[None]) -> None:
        self._running.discard(task)
        self._wake.set()
        if not task.cancelled() and (why := task.exception()) is not None:
            log.error("async.fault", f"An asynchronous run is left to its lease: {why!r}")

    async def _run(self, claimed: Claimed) -> None:
        with self._leases.held(claimed.lease):
            try:
                answer, record = await self._attempt(claimed)
            except asyncio.CancelledError:
                await self._give_back(claimed, Retry(0.0, claimed.attempts - 1, claimed.refusals))
                raise
            again = retry(answer, claimed, age_s=(self._clock.now() - claimed.created_at).total_seconds())
            if again is not None:
                await self._give_back(claimed, replace(again, delay_s=again.delay_s * random.uniform(0.5, 1.5)))  # noqa: S311
            else:
                await whole(self._finish(claimed, answer, record))

    async def _attempt(self, claimed: Claimed) -> tuple[Answer, RunRecord | None]:
        """How it ended and what the Invoker recorded of it."""
        call = claimed.call
        if claimed.attempts > MAX_ATTEMPTS:
            return died(call.run_id), None
        self._attempts.begin(call.run_id)
        answer: Answer
        record: RunRecord | None = None
        try:
            answer = await self._invoker.invoke(call)
        except AtlasError as error:
            answer = error
        except Exception:
            log.exception("async.fault", "An asynchronous run failed with a fault of ours", run_id=call.run_id)
            answer = fault(call.run_id)
        finally:
            record = self._attempts.end(call.run_id)
        return answer, record

    async def _give_back(self, claimed: Claimed, again: Retry) -> None:
        try:
            async with transaction(self._pool) as conn:
                await async_queue.give_back(
                    conn, claimed, delay_s=again.delay_s, attempts=again.attempts, refusals=again.refusals
                )
        except AtlasError as why:
            log.warning("async.unwritten", f"A run is left to its lease: {why}", run_id=claimed.call.run_id)

    async def _finish(self, claimed: Claimed, answer: Answer, record: RunRecord | None) -> None:
        """As soon as the database takes it. The lease is held until then; once it was lost the run is another's."""
        while True:
            try:
                async with transaction(self._pool) as conn:
                    ended = storable(record or await self._without_attempt(conn, claimed, answer))
                    if not await async_queue.finish(conn, claimed, answer, ended):
                        log.warning("async.lost", "A run ended after its lease did", run_id=claimed.call.run_id)
                        return
            except Unavailable as why:
                log.warning("async.unwritten", f"The end of a run waits to be written: {why}")
                await asyncio.sleep(POLL_S)
            else:
                self._sink.add(ended)
                return

    async def _without_attempt(self, conn: Connection, claimed: Claimed, answer: Answer) -> RunRecord:
        """The record of a run that ended before an attempt began, or with a fault of ours."""
        call = claimed.call
        queued = await rows.get(conn, call.project_id, call.run_id)
        assert queued is not None, "an asynchronous run has its row"
        told = RunError(reason=answer.reason, message=answer.message) if isinstance(answer, AtlasError) else None
        return finished(queued.run, Result(outcome=outcome_of(answer)), told, at=self._clock.now())
