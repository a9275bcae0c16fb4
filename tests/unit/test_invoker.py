"""What an Invoker makes of a run: places of the deployed source, an answer, and a record of however it ended."""

import asyncio
import json
from collections.abc import Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from dataclasses import replace
from types import SimpleNamespace
from typing import Any, cast

import pytest

from engines.contract import HostError, Limits, LogLine, Outcome, Response, Result, ScriptError
from engines.runtimes import EngineNotReady
from engines.sourcemap import MOST_PLACES, finish_map
from server.errors import FunctionFailed, NotFound, Unavailable
from server.functions.settings import FunctionSettings
from server.host.origin import Origin
from server.invocations.concurrency import NoSlot
from server.invocations.exactly_once import DONE
from server.invocations.invoke import Body, Call, Invoker, Request
from server.invocations.observation import Observer
from server.runs.record import RunRecord
from server.runs.running import Running
from server.settings import Settings

SOURCE_MAP = finish_map(
    json.dumps({"version": 3, "sources": ["f.ts"], "names": [], "mappings": "AAEA"}).encode(), shift_lines=1
)
OK = Result(outcome=Outcome.OK)
CALL = Call(
    project_id="p", tier="free", slug="f", body=Body(kind="json", data=b"null"), request=Request(), trigger="grpc"
)


def line(text: str) -> LogLine:
    return LogLine(level="error", text=text, at_ms=0)


class Bench:
    """An Invoker between an engine that does as it is told and a list of records."""

    def __init__(
        self,
        answer: Callable[[], Awaitable[Result]],
        source_map: bytes | None = SOURCE_MAP,
        settings: FunctionSettings | None = None,
        room: bool = True,
        exactly_once: bool = False,
    ) -> None:
        self.records: list[RunRecord] = []
        self.running = Running()
        self.transaction = Kept()
        self.transactions: list[bool] = []  # whether their runs may be repeated
        self.limits: list[Limits] = []
        function = SimpleNamespace(
            id="i",
            runtime="quickjs",
            slug="f",
            version=3,
            project_id="p",
            settings=settings or FunctionSettings(),
            exactly_once=exactly_once,
        )
        resolved = SimpleNamespace(
            program=None,
            function=function,
            source_map=source_map,
            env_json=b"{}",
            limits_for=function.settings.bound,
        )

        async def resolve(project_id: str, slug: str) -> Any:
            return resolved

        async def run(program: object, invocation: object, limits: Limits, host: object) -> Result:
            self.limits.append(limits)
            return await answer()

        @asynccontextmanager
        async def hold(function_id: str, limit: int, wall_ms: int) -> Any:
            if not room:
                raise NoSlot(limit, 100)
            yield

        self.invoker = Invoker(
            catalog=cast(Any, SimpleNamespace(resolve=resolve)),
            engines={"quickjs": cast(Any, SimpleNamespace(invoke=run))},
            hosts=cast(Any, SimpleNamespace(for_invocation=lambda *_: None, run_transaction=self._transaction)),
            settings=Settings(),
            slots=cast(Any, SimpleNamespace(hold=hold)),
            running=self.running,
            sink=cast(Any, SimpleNamespace(add=self.records.append)),
            observer=Observer(),
        )

    def _transaction(self, project_id: str, origin: Origin, *, repeated: bool) -> Any:
        self.transactions.append(repeated)
        return self.transaction


class Kept:
    """A run's transaction: an earlier attempt's answer, or what is committed."""

    def __init__(self, told: bytes | None = None, refusal: HostError | None = None) -> None:
        self._told = told
        self._refusal = refusal
        self.earlier: bytes | None = None
        self.committed: list[str] = []
        self.closed = 0

    async def told(self) -> bytes | None:
        return self._told

    async def commit(self, told: str) -> None:
        if self._refusal is not None:
            raise self._refusal
        self.committed.append(told)

    async def close(self) -> None:
        self.closed += 1


def answering(result: Result) -> Callable[[], Awaitable[Result]]:
    async def answer() -> Result:
        return result

    return answer


class Endless:
    """An engine's answer that never comes."""

    def __init__(self) -> None:
        self.began = asyncio.Event()

    async def __call__(self) -> Result:
        self.began.set()
        await asyncio.Event().wait()
        raise AssertionError


async def result_of(result: Result, source_map: bytes | None = SOURCE_MAP) -> Result:
    return (await Bench(answering(result), source_map).invoker.invoke(CALL)).result


async def test_a_run_leaves_a_record_and_tells_its_id() -> None:
    bench = Bench(answering(replace(OK, logs=(line("said"),))))
    finished = await bench.invoker.invoke(CALL)
    (record,) = bench.records
    assert finished.run_id == CALL.run_id == record.run.id
    assert (record.run.function_id, record.run.version, record.run.trigger) == ("i", 3, "grpc")
    assert (record.state, record.outcome, record.error) == ("finished", "ok", None)
    assert [line.text for line in record.logs] == ["said"]


async def test_a_failed_run_leaves_what_its_caller_is_told() -> None:
    error = ScriptError(name="Error", message="no", stack="    at f (<input>:2:1)")
    bench = Bench(answering(Result(outcome=Outcome.EXCEPTION, error=error)))
    with pytest.raises(FunctionFailed, match="no") as raised:
        await bench.invoker.invoke(CALL)
    (record,) = bench.records
    assert raised.value.metadata["run_id"] == CALL.run_id
    assert record.outcome == "exception"
    assert record.error is not None
    assert (record.error.reason, record.error.message) == ("FUNCTION_EXCEPTION", raised.value.message)
    assert "f.ts:3:1" in record.error.stack


async def test_a_run_whose_caller_left_is_recorded_as_cancelled() -> None:
    endless = Endless()
    bench = Bench(endless)
    run = asyncio.create_task(bench.invoker.invoke(CALL))
    await endless.began.wait()
    run.cancel()
    with pytest.raises(asyncio.CancelledError):
        await run
    assert [record.outcome for record in bench.records] == ["cancelled"]


async def test_a_run_that_somebody_cancelled_tells_its_caller_so() -> None:
    endless = Endless()
    bench = Bench(endless)
    run = asyncio.create_task(bench.invoker.invoke(CALL))
    await endless.began.wait()
    await bench.running.cancel("p", CALL.run_id)
    with pytest.raises(Exception, match="cancelled") as raised:
        await run
    assert getattr(raised.value, "reason", None) == "CANCELLED"
    assert [record.outcome for record in bench.records] == ["cancelled"]


async def test_a_fault_of_ours_is_recorded_without_its_text() -> None:
    async def broken() -> Result:
        raise ZeroDivisionError("secret")

    bench = Bench(broken)
    with pytest.raises(ZeroDivisionError):
        await bench.invoker.invoke(CALL)
    (record,) = bench.records
    assert record.outcome == "crashed"
    assert record.error is not None
    assert (record.error.reason, "secret" in record.error.message) == ("INTERNAL_FAULT", False)


async def test_a_run_whose_engine_is_not_ready_is_told_and_recorded_as_not_started() -> None:
    async def not_ready() -> Result:
        raise EngineNotReady("The engine is being built")

    bench = Bench(not_ready)
    with pytest.raises(Unavailable, match="being built") as raised:
        await bench.invoker.invoke(CALL)
    (record,) = bench.records
    assert raised.value.metadata["run_id"] == CALL.run_id
    assert record.outcome == "overloaded"
    assert record.error is not None
    assert record.error.reason == "RUNTIME_NOT_READY"


async def test_the_functions_settings_lower_the_tiers_limits() -> None:
    bench = Bench(answering(OK), settings=FunctionSettings(timeout_ms=100, memory_mb=8))
    await bench.invoker.invoke(CALL)
    (limits,) = bench.limits
    assert (limits.wall_ms, limits.cpu_ms, limits.memory_bytes) == (100, 100, 8 * 2**20)


async def test_a_function_with_no_slot_left_is_overloaded() -> None:
    bench = Bench(answering(OK), settings=FunctionSettings(concurrency=1), room=False)
    with pytest.raises(Unavailable, match="No room") as raised:
        await bench.invoker.invoke(CALL)
    assert raised.value.retry_after_ms
    assert [record.outcome for record in bench.records] == ["overloaded"]
    assert not bench.limits


async def test_logs_name_places_of_the_source() -> None:
    told = await result_of(replace(OK, logs=(line("plain"), line("Error: no\n    at f (<input>:2:1)"))))
    assert [line.text for line in told.logs] == ["plain", "Error: no\n    at f (f.ts:3:1)"]


async def test_stacks_name_places_of_the_source() -> None:
    error = ScriptError(name="Error", message="no", stack="    at f (<input>:2:1)")
    with pytest.raises(FunctionFailed, match="no") as raised:
        await result_of(Result(outcome=Outcome.EXCEPTION, error=error))
    assert "at f (f.ts:3:1)" in str(vars(raised.value))


async def test_without_a_map_everything_stays() -> None:
    logged = replace(OK, logs=(line("at <input>:2:1"),))
    assert await result_of(logged, None) == logged


async def test_no_more_places_are_translated_than_of_one_stack() -> None:
    crowd = line("<input>:2:1 " * (MOST_PLACES // 2))
    told = await result_of(replace(OK, logs=(crowd,) * 4))
    assert ["f.ts" in line.text for line in told.logs] == [True, True, False, False]


async def test_a_function_that_took_over_the_slug_is_not_run() -> None:
    bench = Bench(answering(OK))
    assert (await bench.invoker.invoke(replace(CALL, function_id="i"))).run_id
    with pytest.raises(NotFound, match="is another one now"):
        await bench.invoker.invoke(replace(CALL, function_id="another"))
    assert len(bench.records) == 1


@pytest.mark.parametrize(
    ("trigger", "event", "repeated"),
    [("http", None, False), ("grpc", None, False), ("async", None, True), ("t", b'{"id":"e"}', True)],
)
async def test_an_exactly_once_run_is_remembered_when_it_may_come_again(
    trigger: str, event: bytes | None, repeated: bool
) -> None:
    bench = Bench(answering(replace(OK, value=b"[1]")), exactly_once=True)
    assert (await bench.invoker.invoke(replace(CALL, trigger=trigger, event=event))).result.value == b"[1]"
    assert (bench.transactions, bench.transaction.committed) == ([repeated], ['{"value":[1]}'])
    assert bench.transaction.closed == 1


async def test_any_other_function_has_no_transaction_of_its_own() -> None:
    bench = Bench(answering(OK))
    await bench.invoker.invoke(CALL)
    assert bench.transactions == []


async def test_what_an_earlier_attempt_answered_is_not_run_again() -> None:
    bench = Bench(answering(OK), exactly_once=True)
    bench.transaction = Kept(told=b'{"value":{"a":1}}')
    assert (await bench.invoker.invoke(CALL)).result.value == b'{"a":1}'
    assert (bench.limits, bench.transaction.committed, bench.transaction.closed) == ([], [], 1)
    (record,) = bench.records
    assert (record.outcome, [line.text for line in record.logs]) == ("ok", [DONE.text])


@pytest.mark.parametrize("room", [True, False])
@pytest.mark.parametrize(
    "result",
    [Result(outcome=Outcome.EXCEPTION), replace(OK, response=Response(status=400, headers=(), body=b""))],
)
async def test_what_did_not_end_well_is_not_committed(result: Result, room: bool) -> None:
    settings = None if room else FunctionSettings(concurrency=1)
    bench = Bench(answering(result), exactly_once=True, settings=settings, room=room)
    with suppress(FunctionFailed, Unavailable):
        await bench.invoker.invoke(CALL)
    assert (bench.transaction.committed, bench.transaction.closed) == ([], int(room))


async def test_a_commit_that_is_refused_is_a_failure_of_the_function() -> None:
    bench = Bench(answering(replace(OK, logs=(line("said"),))), exactly_once=True)
    bench.transaction = Kept(refusal=HostError("sql_23503", "violates"))
    with pytest.raises(FunctionFailed, match="AtlasError: violates") as raised:
        await bench.invoker.invoke(CALL)
    assert raised.value.metadata["code"] == "sql_23503"
    (record,) = bench.records
    assert ([line.text for line in record.logs], bench.transaction.closed) == (["said"], 1)


async def test_a_cancelled_run_gives_its_transaction_up() -> None:
    endless = Endless()
    bench = Bench(endless, exactly_once=True)
    run = asyncio.create_task(bench.invoker.invoke(CALL))
    await endless.began.wait()
    run.cancel()
    with pytest.raises(asyncio.CancelledError):
        await run
    assert (bench.transaction.committed, bench.transaction.closed) == ([], 1)
