"""Compilations take turns, and what is not ready or takes no modules says so."""

import asyncio

import pytest

from engines.contract import Limits
from engines.runtimes import Runtime
from server.errors import InvalidArgument, Unavailable, Unimplemented
from server.functions.compiling import CONCURRENCY, NOT_READY_RETRY_MS, Compiler
from server.functions.fields import Source
from tests.fix_functions import WASM, FakeCompiler, FakeEngine, FakeWasmCompiler, accept

LIMITS = Limits(wall_ms=1000, cpu_ms=1000, memory_bytes=16 * 2**20, fetch_calls=0)


def source(text: str) -> Source:
    return Source(data=text.encode(), language="javascript", filename="f.js", field="source")


def module(data: bytes) -> Source:
    return Source(data=data, language="wasm", filename="f.wasm", field="module")


async def test_compilations_are_bounded() -> None:
    fake = FakeCompiler()
    fake.gate.clear()
    compiler = Compiler({"quickjs": Runtime(engine=FakeEngine(), build=fake)})
    runs = [asyncio.create_task(compiler.compile("p", "quickjs", source("1"), LIMITS)) for _ in range(CONCURRENCY * 3)]
    for _ in range(50):
        await asyncio.sleep(0)
    assert fake.peak == CONCURRENCY
    fake.gate.set()
    assert len(await asyncio.gather(*runs)) == CONCURRENCY * 3
    assert fake.peak == CONCURRENCY


async def test_wasm_is_checked_with_its_script_as_the_tenants_own_program() -> None:
    engine = FakeEngine()
    built = await Compiler({"wasm": Runtime(engine=engine, build=FakeWasmCompiler())}).compile(
        "p", "wasm", source("1"), LIMITS
    )
    ((program, limits),) = engine.checked
    assert (program.code, program.script, limits) == (built.code, b"/* javascript f.js */ 1", LIMITS)
    assert (program.project_id, program.isolation) == ("p", "fresh")


async def test_an_engine_that_is_not_ready_is_asked_again_later() -> None:
    compiler = Compiler({"wasm": Runtime(engine=FakeEngine(), build=FakeWasmCompiler())})
    with pytest.raises(Unavailable, match=r"^Its engine is being built") as caught:
        await compiler.compile("p", "wasm", source("BUILDING"), LIMITS)
    assert (caught.value.reason, caught.value.retry_after_ms) == ("RUNTIME_NOT_READY", NOT_READY_RETRY_MS)


async def test_a_module_is_accepted_or_refused() -> None:
    compiler = Compiler({"wasm": Runtime(engine=FakeEngine(), build=FakeWasmCompiler(), accept=accept)})
    assert (await compiler.compile("p", "wasm", module(WASM), LIMITS)).code == WASM + b" accepted"
    with pytest.raises(InvalidArgument, match=r"The module was refused\. It does not begin") as caught:
        await compiler.compile("p", "wasm", module(b"no"), LIMITS)
    assert caught.value.field == "module"


async def test_without_accept_there_are_no_modules() -> None:
    compiler = Compiler({"wasm": Runtime(engine=FakeEngine(), build=FakeWasmCompiler())})
    with pytest.raises(Unimplemented, match="takes no modules on this server"):
        await compiler.compile("p", "wasm", module(WASM), LIMITS)


async def test_an_unknown_runtime_says_which_work() -> None:
    compiler = Compiler({"quickjs": Runtime(engine=FakeEngine(), build=FakeCompiler())})
    with pytest.raises(Unimplemented, match='"deno" does not work on this server; use quickjs') as caught:
        await compiler.compile("p", "deno", source("1"), LIMITS)
    assert caught.value.metadata["available"] == "quickjs"
