"""The sandbox alone: no database, no wire. Cold starts, warm throughput on one core and on all, memory of a child."""

import asyncio
import contextlib
import os
import time
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

from engines.contract import Invocation, Limits, Outcome, Program
from engines.quickjs.engine import QuickJS
from tests.bench.rows import Row, percentile

TITLE = "Sandbox (QuickJS in the jail)"
LIMITS = Limits(wall_ms=5_000, cpu_ms=5_000, memory_bytes=64 << 20, fetch_calls=5)
INVOCATION = Invocation(id="bench", input=b'{"a":1}', context=b'{"invocation_id":"bench"}')
COLD_STARTS = 200
WINDOWS = 10
WINDOW_S = 0.2
SETTLE_S = 0.005


class NoHost:
    async def call(self, op: str, args: bytes) -> bytes:
        raise AssertionError(op)


def program(name: str, code: str = "export default (input) => input") -> Program:
    return Program(project_id="bench", function_id=name, version=1, code=code.encode())


async def measure() -> list[Row]:
    """About 10 s."""
    forked = await cold_starts(spares=0)
    spare = await cold_starts(spares=4)
    with one_core():
        pinned = await invocations_a_second("export default (input) => input")
        pinned_async = await invocations_a_second("export default async (input) => input")
    loose = await invocations_a_second("export default (input) => input")
    rss_mib, pss_mib = await memory_mib()
    return [
        Row("cold start by fork, p50", percentile(forked, 50), "ms", "< 5"),
        Row("cold start by fork, p99", percentile(forked, 99), "ms", "< 10"),
        Row("cold start from a spare, p50", percentile(spare, 50), "ms", "< 1.5"),
        Row("cold start from a spare, p99", percentile(spare, 99), "ms"),
        Row("warm invocations, all on one core", pinned, "1/s", "≥ 15000"),
        Row("warm invocations, async function, one core", pinned_async, "1/s"),
        Row("warm invocations, not pinned", loose, "1/s"),
        Row("resident memory of an idle child", rss_mib, "MiB"),
        Row("its share of it (PSS)", pss_mib, "MiB"),
    ]


@contextlib.asynccontextmanager
async def running(spares: int) -> AsyncIterator[QuickJS]:
    engine = QuickJS(spares=spares, max_children=300, max_children_per_project=250, queue_ms=5_000)
    await engine.start()
    try:
        yield engine
    finally:
        await engine.close()


async def cold_starts(spares: int) -> list[float]:
    """Milliseconds from the call to the result, each for a function never run before."""
    times_ms = []
    async with running(spares) as engine:
        for i in range(COLD_STARTS):
            await blanks(engine, spares)
            started = time.perf_counter()
            result = await engine.invoke(program(f"cold{i}"), INVOCATION, LIMITS, NoHost())
            times_ms.append((time.perf_counter() - started) * 1000)
            assert result.outcome is Outcome.OK, result
            engine.retire("bench", f"cold{i}")
    return times_ms


async def blanks(engine: QuickJS, count: int) -> None:
    """Wait until the spares are there again and had time to enter their jail, as they have outside of a benchmark."""
    while True:
        states = engine.report()["children"]
        assert isinstance(states, dict)
        quiet = not states["forking"] and not states["killed"]
        await asyncio.sleep(SETTLE_S)
        if quiet and states["blank"] >= count:
            return


async def invocations_a_second(code: str) -> float:
    """One caller, one child, one after the other; the best of some short windows, because neighbours disturb."""
    async with running(spares=0) as engine:
        what, host, best = program("warm", code), NoHost(), 0.0
        await engine.invoke(what, INVOCATION, LIMITS, host)
        for _ in range(WINDOWS):
            count, started = 0, time.perf_counter()
            while (elapsed_s := time.perf_counter() - started) < WINDOW_S:
                for _ in range(50):
                    await engine.invoke(what, INVOCATION, LIMITS, host)
                count += 50
            best = max(best, count / elapsed_s)
        return best


async def memory_mib(children: int = 20) -> tuple[float | None, float | None]:
    """RSS and PSS per idle child, of many. None where we may not look."""
    async with running(spares=0) as engine:
        for i in range(children):
            await engine.invoke(program(f"idle{i}"), INVOCATION, LIMITS, NoHost())
        rss_kib, pss_kib = (total_kib(engine.pids(), name) for name in ("Rss", "Pss"))
    return rss_kib and rss_kib / 1024 / children, pss_kib and pss_kib / 1024 / children


def total_kib(pids: list[int], name: str) -> int | None:
    total = 0
    for pid in pids:
        try:
            text = Path(f"/proc/{pid}/smaps_rollup").read_text()
        except OSError:
            return None
        total += sum(int(line.split()[1]) for line in text.splitlines() if line.startswith(f"{name}:"))
    return total


@contextlib.contextmanager
def one_core() -> Iterator[None]:
    """This process, and what it starts meanwhile, on one core."""
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {max(before)})
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)
