"""The fault table: everything that can go wrong in, under and around a sandbox, with real processes.

After each, the next invocation of the same function and of a neighbour works at once.
"""

import asyncio
import json
import os
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from engines.contract import LimitHit, Outcome
from engines.quickjs.engine import QuickJS
from engines.zygote import SpawnFailed, Worker, Zygote
from tests.fix_sandbox import LIMITS, MIB, Silence, children_of, is_alive, program, run, until

TIGHT = replace(LIMITS, wall_ms=10_000, cpu_ms=150, memory_bytes=16 * MIB)
SWITCH = "export default async (input, ctx) => { if (input === 'well') return 'well'; %s }"
NEIGHBOUR = program("return 'well'", project="neighbour")


async def neighbours_are_well(engine: QuickJS) -> None:
    assert json.loads((await run(engine, NEIGHBOUR)).value) == "well"


@pytest.mark.parametrize(
    ("code", "outcomes"),
    [
        pytest.param("throw new RangeError('x')", {Outcome.EXCEPTION}, id="throw"),
        pytest.param("throw null", {Outcome.EXCEPTION}, id="throw null"),
        pytest.param("const f = () => f(); f()", {Outcome.EXCEPTION}, id="recursion"),
        pytest.param(
            "const f = () => { try { f() } finally { f() } }; f()",
            {Outcome.CPU_LIMIT, Outcome.EXCEPTION},
            id="recursion again and again",
        ),
        pytest.param("const a = []; for (;;) a.push(new Array(1000).fill(1))", {Outcome.MEMORY_LIMIT}, id="arrays"),
        pytest.param(
            "const a = []; for (;;) a.push(new Uint8Array(1e6).fill(1))", {Outcome.MEMORY_LIMIT}, id="buffers"
        ),
        pytest.param("let s = 'x'; for (;;) s += s", {Outcome.MEMORY_LIMIT, Outcome.EXCEPTION}, id="huge string"),
        pytest.param("return 'x'.repeat(1e9)", {Outcome.MEMORY_LIMIT, Outcome.EXCEPTION}, id="huge repeat"),
        pytest.param(
            "let a = []; for (let i = 0; i < 1e5; i++) a = [a]; return a", {Outcome.EXCEPTION}, id="deep JSON"
        ),
        pytest.param(
            "let a = []; for (let i = 0; i < 1500; i++) a = [a]; return a", {Outcome.EXCEPTION}, id="rather deep JSON"
        ),
        pytest.param("return 'x'.repeat(6e6)", {Outcome.RESULT_LIMIT, Outcome.MEMORY_LIMIT}, id="large result"),
        pytest.param(
            "return new Array(1e6).fill('x'.repeat(100))",
            {Outcome.RESULT_LIMIT, Outcome.MEMORY_LIMIT, Outcome.CPU_LIMIT},
            id="100 MB result",
        ),
        pytest.param("for (;;);", {Outcome.CPU_LIMIT}, id="loop"),
        pytest.param("/^(a+)+$/.test('a'.repeat(40) + 'b')", {Outcome.CPU_LIMIT}, id="regex"),
        pytest.param(
            "for (;;) { try { const a = []; for (;;) a.push(new Array(1000).fill(1)) } catch {} }",
            {Outcome.CPU_LIMIT, Outcome.MEMORY_LIMIT},
            id="memory caught for ever",
        ),
        pytest.param("for (;;) await null", {Outcome.CPU_LIMIT}, id="microtasks"),
        pytest.param("await new Promise(() => {})", {Outcome.NEVER_SETTLES}, id="never settles"),
        pytest.param("await atlas.kv.get('x')", {Outcome.WALL_LIMIT}, id="waits for ever"),
        pytest.param(
            "for (let i = 0; i < 65; i++) atlas.kv.get('x'); await new Promise(() => {})",
            {Outcome.EXCEPTION, Outcome.WALL_LIMIT, Outcome.CRASHED},
            id="65 host calls",
        ),
    ],
)
async def test_what_a_function_can_do_to_itself(engine: QuickJS, code: str, outcomes: set[Outcome]) -> None:
    what = program(SWITCH % code)
    limits = replace(TIGHT, wall_ms=300) if Outcome.WALL_LIMIT in outcomes else TIGHT
    result = await run(engine, what, limits=limits)
    assert result.outcome in outcomes, result
    if result.outcome.endswith("_limit"):
        assert result.limit is not None
        assert result.limit.used >= result.limit.allowed * 0.9
    else:
        assert result.error is not None
    await neighbours_are_well(engine)
    again = await run(engine, what, "well", limits=TIGHT)
    assert (again.outcome, again.value) == (Outcome.OK, b'"well"')


async def test_a_log_flood_is_cut(engine: QuickJS) -> None:
    result = await run(engine, "for (let i = 0; i < 20000; i++) console.log('x'.repeat(100)); return 1")
    assert result.outcome is Outcome.OK
    assert result.logs_truncated
    assert 0 < sum(len(line.text) for line in result.logs) <= LIMITS.log_bytes


async def test_a_cpu_loop_is_killed_when_no_cpu_limit_acts_first(engine: QuickJS) -> None:
    result = await run(engine, "for (;;);", limits=replace(LIMITS, wall_ms=100, cpu_ms=60_000))
    assert result.outcome is Outcome.WALL_LIMIT
    assert isinstance(result.limit, LimitHit)
    assert result.limit.allowed == 100
    assert result.limit.used >= 100
    await neighbours_are_well(engine)


@pytest.mark.parametrize("name", ["SIGSEGV", "SIGABRT", "SIGKILL", "SIGBUS"])
async def test_a_crash_loses_one_invocation(engine: QuickJS, name: str) -> None:
    host, other = Silence(), Silence()
    doomed = asyncio.create_task(run(engine, "await atlas.kv.get('x')", host=host))
    await host.asked.wait()
    (pid,) = [pid for pid, state in children_of(engine).items() if state == "wait_host"]
    neighbour = asyncio.create_task(run(engine, program("await atlas.kv.get('x')", project="q"), host=other))
    await other.asked.wait()
    kill(engine, pid, name)
    result = await doomed
    assert result.outcome is Outcome.CRASHED
    assert result.error is not None
    assert name in result.error.message
    assert host.cancelled == 1
    assert not is_alive(pid)
    assert not neighbour.done()
    assert json.loads((await run(engine, "return 1")).value) == 1
    neighbour.cancel()
    await asyncio.gather(neighbour, return_exceptions=True)


async def test_a_forbidden_system_call_quarantines_that_version_only(engine: QuickJS) -> None:
    host = Silence()
    bad = program("await atlas.kv.get('x')", version=1)
    doomed = asyncio.create_task(run(engine, bad, host=host))
    await host.asked.wait()
    (pid,) = [pid for pid, state in children_of(engine).items() if state == "wait_host"]
    kill(engine, pid, "SIGSYS")
    assert (await doomed).outcome is Outcome.CRASHED
    again = await run(engine, bad)
    assert again.outcome is Outcome.CRASHED
    assert again.error is not None
    assert again.error.name == "Quarantined"
    assert engine.report()["quarantined"] == 1
    assert json.loads((await run(engine, program("return 2", version=2))).value) == 2
    await neighbours_are_well(engine)


async def test_an_idle_child_that_dies_is_replaced(engine: QuickJS) -> None:
    what = program("return 'well'")
    await run(engine, what)
    (pid,) = [pid for pid, state in children_of(engine).items() if state == "idle"]
    kill(engine, pid, "SIGSEGV")
    await until(lambda: pid not in children_of(engine))
    assert json.loads((await run(engine, what)).value) == "well"


async def test_the_zygote_dies_and_comes_back(engine: QuickJS) -> None:
    host = Silence()
    running = asyncio.create_task(run(engine, "await atlas.kv.get('x')", host=host))
    await host.asked.wait()
    old = set(children_of(engine))
    engine._keeper.zygote._process.kill()
    assert (await running).outcome is Outcome.CRASHED
    results = await asyncio.gather(*(run(engine, program("return 1", function=f"f{i}")) for i in range(4)))
    assert [result.outcome for result in results] == [Outcome.OK] * 4
    assert engine.report()["zygote_restarts"] == 1
    assert not any(map(is_alive, old))


async def test_the_caller_goes_away_while_the_function_waits(engine: QuickJS) -> None:
    host = Silence()
    what = program(SWITCH % "await atlas.kv.get('x')")
    running = asyncio.create_task(run(engine, what, host=host))
    await host.asked.wait()
    before = {pid for pid, state in children_of(engine).items() if state == "wait_host"}
    running.cancel()
    with pytest.raises(asyncio.CancelledError):
        await running
    assert host.cancelled == 1
    assert {pid for pid, state in children_of(engine).items() if state == "idle"} == before
    assert json.loads((await run(engine, what, "well")).value) == "well"


async def test_the_caller_goes_away_while_the_function_computes(engine: QuickJS) -> None:
    what = program(SWITCH % "for (;;);")
    running = asyncio.create_task(run(engine, what))
    await until(lambda: "running" in children_of(engine).values())
    (pid,) = [pid for pid, state in children_of(engine).items() if state == "running"]
    running.cancel()
    with pytest.raises(asyncio.CancelledError):
        await running
    assert not is_alive(pid)
    assert json.loads((await run(engine, what, "well")).value) == "well"


async def test_the_caller_goes_away_at_any_moment(engine: QuickJS) -> None:
    """Cancelled after 0, 1, 2, … turns of the loop: queued, bound, loading, running, answered."""
    for turns in range(40):
        what = program("return await atlas.kv.get('x')", function=f"f{turns % 3}")
        running = asyncio.create_task(run(engine, what))
        for _ in range(turns):
            await asyncio.sleep(0)
        running.cancel()
        running.cancel()
        with pytest.raises(asyncio.CancelledError):
            await running
        assert not {"running", "wait_host", "draining"} & set(children_of(engine).values())
    await neighbours_are_well(engine)


class Barren:
    """A zygote that refuses to fork while it is told to."""

    def __init__(self) -> None:
        self.barren = False

    async def launch(self, module: str, *, unsafe: bool = False) -> Zygote:
        zygote = await Zygote.launch(module, unsafe=unsafe)
        fork = zygote.spawn

        async def spawn(*args: object, **named: object) -> Worker:
            if self.barren:
                args[0].close()  # type: ignore[attr-defined]
                raise SpawnFailed("Resource temporarily unavailable")
            return await fork(*args, **named)  # type: ignore[arg-type]

        zygote.spawn = spawn  # type: ignore[method-assign]
        return zygote


async def test_forks_fail_for_a_while() -> None:
    door = Barren()
    engine = QuickJS(spares=0, max_children=4, max_children_per_project=4, queue_ms=500, launch=door.launch)
    await engine.start()
    try:
        await neighbours_are_well(engine)
        door.barren = True
        result = await run(engine, "return 1")
        assert result.outcome is Outcome.OVERLOADED
        await neighbours_are_well(engine)
        door.barren = False
        assert json.loads((await run(engine, "return 1", limits=LIMITS)).value) == 1
    finally:
        await engine.close()


CHECKOUT = Path(__file__).parents[2]
SUPERVISOR = """
import asyncio, json
from tests.fix_sandbox import LIMITS, Silence, program, run, children_of
from engines.quickjs.engine import QuickJS

async def main():
    engine = QuickJS(spares=2, max_children=8, max_children_per_project=8, queue_ms=1000)
    await engine.start()
    host = Silence()
    spinning = asyncio.create_task(run(engine, program("for (;;);", function="spins")))
    waiting = asyncio.create_task(run(engine, program("await atlas.kv.get('x')"), host=host))
    await host.asked.wait()
    while list(children_of(engine).values()).count("running") < 1:
        await asyncio.sleep(0.005)
    print(json.dumps([engine._keeper.zygote._process.pid, *children_of(engine)]), flush=True)
    await asyncio.Event().wait()

asyncio.run(main())
"""


async def test_the_supervisor_is_killed_and_nothing_of_it_is_left() -> None:
    supervisor = await asyncio.create_subprocess_exec(
        sys.executable, "-c", SUPERVISOR, stdout=subprocess.PIPE, cwd=CHECKOUT
    )
    assert supervisor.stdout is not None
    try:
        async with asyncio.timeout(20):
            pids = json.loads(await supervisor.stdout.readline())
        assert len(pids) >= 3
        assert all(map(is_alive, pids))
    finally:
        supervisor.kill()
        await supervisor.wait()
    await until(lambda: not any(map(is_alive, pids)), timeout_s=5)


def kill(engine: QuickJS, pid: int, name: str) -> None:
    assert pid in children_of(engine)
    os.kill(pid, signal.Signals[name])
