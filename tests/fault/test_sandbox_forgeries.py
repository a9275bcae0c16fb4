"""A child that was taken over may send anything. It is ended at its first lie, and only its own invocation suffers."""

import asyncio
import json
import os
from collections.abc import Callable
from dataclasses import replace
from typing import Any, cast

import pytest

from engines import supervisor
from engines.contract import Outcome, Result
from engines.frames import LENGTH, MAX_CALLS_IN_FLIGHT, MAX_PAYLOAD_BYTES, Type, encode
from engines.keeper import JailLeaks
from engines.kind import Kind
from engines.messages import NO_JSON
from engines.quickjs.engine import QuickJS
from engines.supervisor import Supervisor
from tests.fix_fake_child import FakeZygote, Script, Wire, calls, engine_of, error, header, result
from tests.fix_sandbox import LIMITS, MIB, Scripted, Silence, children_of, program, run, until

Forge = Callable[[int], bytes]
CORES = os.cpu_count() or 1


def answering(forge: Forge) -> Script:
    async def script(wire: Wire) -> None:
        await wire.raw(forge(await wire.invoked()))

    return script


def meta_of(payload: bytes) -> Forge:
    return lambda inv: encode(Type.RESULT, inv, 0, LENGTH.pack(len(payload)) + payload)


def response(*headers: object, status: object = 200) -> Forge:
    return lambda inv: result(inv, b"body", kind="response", status=status, headers=list(headers))


FORGERIES: dict[str, Forge] = {
    "result of the next invocation": lambda inv: result(inv + 1),
    "result of the load": lambda inv: result(0),
    "result with a call number": lambda inv: encode(Type.RESULT, inv, 1, b""),
    "ready again": lambda inv: encode(Type.READY, inv, 0, b'{"memory_bytes":1,"boot_us":1}'),
    "a frame for children": lambda inv: encode(Type.HOSTRES, inv, 0, b"\x01null"),
    "unknown type": lambda inv: header(0, 99, 0, inv, 0),
    "flags": lambda inv: header(0, Type.RESULT, 1, inv, 0),
    "oversize": lambda inv: header(MAX_PAYLOAD_BYTES + 1, Type.RESULT, 0, inv, 0),
    "empty result": lambda inv: encode(Type.RESULT, inv, 0, b""),
    "meta longer than the frame": lambda inv: encode(Type.RESULT, inv, 0, LENGTH.pack(2**32 - 1)),
    "meta is garbage": meta_of(b"{{{"),
    "meta is an array": meta_of(b"[]"),
    "meta is deep": meta_of(b"[" * 100_000),
    "value is no JSON": lambda inv: result(inv, b'1},"metrics":{'),
    "value is NaN": lambda inv: result(inv, b"NaN"),
    "value is not UTF-8": lambda inv: result(inv, b'"\xff"'),
    "value is empty": lambda inv: result(inv, b""),
    "unknown kind": lambda inv: result(inv, kind="html"),
    "negative time": lambda inv: result(inv, cpu_us=-1),
    "time is a string": lambda inv: result(inv, wall_us="1"),
    "time is true": lambda inv: result(inv, wall_us=True),
    "time is huge": lambda inv: result(inv, wall_us=2**60),
    "no logs": lambda inv: result(inv, logs=None),
    "too many log lines": lambda inv: result(inv, logs=[["log", "", 1]] * 4_097),
    "log level": lambda inv: result(inv, logs=[["fatal", "x", 1]]),
    "log line": lambda inv: result(inv, logs=[["info", 1, 1]]),
    "status 99": response(status=99),
    "status true": response(status=True),
    "header injection": response(["x", "a\r\nset-cookie: b"]),
    "header name": response(["X Y", "a"]),
    "header pair": response(["x"]),
    "error of no outcome": lambda inv: error(inv, "nonsense"),
    "error that is ok": lambda inv: error(inv, "ok"),
    "error for us to say": lambda inv: error(inv, "overloaded"),
    "cancelled unasked": lambda inv: error(inv, "cancelled"),
    "error without a name": lambda inv: error(inv, "exception", error={"message": "m"}),
    "error is an array": lambda inv: error(inv, "exception", error=[]),
    "65 calls": lambda inv: calls(inv, *range(MAX_CALLS_IN_FLIGHT + 1)),
    "64 calls and one": lambda inv: calls(inv, *range(MAX_CALLS_IN_FLIGHT)) + calls(inv, 99),
    "the same call twice": lambda inv: calls(inv, 1) + calls(inv, 1),
    "no calls": lambda inv: calls(inv),
    "a call of numbers": lambda inv: encode(Type.HOSTCALL, inv, 0, b'[[1,2,"[]"]]'),
    "a negative call": lambda inv: calls(inv, -1),
}


@pytest.mark.parametrize("forge", [pytest.param(forge, id=name) for name, forge in FORGERIES.items()])
async def test_a_forged_frame_is_the_last(forge: Forge, caplog: pytest.LogCaptureFixture) -> None:
    async with engine_of(answering(forge)) as (engine, zygote):
        host = Silence()
        outcome = (await run(engine, "", host=host)).outcome
        assert outcome is Outcome.CRASHED
        assert zygote.workers[-1].exited.done()
        assert host.calls == host.cancelled
        assert "A sandbox attacks" in caplog.text
        again = await run(engine, "")
        assert again.error is not None
        assert again.error.name == "Quarantined"
        assert (await run(engine, program("", project="neighbour"))).outcome is Outcome.OK


METERED = Kind(is_metered=True)
FUELLED = replace(LIMITS, fuel=1000)
BEYOND_ITS_KIND: dict[str, tuple[Kind, Forge]] = {
    "fuel of an engine that burns none": (Kind(), lambda inv: result(inv, fuel=7)),
    "fuel beside an error": (Kind(), lambda inv: error(inv, "exception", fuel=7)),
    "more fuel than it was given": (METERED, lambda inv: result(inv, fuel=1001)),
    "no fuel left, says an engine that burns none": (Kind(), lambda inv: error(inv, "fuel_limit")),
    "no stack left": (Kind(), lambda inv: error(inv, "stack_limit")),
    "no time left": (Kind(), lambda inv: error(inv, "wall_limit")),
}


@pytest.mark.parametrize(("kind", "forge"), BEYOND_ITS_KIND.values(), ids=BEYOND_ITS_KIND)
async def test_a_child_says_nothing_that_its_kind_cannot_know(kind: Kind, forge: Forge) -> None:
    async with engine_of(answering(forge), kind=kind) as (engine, _):
        ended = await run(engine, "", limits=FUELLED)
        assert (ended.outcome, ended.metrics.fuel_consumed) == (Outcome.CRASHED, None)
        assert engine.report()["quarantined"] == 1


@pytest.mark.parametrize("outcome", ["fuel_limit", "stack_limit", "wall_limit"])
async def test_one_that_is_metered_says_what_it_used(outcome: str) -> None:
    async with engine_of(answering(lambda inv: error(inv, outcome, fuel=1000)), kind=METERED) as (engine, _):
        ended = await run(engine, "", limits=FUELLED)
        assert (ended.outcome, ended.metrics.fuel_consumed) == (outcome, 1000)


@pytest.mark.parametrize(
    "value",
    [
        b"[" + b"1," * 100_000 + b"]",
        b'"' + b"x" * 100_000 + b'\xff"',
        b"1\0" + b" " * 100_000,
        b"[" * 50_000 + b"]" * 50_000,
    ],
    ids=["no JSON", "not UTF-8", "ends early", "too deep"],
)
async def test_a_forged_large_value_reaches_nobody(value: bytes) -> None:
    async with engine_of(answering(lambda inv: result(inv, value))) as (engine, _):
        ended = await run(engine, "")
        assert (ended.outcome, ended.value, ended.error) == (Outcome.EXCEPTION, b"null", NO_JSON)


async def test_calls_whose_arguments_would_fill_the_supervisor_are_refused() -> None:
    """They lie in its memory and not in the child's: six of 6 MB are more than 32 MiB."""
    told: list[bytes] = []

    async def script(wire: Wire) -> None:
        inv = await wire.invoked()
        for number in range(1, 7):
            await wire.raw(encode(Type.HOSTCALL, inv, 0, json.dumps([[number, "kv.set", "x" * 6_000_000]]).encode()))
        _, _, call, payload = await wire.until(Type.HOSTRES)
        told.append(b"%d %s" % (call, payload))
        await wire.raw(result(inv))

    async with engine_of(script) as (engine, _):
        host = Silence()
        assert (await run(engine, "", host=host)).outcome is Outcome.OK
        assert host.calls == 5
    assert told[0].startswith(b'6 \x00{"code":"too_large"')


async def test_a_second_result_ends_the_child_and_not_the_first_result() -> None:
    async with engine_of(answering(lambda inv: result(inv, b"1") + result(inv, b"2"))) as (engine, zygote):
        assert (await run(engine, "")).value == b"1"
        await until(lambda: zygote.workers[-1].exited.done())
        assert engine.report()["quarantined"] == 1


async def test_a_blank_child_that_speaks_is_ended() -> None:
    async def chatter(wire: Wire) -> None:
        await wire.raw(result(1))

    async with engine_of(chatter, spares=1) as (engine, zygote):
        await until(lambda: any(worker.exited.done() for worker in zygote.workers if not worker.probe))
        assert (await run(engine, "")).outcome is Outcome.OK


async def test_result_instead_of_ready() -> None:
    async def eager(wire: Wire) -> None:
        await wire.until(Type.BIND)
        await wire.raw(result(0))

    async with engine_of(eager) as (engine, _):
        assert (await run(engine, "")).outcome is Outcome.CRASHED


async def silent(wire: Wire) -> None:
    await wire.invoked()


async def silent_from_the_start(wire: Wire) -> None:
    await wire.until(Type.BIND)


@pytest.mark.parametrize("script", [silent, silent_from_the_start])
async def test_silence_ends_at_the_wall_clock(script: Script) -> None:
    async with engine_of(script) as (engine, zygote):
        outcome = await run(engine, "", limits=replace(LIMITS, wall_ms=50))
        assert outcome.outcome is Outcome.WALL_LIMIT
        assert outcome.limit is not None
        assert outcome.limit.used >= 50
        assert zygote.workers[-1].exited.done()


async def test_a_child_that_hangs_up_and_lives_is_killed() -> None:
    async def hang_up(wire: Wire) -> None:
        await wire.invoked()
        wire.hang_up()

    async with engine_of(hang_up) as (engine, zygote):
        assert (await run(engine, "")).outcome is Outcome.CRASHED
        assert zygote.workers[-1].exited.done()


async def test_answers_nobody_reads_count_against_the_memory_limit() -> None:
    async def deaf(wire: Wire) -> None:
        await wire.raw(calls(await wire.invoked(), *range(40)))

    async with engine_of(deaf) as (engine, _):
        host = Scripted(lambda op, args: "x" * MIB)
        result_ = await run(engine, "", host=host, limits=replace(LIMITS, memory_bytes=16 * MIB))
        assert result_.outcome is Outcome.MEMORY_LIMIT


async def test_a_cancelled_child_that_ignores_it_is_killed() -> None:
    async with engine_of(answering(lambda inv: calls(inv, 1))) as (engine, zygote):
        host = Silence()
        running = asyncio.create_task(run(engine, "", host=host))
        await host.asked.wait()
        running.cancel()
        with pytest.raises(asyncio.CancelledError):
            await running
        assert zygote.workers[-1].exited.done()
        assert host.cancelled == 1


async def test_an_answer_after_the_verdict_keeps_the_child_but_not_the_answer() -> None:
    async def late(wire: Wire) -> None:
        inv = await wire.invoked()
        await wire.raw(calls(inv, 1))
        await wire.until(Type.CANCEL)
        await wire.raw(result(inv, b'"late"'))

    async with engine_of(late) as (engine, zygote):
        result_ = await run(engine, "", limits=replace(LIMITS, wall_ms=50))
        assert result_.outcome is Outcome.WALL_LIMIT
        assert result_.value == b"null"
        assert list(children_of(engine).values()) == ["idle"]
        assert not zygote.workers[-1].exited.done()


async def test_user_text_is_cut_and_made_well_formed() -> None:
    def long(inv: int) -> bytes:
        told = {"name": "N" * 999, "message": "m\ud800" * 99_999, "stack": "s" * 99_999, "code": "c" * 999}
        return error(inv, "exception", error=told, logs=[["info", "\udfff", 1]])

    async with engine_of(answering(long)) as (engine, _):
        told = (await run(engine, "")).error
        assert told is not None
        assert (len(told.name), len(told.message), len(told.stack), len(told.code or "")) == (100, 8192, 16384, 100)
        told.message.encode()


async def test_logs_past_the_limit_are_dropped_whatever_the_child_says() -> None:
    lines = [["info", "x" * 1000, 1]] * 100
    async with engine_of(answering(lambda inv: result(inv, logs=lines))) as (engine, _):
        flood = await run(engine, "")
        assert flood.logs_truncated
        assert len(flood.logs) == 65


async def test_a_value_json_allows_and_utf8_does_not_is_no_forgery() -> None:
    async with engine_of(answering(lambda inv: result(inv, b'"\\ud800"'))) as (engine, _):
        assert (await run(engine, "")).value == b'"\\ud800"'


async def test_times_a_child_claims_cannot_exceed_what_we_saw() -> None:
    async with engine_of(answering(lambda inv: result(inv, wall_us=10**12, cpu_us=10**12))) as (engine, _):
        told = (await run(engine, "")).metrics
        assert told.wall_ms < 5_000
        assert 0 < told.cpu_ms < 5_000 * CORES


async def stopped(engine: Supervisor, outcome: Outcome) -> None:
    """One run that ends so while it waits for the host, or by what the child says."""
    if outcome is Outcome.CANCELLED:
        host = Silence()
        running = asyncio.create_task(run(engine, "", host=host))
        await host.asked.wait()
        running.cancel()
        with pytest.raises(asyncio.CancelledError):
            await running
    else:
        limits = replace(LIMITS, wall_ms=50) if outcome is Outcome.WALL_LIMIT else LIMITS
        assert (await run(engine, "", limits=limits)).outcome is outcome


def stopping(outcome: Outcome) -> Script:
    async def script(wire: Wire) -> None:
        inv = await wire.invoked()
        if outcome in (Outcome.CANCELLED, Outcome.WALL_LIMIT):
            await wire.raw(calls(inv, 1))
            await wire.until(Type.CANCEL)
            await wire.raw(error(inv, "cancelled"))
        else:
            await wire.raw(error(inv, outcome))
        inv = (await wire.until(Type.INVOKE))[1]
        await wire.raw(result(inv, b'"the same child"'))

    return script


STOPPED = [Outcome.CANCELLED, Outcome.WALL_LIMIT, Outcome.CPU_LIMIT, Outcome.MEMORY_LIMIT]


@pytest.mark.parametrize("outcome", STOPPED)
async def test_a_realm_that_was_stopped_in_the_middle_is_not_run_again(outcome: Outcome) -> None:
    async with engine_of(stopping(outcome), kind=Kind(renews_itself=False)) as (engine, _):
        await stopped(engine, outcome)
        assert (await run(engine, "")).value == b"1"


@pytest.mark.parametrize("outcome", STOPPED[:3])
async def test_a_child_that_makes_itself_a_new_realm_goes_on(outcome: Outcome) -> None:
    async with engine_of(stopping(outcome)) as (engine, _):
        await stopped(engine, outcome)
        assert (await run(engine, "")).value == b'"the same child"'


async def test_a_zygote_that_cannot_fork_sheds_load_and_keeps_what_is_warm() -> None:
    async with engine_of() as (engine, zygote):
        engine._pool.queue.queue_ms = 30
        assert (await run(engine, "")).outcome is Outcome.OK
        zygote.failing = True
        refused: Result = await run(engine, program("", project="q"))
        assert refused.outcome is Outcome.OVERLOADED
        assert (await run(engine, "")).outcome is Outcome.OK


async def test_a_zygote_that_does_not_answer_is_ended(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(supervisor, "SPAWN_TIMEOUT_S", 0.02)
    async with engine_of() as (engine, zygote):
        engine._pool.queue.queue_ms = 60
        zygote.stuck = True
        assert (await run(engine, "")).outcome is Outcome.OVERLOADED
        zygote.stuck = False
        await until(lambda: zygote.closed)
        engine._pool.queue.queue_ms = 5_000
        assert (await run(engine, "")).outcome is Outcome.OK


async def test_a_jail_that_leaks_is_not_served_from() -> None:
    zygote = FakeZygote()
    zygote.leaks = True
    with pytest.raises(JailLeaks, match="open_file: escaped"):
        await QuickJS(launch=cast(Any, zygote.launch)).start()
    assert zygote.closed


async def test_unless_told_so(caplog: pytest.LogCaptureFixture) -> None:
    zygote = FakeZygote()
    zygote.leaks = True
    engine = QuickJS(launch=cast(Any, zygote.launch), unsafe=True)
    await engine.start()
    assert "The jail does not hold: open_file: escaped" in caplog.text
    await engine.close()


async def test_what_does_not_fit_a_frame_is_refused_before_it_starts() -> None:
    async with engine_of() as (engine, _):
        with pytest.raises(ValueError, match="input and context"):
            await run(engine, "", "x" * MAX_PAYLOAD_BYTES)
        with pytest.raises(ValueError, match="the code"):
            await engine.check(program(" " * MAX_PAYLOAD_BYTES), LIMITS)
        assert repr(engine) == "<QuickJS <pool empty> restarts=0>"
