"""Every runtime, the sandbox alone: first and warm calls, Wasm above a call that does nothing, deploys to Wasm."""

import asyncio
import time
from collections.abc import Awaitable, Callable
from pathlib import Path

from engines.build import Built
from engines.contract import Invocation, Limits, Outcome, Program
from engines.runtimes import Runtime
from engines.wasm import image
from server.settings import Settings
from tests.bench.rows import Row, percentile
from tests.bench.sandbox import NoHost
from tests.fix_engines import RUNTIMES

TITLE = "Runtimes (the sandbox alone, in the jail)"
LIMITS = Limits(wall_ms=10_000, cpu_ms=10_000, memory_bytes=64 << 20, fetch_calls=5, fuel=10_000_000_000)
INVOCATION = Invocation(id="bench", input=b'{"a":1}', context=b'{"invocation_id":"bench"}')
NOOP = "export default (input) => input"
WARM_CALLS = 1_000
DEPLOYS = 10
SOURCE_BYTES = 50 * 1024


async def measure() -> list[Row]:
    """About 15 s, when the Wasm engine is built."""
    await image.ensure(Settings().engine_cache_dir.absolute())
    rows, quickjs_ms = [], 0.0
    for name, make in RUNTIMES.items():
        runtime = make(Path())
        await runtime.engine.start()
        try:
            first_ms, calls_ms = await calls(runtime)
            warm_ms = percentile(calls_ms, 50)
            if name == "quickjs":
                quickjs_ms = warm_ms
            rows.append(Row(f"{name}: first call of a fresh engine", first_ms, "ms"))
            rows.append(Row(f"{name}: warm call, p50", warm_ms, "ms", baseline=quickjs_ms))
            rows.append(Row(f"{name}: warm call, p99", percentile(calls_ms, 99), "ms"))
            if name == "wasm":
                rows.append(Row("wasm: new instance, above QuickJS's no-op", warm_ms - quickjs_ms, "ms", "< 1"))
                rows += await deploys(runtime)
            elif name != "quickjs":
                rows.append(Row(f"{name}: warm call, of QuickJS's", warm_ms / quickjs_ms, "×", "< 2"))
        finally:
            await runtime.engine.close()
    return rows


async def calls(runtime: Runtime) -> tuple[float, list[float]]:
    """Milliseconds of the very first call, engine start included, and of warm ones."""
    program = as_program(await runtime.build(NOOP, "javascript", filename="noop.js"))
    first_ms = await timed_ms(lambda: invoke(runtime, program))
    for _ in range(WARM_CALLS // 10):
        await invoke(runtime, program)
    return first_ms, [await timed_ms(lambda: invoke(runtime, program)) for _ in range(WARM_CALLS)]


async def deploys(runtime: Runtime) -> list[Row]:
    """From 50 KB of source to a module that was loaded once, each with a source of its own."""
    line = "export const f{n} = (value) => {{ const all = [value, {n}].map((x) => x * {n}); return all.length }};\n"

    async def deploy(number: int) -> None:
        text, n = NOOP + ";\n", 0
        while len(text) < SOURCE_BYTES:
            text += line.format(n=number * 10_000 + n)
            n += 1
        built = await runtime.build(text, "javascript", filename="large.js")
        loaded = await runtime.engine.check(as_program(built), LIMITS)
        assert loaded.outcome is Outcome.OK, loaded

    times_ms = [await timed_ms(lambda number=number: deploy(number)) for number in range(DEPLOYS)]  # type: ignore[misc]
    return [Row("wasm: deploy of 50 KB of source, worst", max(times_ms), "ms", "< 2000")]


def as_program(built: Built) -> Program:
    return Program(project_id="bench", function_id="f", version=1, code=built.code, script=built.script)


async def invoke(runtime: Runtime, program: Program) -> None:
    result = await runtime.engine.invoke(program, INVOCATION, LIMITS, NoHost())
    assert result.outcome is Outcome.OK, result


async def timed_ms(work: Callable[[], Awaitable[None]]) -> float:
    await asyncio.sleep(0)
    began_s = time.perf_counter()
    await work()
    return (time.perf_counter() - began_s) * 1000
