"""Wasm engines with real sandboxes, and modules for them that no JavaScript was compiled to."""

import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest_asyncio
import wasmtime

from engines.contract import BodyKind, Host, Invocation, Limits, Program, Result
from engines.wasm import javy
from engines.wasm.engine import Wasm
from engines.wasm.wasi import SIGNATURES
from tests.fix_sandbox import MIB, Silence, is_alive, open_descriptors
from tests.fix_wasm import CACHE_DIR

SECRET = b"a secret of the tests, 32 bytes."
REAL_JAVY = javy.find("")
LIMITS = Limits(wall_ms=5_000, cpu_ms=5_000, memory_bytes=16 * MIB, fetch_calls=0, fuel=1_000_000_000)


def wasm_engine(*, cache_dir: Path = CACHE_DIR, **options: Any) -> Wasm:
    """One that waits for its image as long as building one takes."""
    return Wasm(cache_dir=cache_dir, secret=SECRET, patience_s=600, **options)


def command(body: str, *, imports: tuple[str, ...] = ("fd_read", "fd_write"), memory: str = "1") -> bytes:
    """A WASI command: `body` is the text of `_start` and of more functions after it."""
    declared = []
    for name in imports:
        kinds = " ".join("i64" if kind == "I" else "i32" for kind in SIGNATURES[name])
        result = "" if name == "proc_exit" else "(result i32)"
        head = f'(import "wasi_snapshot_preview1" "{name}" (func ${name} (param {kinds}) {result}))'
        declared.append(head.replace("(param )", ""))
    text = f'(module {" ".join(declared)} (memory (export "memory") {memory}) (func (export "_start") {body}))'
    return bytes(wasmtime.wat2wasm(text))


def said(text: str, *, fd: int = 1) -> str:
    """The text of code that writes a constant, which lies in memory at 1024."""
    return f"""
        (i32.store (i32.const 0) (i32.const 1024)) (i32.store (i32.const 4) (i32.const {len(text.encode())}))
        (drop (call $fd_write (i32.const {fd}) (i32.const 0) (i32.const 1) (i32.const 8))) (return))
        (data (i32.const 1024) {json.dumps(text, ensure_ascii=False)}) (func"""


ECHO = """
    (i32.store (i32.const 0) (i32.const 64)) (i32.store (i32.const 4) (i32.const 60000))
    (drop (call $fd_read (i32.const 0) (i32.const 0) (i32.const 1) (i32.const 8)))
    (i32.store (i32.const 4) (i32.load (i32.const 8)))
    (drop (call $fd_write (i32.const 1) (i32.const 0) (i32.const 1) (i32.const 8)))"""
"""Writes what it reads, up to 60,000 bytes."""


class Bench:
    """An engine, and functions for it by number."""

    def __init__(self, engine: Wasm) -> None:
        self.engine = engine
        self._made = 0

    async def script(self, source: str, **options: Any) -> Program:
        """A function of JavaScript source, or of the body of one."""
        if "export default" not in source:
            source = f"export default async function (input, ctx) {{ {source} }}"
        built = await self.engine.build(source, "javascript", filename="main.js")
        return self.program(built.code, script=built.script, **options)

    def program(self, code: bytes, *, script: bytes = b"", project: str = "p") -> Program:
        self._made += 1
        return Program(project_id=project, function_id=f"f{self._made}", version=1, code=code, script=script)

    async def run(
        self,
        what: str | bytes | Program,
        value: object = None,
        *,
        raw: bytes | None = None,
        kind: BodyKind = "json",
        limits: Limits = LIMITS,
        context: bytes = b"{}",
        host: Host | None = None,
    ) -> Result:
        """Invoke a program, a script, or a module."""
        if isinstance(what, str):
            what = await self.script(what)
        elif isinstance(what, bytes):
            what = self.program(what)
        data = json.dumps(value).encode() if raw is None else raw
        invocation = Invocation(id="i", input=data, input_kind=kind, context=context)
        return await self.engine.invoke(what, invocation, limits, host or Silence())


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def bench(wasm_image: object) -> AsyncIterator[Bench]:
    """Small caps; whatever the tests of a module do, nothing is left behind."""
    descriptors = open_descriptors()
    engine = wasm_engine(max_children=8, max_children_per_project=6)
    await engine.start()
    try:
        yield Bench(engine)
    finally:
        pids = engine.pids()
        await engine.close()
    assert not any(map(is_alive, pids))
    assert open_descriptors() <= descriptors


def pytest_report_header() -> str:
    """Says how much of Javy the tests have seen."""
    none = "none here: its command line and envelope are tested by a stand-in, and the battery runs on four runtimes"
    return f"javy: {f'{REAL_JAVY}, on which the battery runs as well' if REAL_JAVY else none}"
