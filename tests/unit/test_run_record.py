"""The wire form of a run's record: whole for what is ordinary, bounded and readable for what is hostile."""

import asyncio
from collections import deque
from datetime import UTC, datetime
from typing import Any
from uuid import uuid4

import orjson
import pytest

from engines.contract import LogLine, Metrics, Outcome, Result
from server.runs.record import MAX_BYTES, RunError, batch, decode, decode_batch, encode, finished, storable
from server.runs.recorder import take
from server.runs.running import Running
from tests.fix_runs import a_record, a_run

PROJECT = str(uuid4())


def test_a_record_survives_the_wire() -> None:
    record = a_record(
        PROJECT,
        outcome="exception",
        error=RunError(reason="FUNCTION_EXCEPTION", message="no ☃", stack="at f (f.ts:1:1)"),
        metrics=Metrics(wall_ms=1.25, fuel_consumed=2**53, memory_bytes=1),
        logs=(LogLine(level="warn", text="\0 \n \u2028", at_ms=0.1),),
        logs_truncated=True,
    )
    assert decode_batch(batch([encode(record), encode(record)])) == [record, record]
    assert storable(record) == record


def test_lone_surrogates_become_question_marks() -> None:
    record = a_record(
        PROJECT,
        run=a_run(PROJECT, request_id="a\ud800"),
        error=RunError(reason="X", message="\udfffb", stack="\ud800"),
        logs=(LogLine(level="log", text="c\ud83d", at_ms=0),),
    )
    seen = decode(orjson.loads(encode(record)))
    assert (seen.run.request_id, seen.logs[0].text) == ("a?", "c?")
    assert seen.error == RunError(reason="X", message="?b", stack="?")


def test_a_record_too_large_for_a_message_is_cut() -> None:
    huge = "\x01" * MAX_BYTES  # six bytes each as JSON
    error = RunError(reason="X", message=huge, stack=huge)
    record = a_record(
        PROJECT,
        run=a_run(PROJECT, request_id=huge, trace_id=huge),
        error=error,
        logs=(LogLine(level="log", text=huge, at_ms=0),),
    )
    encoded = encode(record)
    assert len(encoded) <= MAX_BYTES
    seen = decode(orjson.loads(encoded))
    assert (seen.logs, seen.logs_truncated, seen.run.id) == ((), True, record.run.id)


def test_the_most_console_output_is_not_cut() -> None:
    lines = tuple(LogLine(level="log", text="\x01" * 16, at_ms=1234.5678) for _ in range(4096))
    assert decode(orjson.loads(encode(a_record(PROJECT, logs=lines)))).logs == lines


@pytest.mark.parametrize(
    "change",
    [
        {"run": None},
        {"run": {"id": "not a uuid"}},
        {"state": "gone"},
        {"outcome": "fine"},
        {"metrics": {"wall_ms": None}},
        {"metrics": []},
        {"finished_at": 12},
        {"logs": [{"level": "log"}]},
        {"logs": 3},
        {"error": {"reason": 1}},
        {"error": {"reason": "a", "message": "b", "more": "c"}},
    ],
)
def test_what_is_no_record_is_a_value_error(change: dict[str, Any]) -> None:
    value = orjson.loads(encode(a_record(PROJECT)))
    with pytest.raises(ValueError, match=r".+"):
        decode(value | change)


@pytest.mark.parametrize("data", [b"", b"{}", b"3", b"[1]", b"\xff", b"[[]]"])
def test_what_is_no_batch_is_a_value_error(data: bytes) -> None:
    with pytest.raises(ValueError, match=r".+"):
        decode_batch(data)


def test_finished_is_what_the_result_says() -> None:
    now = datetime.now(UTC)
    result = Result(outcome=Outcome.WALL_LIMIT, metrics=Metrics(wall_ms=5000), logs_truncated=True)
    record = finished(a_run(PROJECT), result, RunError(reason="WALL_CLOCK_LIMIT", message="too long"), at=now)
    assert (record.state, record.outcome, record.finished_at) == ("finished", "wall_limit", now)
    assert (record.metrics.wall_ms, record.logs_truncated) == (5000, True)


def test_take_fills_messages_in_order_and_never_stalls() -> None:
    records = deque([b"aaaa", b"bb", b"c" * 50, b"d"])
    taken = []
    while records:
        taken.append(take(records, 11))
    assert taken == [[b"aaaa", b"bb"], [b"c" * 50], [b"d"]]
    assert [len(batch(part)) <= 11 for part in taken] == [True, False, True]


async def test_a_cancelled_run_answers_and_its_task_goes_on() -> None:
    running = Running()
    run = a_run(PROJECT)
    begun = asyncio.Event()

    async def work() -> Result:
        begun.set()
        await asyncio.Event().wait()
        raise AssertionError

    async def invoke() -> str:
        result = await running.guard(run, work())
        await asyncio.sleep(0)
        return result.outcome

    task = asyncio.create_task(invoke())
    await begun.wait()
    assert await running.cancel(str(uuid4()), run.id) is None
    assert await running.cancel(PROJECT, str(uuid4())) is None
    first, second = await asyncio.gather(running.cancel(PROJECT, run.id), running.cancel(PROJECT, run.id))
    assert first == second
    assert first is not None
    assert (first.outcome, first.run) == ("cancelled", run)
    assert await task == "cancelled"
    assert (len(running), task.cancelling()) == (0, 0)


async def test_a_client_that_leaves_cancels_the_run_whoever_else_does() -> None:
    running = Running()
    run = a_run(PROJECT)
    begun, killed = asyncio.Event(), asyncio.Event()

    async def work() -> Result:
        begun.set()
        try:
            await asyncio.Event().wait()
        finally:
            killed.set()
        raise AssertionError

    task = asyncio.create_task(running.guard(run, work()))
    await begun.wait()
    ended = asyncio.create_task(running.cancel(PROJECT, run.id))
    await asyncio.sleep(0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert killed.is_set()
    told = await ended
    assert told is not None
    assert told.outcome == "cancelled"


async def test_a_run_that_ends_while_it_is_cancelled_keeps_its_result() -> None:
    running = Running()
    run = a_run(PROJECT)
    begun = asyncio.Event()

    async def work() -> Result:
        begun.set()
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            return Result(outcome=Outcome.OK)
        raise AssertionError

    task = asyncio.create_task(running.guard(run, work()))
    await begun.wait()
    told = await running.cancel(PROJECT, run.id)
    assert told is not None
    assert told.outcome == "ok"
    assert (await task).outcome is Outcome.OK
    assert task.cancelling() == 0
