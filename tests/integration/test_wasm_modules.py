"""Modules made elsewhere: what is refused when they are deployed, and WASI commands that read, write and attack."""

import json
import time
from dataclasses import replace
from types import SimpleNamespace
from typing import cast

import pytest
import wasmtime

from engines.contract import Outcome
from engines.runtimes import ModuleRefused
from engines.wasm import binary, compiler
from engines.wasm.abi import Status
from engines.wasm.binary import SectionId
from engines.wasm.engine import MAX_MODULE_BYTES
from engines.wasm.wasi import BADF, BYTE_FUEL, CALL_FUEL, FAULT, INVAL, ITEM_FUEL, SIGNATURES, SPIPE
from tests.fix_sandbox import MIB
from tests.fix_wasm_engine import ECHO, LIMITS, Bench, command, said

pytestmark = pytest.mark.asyncio(loop_scope="module")


def wat(text: str) -> bytes:
    return bytes(wasmtime.wat2wasm(text))


START = '(func (export "_start"))'
MEMORY = '(memory (export "memory") 1)'
ALLOC = '(import "atlas_engine_v1" "atlas_alloc" (func (param i32) (result i32)))'


@pytest.mark.parametrize(
    ("module", "why"),
    [
        pytest.param(b"", "does not begin with its magic number", id="empty"),
        pytest.param(b"\x7fELF" + bytes(100), "does not begin with its magic number", id="another format"),
        pytest.param(b"\0asm\x0d\0\1\0", "does not begin with its magic number and version 1", id="component"),
        pytest.param(b"\0asm\1\0\0\0\x01\xff\xff", "no valid module", id="cut short"),
        pytest.param(b"\0asm\1\0\0\0" + bytes(MAX_MODULE_BYTES), "at most 2097152", id="too large"),
        pytest.param(wat(f'(module (import "env" "f" (func)) {MEMORY} {START})'), "imports env.f,", id="import"),
        pytest.param(
            wat(f'(module (import "wasi_snapshot_preview1" "exec" (func)) {MEMORY} {START})'),
            "imports wasi_snapshot_preview1.exec,",
            id="unknown function",
        ),
        pytest.param(wat(f"(module {START})"), "a memory called memory", id="no memory"),
        pytest.param(wat(f"(module {MEMORY})"), "a function called _start", id="no start"),
        pytest.param(wat(f'(module (memory (export "memory") 5000) {START})'), "5000 pages", id="large memory"),
        pytest.param(wat(f"(module (memory i64 1) {START})"), "no valid module", id="memory64"),
        pytest.param(wat(f"(module (memory 1 2 shared) {START})"), "no valid module", id="shared memory"),
        pytest.param(
            wat('(module (import "atlas_engine_v1" "exec" (func)) (func (export "atlas_init")))'),
            "imports atlas_engine_v1.exec,",
            id="unknown function of the engine",
        ),
        pytest.param(
            wat(f'(module {MEMORY} (func (export "_start") (param i32)))'), "_start that takes or", id="start of i32"
        ),
        *(
            pytest.param(
                wat(f"(module {ALLOC} (func $f {init}))"), "atlas_init that takes or", id=f"init: {init[24:40]}"
            )
            for init in (
                '(export "atlas_init")',
                '(export "atlas_init") (param i32) (result i32) (i32.const 8)',
                '(export "atlas_init") (result f64) (f64.const 8)',
                '(export "atlas_init") (result i32 i32) (i32.const 8) (i32.const 8)',
                '(export "atlas_init") (result funcref) (ref.func $f)',
            )
        ),
    ],
)
async def test_what_cannot_run_is_refused_and_why(bench: Bench, module: bytes, why: str) -> None:
    with pytest.raises(ModuleRefused) as caught:
        await bench.engine.accept(module)
    assert why in str(caught.value)


async def test_a_module_that_takes_for_ever_to_compile_costs_little(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Blocks in blocks take Cranelift a time that grows with their square."""
    monkeypatch.setattr(compiler, "MODULE", replace(compiler.MODULE, cpu_ms=300))
    deep = b"\0" + b"\x02\x40" * 400_000 + b"\x0b" * 400_001
    sections = (
        binary.section(SectionId.TYPE, b"\x01\x60\0\0"),
        binary.section(SectionId.FUNCTION, b"\x01\0"),
        binary.section(SectionId.MEMORY, b"\x01\0\x01"),
        binary.section(SectionId.EXPORT, binary.items([b"\x06memory\x02\0", b"\x06_start\0\0"])),
        binary.section(SectionId.CODE, binary.items([binary.vector(deep)])),
    )
    began_s = time.monotonic()
    with pytest.raises(ModuleRefused, match="it takes too long"):
        await bench.engine.accept(binary.PREAMBLE + b"".join(sections))
    assert time.monotonic() - began_s < compiler.MODULE.wall_ms / 1000


async def test_a_command_reads_its_input_and_writes_its_answer(bench: Bench) -> None:
    module = command(ECHO)
    assert (await bench.engine.accept(module)).code == module
    result = await bench.run(module, {"text": "ä", "n": [1, 2.5, None]})
    assert (result.outcome, json.loads(result.value)) == (Outcome.OK, {"text": "ä", "n": [1, 2.5, None]})
    fuel = 21 + 2 * (CALL_FUEL + ITEM_FUEL + len(result.value) * BYTE_FUEL)  # its own, and of one read and one write
    assert (result.metrics.fuel_consumed, result.metrics.memory_bytes) == (fuel, 65536)


async def test_what_it_says_on_stderr_is_its_log(bench: Bench) -> None:
    result = await bench.run(command(said('"one\\ntwo"', fd=2), imports=("fd_write",)))
    assert result.outcome is Outcome.EXCEPTION
    assert result.error is not None
    assert "stdout is no JSON text. It is empty" in result.error.message
    assert [line.text for line in result.logs] == ['"one\\ntwo"']


@pytest.mark.parametrize("text", ["hello", "[1,", "NaN", "1 2", "\ufeff1"])
async def test_an_answer_that_is_no_json_is_the_modules_fault(bench: Bench, text: str) -> None:
    result = await bench.run(command(said(text), imports=("fd_write",)))
    assert result.outcome is Outcome.EXCEPTION
    assert result.error is not None
    assert result.error.name == "OutputError"


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ("(call $proc_exit (i32.const 3))", "The module ended with exit code 3"),
        ("unreachable", "wasm `unreachable` instruction executed"),
        ("(drop (i32.load (i32.const -4)))", "out of bounds memory access"),
        ("(drop (i32.div_s (i32.const 1) (i32.const 0)))", "integer divide by zero"),
    ],
)
async def test_a_command_that_fails(bench: Bench, body: str, message: str) -> None:
    result = await bench.run(command(body, imports=("proc_exit",)))
    assert (result.outcome, result.error and result.error.message) == (Outcome.EXCEPTION, message)


@pytest.mark.parametrize(
    ("body", "memory", "outcome"),
    [
        ("(loop $l (br $l))", "1", Outcome.FUEL_LIMIT),
        ("(loop $l (br_if $l (i32.ge_s (memory.grow (i32.const 1)) (i32.const 0)))) unreachable", "1", "memory_limit"),
        ("call 0) (func $again call $again", "1", Outcome.OK),
        ("", "1000", Outcome.MEMORY_LIMIT),
        ("(loop $l (drop (call $fd_write (i32.const 1) (i32.const 8) (i32.const 1) (i32.const 0))) (br $l))", "16", ""),
    ],
)
async def test_commands_have_the_same_limits(bench: Bench, body: str, memory: str, outcome: str) -> None:
    if not outcome:  # a megabyte at a time
        body = f"(i32.store (i32.const 12) (i32.const 1000000)) {body}"
        result = await bench.run(command(body, imports=("fd_write",), memory=memory))
        assert result.outcome is Outcome.RESULT_LIMIT, result
        assert result.limit is not None
        assert result.limit.used > LIMITS.result_bytes
        return
    if "again" in body:
        result = await bench.run(wat(f'(module {MEMORY} (func $f (export "_start") call $f))'))
        assert result.outcome is Outcome.STACK_LIMIT, result
        return
    result = await bench.run(command(body, imports=(), memory=memory), limits=replace(LIMITS, fuel=100_000_000))
    assert result.outcome == outcome, result


HOSTILE = [
    ("fd_write", "(i32.const 1) (i32.const -8) (i32.const 1) (i32.const 0)", FAULT),
    ("fd_write", "(i32.const 1) (i32.const 65528) (i32.const 2) (i32.const 0)", FAULT),
    ("fd_write", "(i32.const 1) (i32.const 0) (i32.const -1) (i32.const 0)", INVAL),
    ("fd_write", "(i32.const 1) (i32.const 0) (i32.const 2147483647) (i32.const 0)", INVAL),
    ("fd_write", "(i32.const 1) (i32.const 512) (i32.const 1) (i32.const 0)", FAULT),  # its vector points far away
    ("fd_read", "(i32.const 0) (i32.const 512) (i32.const 1) (i32.const -1)", FAULT),
    ("fd_read", "(i32.const 3) (i32.const 0) (i32.const 1) (i32.const 0)", BADF),
    ("fd_write", "(i32.const 0) (i32.const 0) (i32.const 1) (i32.const 0)", BADF),
    ("fd_seek", "(i32.const 0) (i64.const -1) (i32.const 9) (i32.const -1)", SPIPE),
    ("clock_time_get", "(i32.const 0) (i64.const 0) (i32.const 65529)", FAULT),
    ("clock_time_get", "(i32.const 99) (i64.const 0) (i32.const 0)", INVAL),
    ("random_get", "(i32.const 65535) (i32.const 2)", FAULT),
    ("random_get", "(i32.const 0) (i32.const -1)", FAULT),
    ("args_sizes_get", "(i32.const 65533) (i32.const 0)", FAULT),
    ("environ_sizes_get", "(i32.const 0) (i32.const -1)", FAULT),
    ("poll_oneoff", "(i32.const -1) (i32.const 0) (i32.const 1) (i32.const 0)", FAULT),
    ("poll_oneoff", "(i32.const 0) (i32.const 0) (i32.const -1) (i32.const 0)", INVAL),
    ("poll_oneoff", "(i32.const 0) (i32.const 65520) (i32.const 1) (i32.const 0)", FAULT),
    ("fd_fdstat_get", "(i32.const 1) (i32.const 65535)", FAULT),
    ("fd_filestat_get", "(i32.const 1) (i32.const 65535)", FAULT),
    ("fd_prestat_get", "(i32.const 3) (i32.const -1)", BADF),
]


@pytest.mark.parametrize(("name", "arguments", "errno"), HOSTILE)
async def test_pointers_out_of_memory_are_an_error_of_the_call(
    bench: Bench, name: str, arguments: str, errno: int
) -> None:
    body = f"""(i32.store (i32.const 512) (i32.const -16)) (i32.store (i32.const 516) (i32.const 64))
        (call $proc_exit (call ${name} {arguments}))"""
    result = await bench.run(command(body, imports=(name, "proc_exit")))
    assert result.error is not None, result
    assert result.error.message == f"The module ended with exit code {errno}"


@pytest.mark.parametrize("name", [name for name in SIGNATURES if name not in ("proc_exit", "sched_yield")])
async def test_every_call_survives_the_worst_arguments(bench: Bench, name: str) -> None:
    worst = " ".join(f"({'i64' if kind == 'I' else 'i32'}.const -1)" for kind in SIGNATURES[name])
    body = f"(drop (call ${name} {worst})) {said('7')}"
    result = await bench.run(command(body, imports=(name, *({"fd_write"} - {name}))))
    assert result.value == b"7", result


async def test_time_moves_by_what_the_module_sleeps_and_by_nothing_else(bench: Bench) -> None:
    body = """(i32.store8 (i32.const 8) (i32.const 0)) (i32.store (i32.const 16) (i32.const 1))
        (i64.store (i32.const 24) (i64.const 60000000000))
        (drop (call $poll_oneoff (i32.const 0) (i32.const 64) (i32.const 1) (i32.const 128)))
        (drop (call $clock_time_get (i32.const 1) (i64.const 0) (i32.const 136)))
        (call $proc_exit (i32.wrap_i64 (i64.div_u (i64.load (i32.const 136)) (i64.const 1000000000))))"""
    result = await bench.run(command(body, imports=("poll_oneoff", "clock_time_get", "proc_exit")))
    assert result.error is not None
    assert result.error.message == "The module ended with exit code 60"
    assert result.metrics.wall_ms < 1_000


async def test_random_bytes_follow_from_module_input_and_project(bench: Bench) -> None:
    body = """(drop (call $random_get (i32.const 0) (i32.const 4)))
        (call $proc_exit (i32.and (i32.load (i32.const 0)) (i32.const 0x7fffffff)))"""
    module = command(body, imports=("random_get", "proc_exit"))
    first, second = bench.program(module), bench.program(module)
    ends = [(await bench.run(program, value)).error for program, value in ((first, 1), (second, 1), (first, 2))]
    ends.append((await bench.run(bench.program(module, project="another"), 1)).error)
    assert ends[0] == ends[1]
    assert len(set(ends)) == 3


async def test_raw_input_arrives_as_it_is(bench: Bench) -> None:
    result = await bench.run(command(ECHO), raw=b'["\xc3\xa4"]', kind="bytes", limits=replace(LIMITS, memory_bytes=MIB))
    assert result.value == b'["\xc3\xa4"]'


VECTORS = """(loop $v (i32.store (local.get 0) (i32.const 9000)) (i32.store offset=4 (local.get 0) (i32.const 50))
    (br_if $v (i32.lt_u (local.tee 0 (i32.add (local.get 0) (i32.const 8))) (i32.const 8192))))"""
"""1,024 vectors of 50 bytes each."""
BUSY = {
    "random bytes": ("random_get", "(call $random_get (i32.const 0) (i32.const 65536))"),
    "vectors": ("fd_write", "(call $fd_write (i32.const 2) (i32.const 0) (i32.const 1024) (i32.const 8200))"),
    "subscriptions": (
        "poll_oneoff",
        "(call $poll_oneoff (i32.const 0) (i32.const 16384) (i32.const 256) (i32.const 8))",
    ),
    "calls": ("sched_yield", "(call $sched_yield)"),
}


@pytest.mark.parametrize(("name", "call"), BUSY.values(), ids=BUSY)
async def test_what_the_host_does_for_a_module_costs_fuel(bench: Bench, name: str, call: str) -> None:
    limits = replace(LIMITS, fuel=20_000_000)
    results = []
    for loop in (f"(loop $l (drop {call}) (br $l))", f"(drop {call})", f"(drop {call})"):
        body = f"(local i32) {VECTORS if name == 'fd_write' else ''} {loop}"
        results.append(await bench.run(command(body, imports=(name,), memory="2"), limits=limits))
    endless, once, again = results
    assert (endless.outcome, endless.metrics.fuel_consumed) == (Outcome.FUEL_LIMIT, limits.fuel)
    assert endless.metrics.cpu_ms < 1_000
    assert once.metrics.fuel_consumed == again.metrics.fuel_consumed


def forged(status: Status, text: str, *, logs: str = "", body: str = "") -> bytes:
    """A module that links to the engine and, in the place of what that would say, says this."""
    stores, data, at = "", "", 2048
    for field, raw in enumerate(part.encode() for part in (text, logs, body)):
        for offset, value in ((4, at if raw else 0), (8, len(raw))):
            stores += f"(i32.store (i32.const {1024 + 8 * field + offset}) (i32.const {value}))"
        if raw:
            data += f'(data (i32.const {at}) "{"".join(f"{chr(92)}{byte:02x}" for byte in raw)}")'
        at += len(raw)
    link = '(import "atlas_engine_v1" "memory" (memory 1))'
    stores = f"(i32.store (i32.const 1024) (i32.const {status.value})) {stores}"
    return wat(f'(module {link} {data} (func (export "atlas_init") (result i32) {stores} (i32.const 1024)))')


ERROR = '{"name":"E","message":"m","stack":""}'
FORGERIES = {
    "logs": forged(Status.THREW, ERROR, logs='[],"truncated":false,"fuel":1,"memory_bytes":1'),
    "logs of another outcome": forged(Status.THREW, ERROR, logs='[],"truncated":false,"outcome":"ok","fuel":1'),
    "logs that are no JSON": forged(Status.THREW, ERROR, logs="[}"),
    "many logs": forged(Status.THREW, ERROR, logs=f'[{",".join(["[]"] * 5000)}],"truncated":false'),
    "long logs": forged(Status.THREW, ERROR, logs=f'[["log","{"x" * 1_100_000}",1]],"truncated":false'),
    "a log line": forged(Status.THREW, ERROR, logs='[["shout","x",1]],"truncated":false'),
    "a time": forged(Status.THREW, ERROR, logs='[["log","x",NaN]],"truncated":false'),
    "head": forged(Status.RESPONDED, '{"status":200,"headers":[],"fuel":1,"cpu_us":0}', body="t"),
    "headers": forged(Status.RESPONDED, '{"status":200,"headers":[["a","b\\r\\nc"]]}', body="t"),
    "status": forged(Status.RESPONDED, '{"status":99,"headers":[]}', body="t"),
    "body": forged(Status.RESPONDED, '{"status":200,"headers":[]}', body="b!"),
    "an error that is none": forged(Status.THREW, '{"name":1,"message":{},"stack":""}'),
    "a deep error": forged(Status.THREW, "[" * 100_000),
    "a length": forged(Status.TOO_LONG, "9" * 16),
    "another status": forged(cast(Status, SimpleNamespace(value=77)), ERROR),
}


@pytest.mark.parametrize("module", FORGERIES.values(), ids=FORGERIES)
async def test_a_guest_that_owns_its_engine_cannot_speak_for_the_host(
    bench: Bench, module: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    limits = replace(LIMITS, memory_bytes=4 * MIB)
    ended = await bench.run(module, limits=limits)
    fuel = ended.metrics.fuel_consumed
    assert fuel is not None
    assert fuel > 10_000
    assert ended.metrics.memory_bytes > 2 * MIB
    assert ended.outcome in (Outcome.EXCEPTION, Outcome.OK, Outcome.RESULT_LIMIT)
    assert "attacks" not in caplog.text
    assert "died" not in caplog.text
