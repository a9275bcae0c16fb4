"""Asynchronous runs on a real Postgres, around an Invoker that does what the test says."""

import asyncio
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime
from types import SimpleNamespace
from typing import Any, cast
from uuid import uuid4

import pytest

from engines.contract import Outcome, Result
from server.errors import AtlasError, Cancelled, FunctionFailed, Internal, InvalidArgument, NotFound, ResourceExhausted
from server.errors import Unavailable as Overloaded
from server.functions.catalog import Resolved
from server.functions.outcomes import error_of
from server.invocations import async_queue, asynchronous, attempts
from server.invocations.async_worker import AsyncWorker
from server.invocations.asynchronous import AsyncRuns, Pending
from server.invocations.attempts import Attempts
from server.invocations.invoke import Body, Call, Finished, Request
from server.invocations.leases import Leases
from server.postgres.changes import Changes
from server.postgres.control import Pool, transaction
from server.postgres.presence import Presence
from server.runs import rows
from server.runs.record import Run, RunError, RunRecord, finished
from server.runs.running import Running
from tests.fix_functions import add_project
from tests.fix_runs import eventually

FUNCTION_ID = str(uuid4())


class Catalog:
    async def resolve(self, project_id: str, slug: str) -> Resolved:
        if slug == "gone":
            raise NotFound("no such function", reason="FUNCTION_NOT_FOUND")
        return cast(Resolved, SimpleNamespace(function=SimpleNamespace(id=FUNCTION_ID, slug=slug, runtime="quickjs")))


@dataclass
class Records:
    """A Sink."""

    seen: list[RunRecord] = field(default_factory=list)

    def add(self, record: RunRecord) -> None:
        self.seen.append(record)


class Invoker:
    """Runs calls with `work`, records as the real one does."""

    def __init__(self, sink: Attempts, work: Callable[[Call], Awaitable[Result]]) -> None:
        self.sink = sink
        self.work = work
        self.running = Running()
        self.calls: list[Call] = []

    async def invoke(self, call: Call) -> Finished:
        self.calls.append(call)
        run = Run(
            id=call.run_id,
            project_id=call.project_id,
            function_id=FUNCTION_ID,
            slug=call.slug,
            version=7,
            runtime="quickjs",
            trigger=call.trigger,
            created_at=call.accepted_at or datetime.now(UTC),
            request_id=call.request_id,
            trace_id=call.traceparent[3:35],
        )
        result = Result(outcome=Outcome.CANCELLED)
        error: AtlasError | None = None
        try:
            result = await self.running.guard(run, self.work(call))
        finally:
            if result.outcome is not Outcome.OK:
                error = error_of(result)
            told = RunError(reason=error.reason, message=error.message) if error else None
            self.sink.add(finished(run, result, told, at=datetime.now(UTC)))
        if error is not None:
            raise error
        return Finished(call.run_id, result)


async def echo(call: Call) -> Result:
    return Result(outcome=Outcome.OK, value=call.body.data)


@dataclass
class Process:
    """One worker."""

    worker: AsyncWorker
    invoker: Invoker
    records: Records
    changes: Changes

    async def start(self) -> None:
        await self.changes.start()
        await self.worker.start()

    async def stop(self, drain_s: float = 5.0) -> None:
        await self.worker.close(drain_s)
        await self.changes.close()


MakeProcess = Callable[..., Process]


@pytest.fixture
async def process(control_url: str, pool: Pool) -> AsyncIterator[MakeProcess]:
    """Makes workers; those that still work after the test are stopped."""
    made: list[Process] = []

    def make(work: Callable[[Call], Awaitable[Result]] = echo, concurrency: int = 4) -> Process:
        changes, records = Changes(control_url), Records()
        held = Attempts(records)
        invoker = Invoker(held, work)
        worker = AsyncWorker(pool, changes, invoker, held, records, concurrency=concurrency)
        made.append(Process(worker, invoker, records, changes))
        return made[-1]

    yield make
    for item in made:
        await item.stop(drain_s=0)


@pytest.fixture
def records() -> Records:
    """Of the API process."""
    return Records()


@pytest.fixture
def runs(pool: Pool, changes: Changes, records: Records) -> AsyncRuns:
    return AsyncRuns(pool, changes, Catalog(), records)


@pytest.fixture
def long_backoff(monkeypatch: pytest.MonkeyPatch) -> None:
    """What went back into the queue stays there until the test lets it out."""
    monkeypatch.setattr(attempts, "BACKOFF_S", (1000.0,) * 7)


def a_call(project_id: str, data: bytes = b"1", **fields: Any) -> Call:
    request = Request(method="PUT", path="/a", query={"q": "1"}, headers={"x": "y"})
    defaults: dict[str, Any] = {"slug": "hello", "body": Body(kind="json", data=data), "request": request}
    return Call(**{"project_id": project_id, "tier": None, **defaults, **fields})


async def stored(pool: Pool, project_id: str, run_id: str) -> RunRecord:
    async with transaction(pool) as conn:
        record = await rows.get(conn, project_id, run_id)
    assert record is not None
    return record


async def ended(runs: AsyncRuns, project_id: str, run_id: str) -> Finished | AtlasError:
    async def answer() -> Finished | AtlasError | None:
        try:
            result = await runs.result(project_id, run_id)
        except AtlasError as error:
            return error
        return result if isinstance(result, Finished) else None

    return await eventually(answer)


async def lapse(pool: Pool, run_id: str) -> None:
    """As much time passes as a lease or a backoff takes."""
    async with transaction(pool) as conn:
        await conn.execute("UPDATE async_runs SET due_at = now() WHERE id = %s", [run_id])


async def test_what_is_accepted_runs_with_all_that_was_asked(
    runs: AsyncRuns, process: MakeProcess, pool: Pool, project_id: str
) -> None:
    call = a_call(project_id, b'{"a": "\\u0000"}', request_id="r1", traceparent=f"00-{'a' * 32}-{'b' * 16}-01")
    run_id = await runs.accept(call)
    assert await runs.result(project_id, run_id.upper()) == Pending(run_id, "queued")
    queued = await stored(pool, project_id, run_id)
    assert (queued.state, queued.run.version, queued.run.trigger) == ("queued", 0, "async")
    assert (queued.run.function_id, queued.run.trace_id) == (FUNCTION_ID, "a" * 32)
    worker = process()
    await worker.start()
    answer = await ended(runs, project_id, run_id)
    assert isinstance(answer, Finished)
    assert (answer.run_id, answer.result.value) == (run_id, call.body.data)
    (seen,) = worker.invoker.calls
    assert (seen.request, seen.body, seen.tier, seen.trigger) == (call.request, call.body, "free", "async")
    assert (seen.run_id, seen.request_id, seen.traceparent) == (run_id, call.request_id, call.traceparent)
    record = await stored(pool, project_id, run_id)
    assert (record.state, record.outcome, record.run.version) == ("finished", "ok", 7)
    assert record.run.created_at == queued.run.created_at
    assert [item.run for item in worker.records.seen] == [record.run]
    with pytest.raises(NotFound):
        await runs.result(str(uuid4()), run_id)


async def test_a_worker_is_woken_at_once(runs: AsyncRuns, process: MakeProcess, project_id: str) -> None:
    worker = process()
    await worker.start()
    begun = asyncio.get_running_loop().time()
    for _ in range(5):
        await ended(runs, project_id, await runs.accept(a_call(project_id)))
    assert asyncio.get_running_loop().time() - begun < 2.5  # of 5 s that polls would take on average


async def test_errors_of_the_function_are_its_answer(
    runs: AsyncRuns, process: MakeProcess, pool: Pool, project_id: str
) -> None:
    async def throw(call: Call) -> Result:
        return Result(outcome=Outcome.EXCEPTION)

    worker = process(throw)
    await worker.start()
    run_id = await runs.accept(a_call(project_id))
    answer = await ended(runs, project_id, run_id)
    assert isinstance(answer, FunctionFailed)
    record = await stored(pool, project_id, run_id)
    assert (record.outcome, record.error and record.error.reason) == ("exception", "FUNCTION_EXCEPTION")
    assert len(worker.invoker.calls) == 1


async def test_what_cannot_be_accepted(
    runs: AsyncRuns, pool: Pool, project_id: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(NotFound):
        await runs.accept(a_call(project_id, slug="gone"))
    with pytest.raises(InvalidArgument, match="6291457 bytes"):
        await runs.accept(a_call(project_id, b"x" * (asynchronous.MAX_INPUT_BYTES + 1)))
    monkeypatch.setattr(asynchronous, "MAX_QUEUED", 2)
    monkeypatch.setattr(asynchronous, "MAX_QUEUED_BYTES", 100)
    await runs.accept(a_call(project_id))
    with pytest.raises(ResourceExhausted, match="100 bytes"):
        await runs.accept(a_call(project_id, b"x" * 100))
    await runs.accept(a_call(project_id))
    with pytest.raises(ResourceExhausted, match="2 runs"):
        await runs.accept(a_call(project_id))
    async with transaction(pool) as conn:
        cursor = await conn.execute("SELECT (SELECT count(*) FROM runs), (SELECT count(*) FROM async_runs)")
        assert await cursor.fetchone() == (2, 2)


async def test_the_same_call_is_one_run(runs: AsyncRuns, pool: Pool, project_id: str) -> None:
    call = a_call(project_id)
    assert await runs.accept(call) == await runs.accept(call) == call.run_id


async def test_without_a_sandbox_it_waits_its_turn(
    runs: AsyncRuns, process: MakeProcess, pool: Pool, project_id: str, long_backoff: None
) -> None:
    left = 3

    async def crowded(call: Call) -> Result:
        nonlocal left
        left -= 1
        return Result(outcome=Outcome.OVERLOADED) if left else Result(outcome=Outcome.OK)

    worker = process(crowded)
    await worker.start()
    run_id = await runs.accept(a_call(project_id))
    for attempt in (1, 2):

        async def back(attempt: int = attempt) -> bool:
            state = await runs.result(project_id, run_id)
            return len(worker.invoker.calls) == attempt and state == Pending(run_id, "queued")

        await eventually(back)
        assert (await stored(pool, project_id, run_id)).state == "queued"
        await lapse(pool, run_id)
    assert isinstance(await ended(runs, project_id, run_id), Finished)
    assert [record.outcome for record in worker.records.seen] == ["ok"]


async def test_one_that_waits_can_be_withdrawn(runs: AsyncRuns, records: Records, pool: Pool, project_id: str) -> None:
    run_id = await runs.accept(a_call(project_id))
    assert await runs.withdraw(str(uuid4()), run_id) is None
    record = await runs.withdraw(project_id, run_id)
    assert record is not None
    assert (record.state, record.outcome, record.run.id) == ("finished", "cancelled", run_id)
    assert records.seen == [record]
    assert (await stored(pool, project_id, run_id)).outcome == "cancelled"
    with pytest.raises(Cancelled):
        await runs.result(project_id, run_id)
    assert await runs.withdraw(project_id, run_id) is None


async def test_one_that_runs_can_be_cancelled(
    runs: AsyncRuns, process: MakeProcess, pool: Pool, project_id: str
) -> None:
    begun = asyncio.Event()

    async def hang(call: Call) -> Result:
        begun.set()
        await asyncio.Event().wait()
        raise AssertionError

    worker = process(hang)
    await worker.start()
    run_id = await runs.accept(a_call(project_id))
    await begun.wait()
    assert (await stored(pool, project_id, run_id)).state == "running"
    assert await runs.withdraw(project_id, run_id) is None
    assert await worker.invoker.running.cancel(project_id, run_id) is not None
    assert isinstance(await ended(runs, project_id, run_id), Cancelled)
    assert (await stored(pool, project_id, run_id)).outcome == "cancelled"


async def test_a_worker_that_ends_lets_runs_end_or_gives_them_back(
    runs: AsyncRuns, process: MakeProcess, pool: Pool, project_id: str
) -> None:
    begun, proceed = asyncio.Semaphore(0), asyncio.Event()

    async def slow(call: Call) -> Result:
        begun.release()
        await (asyncio.Event() if call.body.data == b"2" else proceed).wait()
        return Result(outcome=Outcome.OK)

    first = process(slow)
    await first.start()
    quick, endless = await runs.accept(a_call(project_id)), await runs.accept(a_call(project_id, b"2"))
    await begun.acquire()
    await begun.acquire()
    proceed.set()
    await first.stop(drain_s=0.3)
    assert isinstance(await runs.result(project_id, quick), Finished)
    assert await runs.result(project_id, endless) == Pending(endless, "queued")
    assert [record.run.id for record in first.records.seen] == [quick]
    second = process()
    await second.start()
    assert isinstance(await ended(runs, project_id, endless), Finished)


async def test_projects_share_the_places(runs: AsyncRuns, process: MakeProcess, pool: Pool, project_id: str) -> None:
    other = await add_project(pool)
    for _ in range(20):
        await runs.accept(a_call(project_id))
    for _ in range(3):
        await runs.accept(a_call(other))
    places = asyncio.Semaphore(0)

    async def wait(call: Call) -> Result:
        await places.acquire()
        return Result(outcome=Outcome.OK)

    worker = process(wait, concurrency=4)
    await worker.start()

    async def full() -> bool:
        return len(worker.invoker.calls) == 4

    await eventually(full)
    assert Counter(call.project_id for call in worker.invoker.calls) == {project_id: 2, other: 2}
    for _ in range(23):
        places.release()

    async def all_ended() -> bool:
        return len(worker.records.seen) == 23

    await eventually(all_ended)
    assert len({record.run.id for record in worker.records.seen}) == 23


async def test_a_project_with_endless_runs_leaves_places_to_others(
    runs: AsyncRuns, process: MakeProcess, pool: Pool, project_id: str
) -> None:
    other = await add_project(pool)
    for _ in range(20):
        await runs.accept(a_call(project_id))

    async def wait(call: Call) -> Result:
        if call.project_id == project_id:
            await asyncio.Event().wait()
        return Result(outcome=Outcome.OK)

    worker = process(wait, concurrency=10)
    await worker.start()

    async def full() -> bool:
        return len(worker.invoker.calls) >= 8

    await eventually(full)
    assert isinstance(await ended(runs, other, await runs.accept(a_call(other))), Finished)
    assert Counter(call.project_id for call in worker.invoker.calls) == {project_id: 8, other: 1}


async def test_one_whose_worker_died_is_run_again_and_not_for_ever(
    runs: AsyncRuns, process: MakeProcess, pool: Pool, project_id: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The lease of a worker that was killed runs out; nothing of it is left but the row."""
    run_id = await runs.accept(a_call(project_id))
    leases = Leases(pool, "async_runs")
    for attempt in (1, 2, 3):
        async with transaction(pool) as conn:
            (claimed,) = await async_queue.claim(conn, 5)
        assert (claimed.attempts, claimed.call.run_id) == (attempt, run_id)
        async with transaction(pool) as conn:
            assert await async_queue.claim(conn, 5) == []
        await lapse(pool, run_id)
        await leases.renew()
        async with transaction(pool) as conn:  # the database may have been away, and all have just come back
            assert await async_queue.claim(conn, 5) == []
        with monkeypatch.context() as later:
            later.setattr(Presence, "is_steady", True)
            await leases.renew()
        assert (await stored(pool, project_id, run_id)).state == "queued"
    late = Finished(run_id, Result(outcome=Outcome.OK))
    worker = process()
    await worker.start()
    answer = await ended(runs, project_id, run_id)
    assert isinstance(answer, Internal)
    assert answer.reason == "SANDBOX_CRASHED"
    record = await stored(pool, project_id, run_id)
    assert (record.outcome, worker.invoker.calls) == ("crashed", [])
    async with transaction(pool) as conn:
        assert not await async_queue.finish(conn, claimed, late, record)


async def test_a_fault_of_ours_is_tried_again(
    runs: AsyncRuns, process: MakeProcess, pool: Pool, project_id: str, long_backoff: None
) -> None:
    async def fail(call: Call) -> Result:
        if len(worker.invoker.calls) == 1:
            raise RuntimeError("a fault")
        raise Overloaded("the catalog is away", reason="CONTROL_DATABASE_UNAVAILABLE")

    worker = process(fail)
    await worker.start()
    run_id = await runs.accept(a_call(project_id))
    for calls in (1, 2):

        async def back(calls: int = calls) -> bool:
            return len(worker.invoker.calls) == calls and isinstance(await runs.result(project_id, run_id), Pending)

        await eventually(back)

        async def queued() -> bool:
            return await runs.result(project_id, run_id) == Pending(run_id, "queued")

        await eventually(queued)
        await lapse(pool, run_id)


async def test_results_are_kept_for_a_day(runs: AsyncRuns, process: MakeProcess, pool: Pool, project_id: str) -> None:
    worker = process()
    await worker.start()
    old, new = await runs.accept(a_call(project_id)), await runs.accept(a_call(project_id))
    for run_id in (old, new):
        await ended(runs, project_id, run_id)
    async with transaction(pool) as conn:
        await conn.execute("UPDATE async_runs SET finished_at = now() - interval '24 h 1 s' WHERE id = %s", [old])
    with pytest.raises(NotFound, match="no longer kept"):
        await runs.result(project_id, old)
    await runs.sweep()
    async with transaction(pool) as conn:
        cursor = await conn.execute("SELECT id FROM async_runs")
        assert await cursor.fetchall() == [(new,)]


async def test_leases_are_renewed(runs: AsyncRuns, process: MakeProcess, pool: Pool, project_id: str) -> None:
    begun = asyncio.Event()

    async def hang(call: Call) -> Result:
        begun.set()
        await asyncio.Event().wait()
        raise AssertionError

    worker = process(hang)
    await worker.start()
    run_id = await runs.accept(a_call(project_id))
    await begun.wait()
    async with transaction(pool) as conn:
        await conn.execute("UPDATE async_runs SET due_at = now() + interval '1 s'")
    await worker.worker._leases.renew()
    async with transaction(pool) as conn:
        cursor = await conn.execute("SELECT due_at > now() + interval '10 s' FROM async_runs WHERE id = %s", [run_id])
        assert await cursor.fetchone() == (True,)
