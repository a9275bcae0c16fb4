"""How a child's death, or its growth, is understood."""

import asyncio
import signal

import pytest

from engines import supervisor, weight
from engines.contract import Outcome
from engines.frames import Type
from tests.fix_fake_child import Death, Wire, engine_of, result
from tests.fix_sandbox import LIMITS, MIB, children_of, program, run, until

FULL = {"maxrss_bytes": LIMITS.memory_bytes + 10 * MIB}


@pytest.mark.parametrize(
    ("death", "outcome", "said"),
    [
        pytest.param(Death(-signal.SIGSEGV), Outcome.CRASHED, "SIGSEGV", id="crash"),
        pytest.param(Death(-signal.SIGKILL), Outcome.CRASHED, "SIGKILL", id="killed by somebody"),
        pytest.param(Death(0), Outcome.CRASHED, "status 0", id="left"),
        pytest.param(Death(70), Outcome.CRASHED, "status 70", id="broke"),
        pytest.param(Death(-signal.SIGKILL, **FULL), Outcome.MEMORY_LIMIT, "", id="killed for its memory"),
        pytest.param(Death(-signal.SIGABRT, **FULL), Outcome.MEMORY_LIMIT, "", id="aborted for want of memory"),
        pytest.param(Death(70, **FULL), Outcome.MEMORY_LIMIT, "", id="broke for want of memory"),
        pytest.param(Death(-signal.SIGSYS, **FULL), Outcome.CRASHED, "SIGSYS", id="attacked, and had memory"),
        pytest.param(Death(-signal.SIGXCPU, cpu_ms=9_000.0), Outcome.CPU_LIMIT, "", id="processor time"),
    ],
)
async def test_the_cause_of_a_death(death: Death, outcome: Outcome, said: str) -> None:
    async def dies(wire: Wire) -> None:
        await wire.invoked()
        raise death

    async with engine_of(dies) as (engine, _):
        ended = await run(engine, "")
        assert ended.outcome is outcome
        assert said in (ended.error.message if ended.error else "")
        assert ended.metrics.cpu_ms == death.exit.cpu_ms
        if ended.limit is not None:
            assert ended.limit.used > ended.limit.allowed
        assert engine.report()["crashes"] == 1
        assert (await run(engine, program("", project="neighbour"))).outcome is Outcome.OK


@pytest.mark.parametrize(
    ("resident_bytes", "quick", "outcome", "left"),
    [
        pytest.param(1024 * MIB, False, Outcome.MEMORY_LIMIT, [], id="far over the limit: killed in mid-run"),
        pytest.param(2 * LIMITS.memory_bytes, False, Outcome.OK, [], id="grown: not used again"),
        pytest.param(2 * LIMITS.memory_bytes, True, Outcome.OK, [], id="grown, seen when idle: ended"),
        pytest.param(10 * MIB, True, Outcome.OK, ["idle"], id="well"),
    ],
)
async def test_resident_memory_is_watched(
    monkeypatch: pytest.MonkeyPatch, resident_bytes: int, quick: bool, outcome: Outcome, left: list[str]
) -> None:
    seen = asyncio.Event()

    def look(pid: int) -> int:
        seen.set()
        return resident_bytes

    monkeypatch.setattr(supervisor, "TICK_S", 0.002)
    monkeypatch.setattr(supervisor, "TICKS_A_SWEEP", 1)
    monkeypatch.setattr(weight, "resident_bytes", look)

    async def waits(wire: Wire) -> None:
        inv = await wire.invoked()
        if not quick:
            await seen.wait()
        await wire.raw(result(inv))

    async with engine_of(waits) as (engine, _):
        ended = await run(engine, "")
        await seen.wait()
        assert ended.outcome is outcome
        if outcome is Outcome.MEMORY_LIMIT:
            assert ended.limit is not None
            assert ended.limit.limit == "memory"
        await until(lambda: list(children_of(engine).values()) == left)


async def test_a_child_killed_before_the_run_began_is_replaced_once() -> None:
    async def killed_at_birth(wire: Wire) -> None:
        await wire.until(Type.BIND)
        raise Death(-signal.SIGKILL)

    async with engine_of(killed_at_birth) as (engine, _):
        assert (await run(engine, "")).outcome is Outcome.OK
    async with engine_of(killed_at_birth, killed_at_birth) as (engine, _):
        assert (await run(engine, "")).outcome is Outcome.CRASHED


async def test_a_program_that_crashes_its_child_is_not_tried_again() -> None:
    async def crashes_at_birth(wire: Wire) -> None:
        await wire.until(Type.BIND)
        raise Death(-signal.SIGSEGV)

    async with engine_of(crashes_at_birth) as (engine, _):
        assert (await run(engine, "")).outcome is Outcome.CRASHED


async def test_closing_ends_a_run_that_is_still_loading() -> None:
    async def loads_for_ever(wire: Wire) -> None:
        await wire.until(Type.BIND)

    async with engine_of(loads_for_ever) as (engine, _):
        loading = asyncio.create_task(run(engine, ""))
        await until(lambda: "binding" in children_of(engine).values())
        await engine.close()
        assert (await loading).outcome is Outcome.CRASHED


async def test_the_caller_goes_away_between_two_tries() -> None:
    async def killed_at_birth(wire: Wire) -> None:
        await wire.until(Type.BIND)
        raise Death(-signal.SIGKILL)

    for turns in range(30):
        async with engine_of(killed_at_birth) as (engine, _):
            running = asyncio.create_task(run(engine, ""))
            for _ in range(turns):
                await asyncio.sleep(0)
            done = not running.cancel()
            (ended,) = await asyncio.gather(running, return_exceptions=True)
            assert done or isinstance(ended, asyncio.CancelledError)
            assert not {"binding", "running"} & set(children_of(engine).values())
