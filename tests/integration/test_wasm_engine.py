"""The Wasm engine with real sandboxes: limits, determinism, and what becomes of a child."""

import asyncio
import json
import os
import signal
from dataclasses import replace

import pytest

from engines.build import CompileError, build
from engines.contract import LimitHit, Outcome
from engines.wasm.compiler import Refused
from engines.wasm.configuration import STACK_BYTES
from engines.wasm.diagnosis import compile_error
from tests.fix_sandbox import MIB, is_alive, until
from tests.fix_wasm_engine import LIMITS, Bench, wasm_engine

pytestmark = pytest.mark.asyncio(loop_scope="module")

HASH = """export default function (input) {
  let hash = 0;
  for (const char of input.text) hash = ((hash << 5) - hash + char.charCodeAt(0)) | 0;
  return { hash, length: input.text.length };
}"""


SPECIFIED = (
    'export default function(input) { return { hash: input.data.split("")'
    ".reduce((a,b) => ((a << 5) - a) + b.charCodeAt(0), 0) }; }"
)
LONG = "a much longer text that overflows"


async def test_fuel_is_one_number_over_a_thousand_runs_and_two_engines(bench: Bench) -> None:
    program = await bench.script(HASH)
    value = {"text": "the same text every time"}
    contexts = (json.dumps({"invocation_id": f"{number:032x}", "request": {}}).encode() for number in range(1000))
    fuel = {(await bench.run(program, value, context=context)).metrics.fuel_consumed for context in contexts}
    other = wasm_engine()
    try:
        fuel.add((await Bench(other).run(program, value)).metrics.fuel_consumed)
    finally:
        await other.close()
    assert len(fuel) == 1
    assert None not in fuel


@pytest.mark.parametrize(("data", "hash_"), [("", 0), ("hello", 99162322), (LONG, 11769323144)])
async def test_the_hash_calculator_of_the_specification(bench: Bench, data: str, hash_: int) -> None:
    result = await bench.run(SPECIFIED, {"data": data})
    assert json.loads(result.value) == {"hash": hash_}


async def test_the_result_and_what_it_took(bench: Bench) -> None:
    result = await bench.run(HASH, {"text": "hello world"})
    assert (result.outcome, json.loads(result.value)) == (Outcome.OK, {"hash": 1794106052, "length": 11})
    assert result.metrics.fuel_consumed is not None
    assert 0 < result.metrics.fuel_consumed < LIMITS.fuel
    assert MIB < result.metrics.memory_bytes <= LIMITS.memory_bytes
    assert 0 < result.metrics.wall_ms < LIMITS.wall_ms


@pytest.mark.parametrize(
    ("source", "limits", "limit"),
    [
        pytest.param("for (;;);", LIMITS, LimitHit(limit="fuel", used=1e9, allowed=1e9, unit="units"), id="fuel"),
        pytest.param(
            "return /(a+)+$/.test('a'.repeat(60) + 'b')",
            LIMITS,
            LimitHit(limit="fuel", used=1e9, allowed=1e9, unit="units"),
            id="regex",
        ),
        pytest.param(
            "const all = []; for (;;) all.push(new Uint8Array(100_000))",
            LIMITS,
            LimitHit(limit="memory", used=16 * MIB, allowed=16 * MIB, unit="bytes"),
            id="memory",
        ),
        pytest.param(
            "return JSON.parse('['.repeat(1_000_000))",
            LIMITS,
            LimitHit(limit="stack", used=STACK_BYTES, allowed=STACK_BYTES, unit="bytes"),
            id="stack",
        ),
    ],
)
async def test_running_out_is_told_by_what_ran_out(bench: Bench, source: str, limits: object, limit: LimitHit) -> None:
    program = await bench.script(f"if (input === 'fine') return input; {source}")
    assert (await bench.run(program, "fine")).value == b'"fine"'
    pids = set(bench.engine.pids())
    result = await bench.run(program)
    assert result.limit == limit, result
    assert result.metrics.fuel_consumed is not None
    assert (await bench.run(program, "fine")).outcome is Outcome.OK
    if limit.limit != "memory":
        assert pids <= set(bench.engine.pids())


@pytest.mark.parametrize(("wall_ms", "cpu_ms", "outcome"), [(200, 5_000, "wall_limit"), (5_000, 200, "cpu_limit")])
async def test_clocks_end_a_run_and_not_its_child(bench: Bench, wall_ms: int, cpu_ms: int, outcome: str) -> None:
    program = await bench.script("if (input === 'fine') return input; for (;;);")
    limits = replace(LIMITS, fuel=10**15, wall_ms=wall_ms, cpu_ms=cpu_ms)
    assert (await bench.run(program, "fine", limits=limits)).outcome is Outcome.OK
    result = await bench.run(program, limits=limits)
    assert result.outcome == outcome
    assert result.limit is not None
    assert result.limit.used >= result.limit.allowed == 200
    again = await bench.run(program, "fine", limits=limits)
    assert (again.outcome, again.metrics.boot_ms) == (Outcome.OK, 0)


async def test_recursion_is_an_exception_of_the_program(bench: Bench) -> None:
    result = await bench.run("const f = () => 1 + f(); try { f() } catch (e) { return e.name }")
    assert result.value == b'"RangeError"'


async def test_nothing_passes_from_one_call_to_the_next(bench: Bench) -> None:
    program = await bench.script("let n = 0; globalThis.m ??= 0; export default () => [++n, ++globalThis.m]")
    assert [(await bench.run(program)).value for _ in range(3)] == [b"[1,1]"] * 3


async def test_time_stands_still_and_chance_follows_from_the_input(bench: Bench) -> None:
    program = await bench.script(
        "const at = Date.now(); for (let i = 0; i < 1e5; i++); return [Date.now() - at, Math.random()]"
    )
    first, second, other = [json.loads((await bench.run(program, value)).value) for value in (1, 1, 2)]
    assert first == second
    assert first[0] == 0
    assert first[1] != other[1]


async def test_what_nobody_may_foretell_differs(bench: Bench) -> None:
    program = await bench.script("return crypto.randomUUID()")
    assert (await bench.run(program)).value != (await bench.run(program)).value


async def test_cancelling_ends_the_child(bench: Bench) -> None:
    program = await bench.script("for (;;);")
    before = set(bench.engine.pids())
    running = asyncio.ensure_future(bench.run(program, limits=replace(LIMITS, fuel=10**15)))
    await until(lambda: _children(bench)["running"] == 1)
    running.cancel()
    with pytest.raises(asyncio.CancelledError):
        await running
    assert not any(map(is_alive, set(bench.engine.pids()) - before - _live(bench)))
    assert _children(bench)["running"] == 0


async def test_a_killed_child_costs_one_call(bench: Bench) -> None:
    program = await bench.script("if (input === 'fine') return input; for (;;);")
    assert (await bench.run(program, "fine")).outcome is Outcome.OK
    before = set(bench.engine.pids())
    running = asyncio.ensure_future(bench.run(program, limits=replace(LIMITS, fuel=10**15)))
    await until(lambda: _children(bench)["running"] == 1)
    for pid in before:
        os.kill(pid, signal.SIGKILL)
    result = await running
    assert result.outcome is Outcome.CRASHED, result
    assert (await bench.run(program, "fine")).outcome is Outcome.OK


async def test_a_syntax_error_is_told_with_its_place(bench: Bench) -> None:
    with pytest.raises(CompileError) as caught:
        await bench.engine.build(
            "const x: number = 1;\n\nexport default () => { return 08n }", "typescript", filename="main.ts"
        )
    assert (caught.value.diagnostics[0].line, caught.value.diagnostics[0].column > 20) == (3, True)


async def test_what_only_quickjs_refuses_is_told(bench: Bench) -> None:
    with pytest.raises(CompileError, match="1:1: SyntaxError: invalid class range"):  # it names no place
        await bench.engine.build("export default () => /[b-a]/", "javascript", filename="main.js")


async def test_a_place_that_quickjs_names_is_one_of_the_source() -> None:
    source = "type T = number;\n\nexport default (): T => {\n  return 1;\n}"
    built = await build(source, "typescript", filename="main.ts")
    refused = Refused("expecting ';'", name="SyntaxError", stack="    at <input>:3:3\n")
    told = compile_error(refused, source, built.source_map).diagnostics[0]
    assert (told.line, told.message, told.line_text) == (4, "SyntaxError: expecting ';'", "  return 1;")


async def test_a_module_of_another_engine_build_is_made_anew_from_its_script(bench: Bench) -> None:
    program = await bench.script(HASH)
    stale = replace(program, code=_relinked(program.code), version=2)
    result = await bench.run(stale, {"text": "abc"})
    assert (result.outcome, json.loads(result.value)["hash"]) == (Outcome.OK, 96354)
    lost = await bench.run(replace(stale, script=b"", version=3), {"text": "abc"})
    assert lost.outcome is Outcome.LOAD_FAILED
    assert lost.error is not None
    assert "deploy it again" in lost.error.message


async def test_a_program_is_loaded_by_check_and_its_fault_told(bench: Bench) -> None:
    for source, outcome, message in (
        ("export default () => 1", Outcome.OK, ""),
        ("throw new Error('top'); export default () => 1", Outcome.LOAD_FAILED, "top"),
        ("export default 5", Outcome.LOAD_FAILED, "is not a function"),
        ("for (;;); export default () => 1", Outcome.FUEL_LIMIT, "Fuel limit of 1000000000"),
    ):
        result = await bench.engine.check(await bench.script(source), LIMITS)
        assert result.outcome is outcome, result
        assert message in (result.error.message if result.error else "")


def _relinked(module: bytes) -> bytes:
    """The module, said to be linked to an engine that is not there."""
    at = module.index(b"atlas") + len(b"atlas") + 1
    return module[:at] + bytes(32) + module[at + 32 :]


def _children(bench: Bench) -> dict[str, int]:
    counts = bench.engine.report()["children"]
    assert isinstance(counts, dict)
    return counts


def _live(bench: Bench) -> set[int]:
    return {pid for pid in bench.engine.pids() if is_alive(pid)}
