"""The program inside a compiler's sandbox: one job, hostile from its first byte, and the process is thrown away.

The code in a BIND is `u32 n, JSON[n] {"job"}` and what it is about; the INVOKE that follows answers a Response whose
body is the product:

    "bytecode"   a script, UTF-8         → QuickJS bytecode, made by the engine image itself, metered as any run
    "module"     a WebAssembly module    → native code as Wasmtime serializes it, header `form`: linked | command
    "image"      the engine image        → the same; nothing is asked of what it exports

What is wrong with the author's module or script is a load_failed with a message for the author.
"""

import json
import resource
from collections.abc import Collection
from typing import TypeVar

from wasmtime import Engine, FuncType, MemoryType, Module, WasmtimeError
from wasmtime._types import AsExternType

from engines.frames import LENGTH, Type
from engines.quickjs.wire import Wire
from engines.wasm import abi, child, profile, wasi
from engines.wasm.artifact import INIT
from engines.wasm.child import split
from engines.wasm.linked import compile_source
from engines.wasm.machine import make_engine
from engines.wasm.meter import Failure, Meter

PROFILE = profile.LOADING
BYTECODE_FUEL = 10_000_000_000
BYTECODE_MEMORY_BYTES = 256 * 1024 * 1024
MAX_MEMORY_PAGES = 4096

Kind = TypeVar("Kind", FuncType, MemoryType)

_engine: Engine
_image: Module | None = None


def preload(argument: str = "") -> None:
    """As that of engines.wasm.child; without an argument there is no image, and only modules can be compiled."""
    global _engine, _image
    _engine = make_engine()
    if argument:
        _image = child.read_image(_engine, argument)


def serve(fd: int) -> None:
    """Do one job for the supervisor on `fd`."""
    wire = Wire(fd)
    try:
        _serve(wire)
    except (EOFError, OSError):
        return


def _serve(wire: Wire) -> None:
    job, source, memory_bytes = "", b"", 0
    while True:
        kind, inv, _, payload = wire.receive()
        if kind is Type.BIND:
            head, code = split(payload)
            told, source = split(code)
            job, memory_bytes = json.loads(told)["job"], int(json.loads(head)["memory_bytes"])
            resource.setrlimit(resource.RLIMIT_DATA, (memory_bytes, memory_bytes))
            wire.send(Type.READY, 0, b'{"memory_bytes":0,"boot_us":0}')
        elif kind is Type.INVOKE:
            wall_ms = float(json.loads(split(payload)[0])["wall_ms"])
            try:
                form, product = _bytecode(source, wall_ms) if job == "bytecode" else _module(source, job)
            except Failure as failure:
                end = {**_META, "outcome": failure.outcome, "error": failure.error}
                wire.send(Type.ERROR, inv, json.dumps(end).encode())
            else:
                meta = json.dumps({**_META, "kind": "response", "status": 200, "headers": [["form", form]]}).encode()
                wire.send(Type.RESULT, inv, LENGTH.pack(len(meta)) + meta + product)


_META = {"wall_us": 0, "cpu_us": 0, "memory_bytes": 0, "logs": [], "truncated": False}


def _bytecode(script: bytes, wall_ms: float) -> tuple[str, bytes]:
    assert _image is not None, "the zygote has no image"
    meter = Meter(_engine, fuel=BYTECODE_FUEL, memory_bytes=BYTECODE_MEMORY_BYTES, wall_ms=wall_ms, cpu_ms=wall_ms)
    return "bytecode", compile_source(_engine, _image, meter, script)


def _module(wasm: bytes, job: str) -> tuple[str, bytes]:
    try:
        module = Module(_engine, wasm)
    except WasmtimeError as why:
        raise _refused(f"It is no valid module: {_reason(why)}") from None
    form = "image" if job == "image" else _form(module)
    return form, bytes(module.serialize())


def _form(module: Module) -> str:
    """What can run the module. Raises Failure for one that nothing here can."""
    spaces = {imported.module for imported in module.imports}
    exports = {exported.name: exported.type for exported in module.exports}
    if abi.IMPORT_MODULE in spaces:
        _refuse_imports(module, abi.IMPORT_MODULE, abi.EXPORTS)
        _require_function(exports, INIT, ["i32"])
        return "linked"
    _refuse_imports(module, wasi.NAMESPACE, wasi.SIGNATURES)
    _require_function(exports, "_start", [])
    memory = _require(exports, "memory", MemoryType)
    pages = memory.limits.min
    if pages > MAX_MEMORY_PAGES:
        raise _refused(f"Its memory begins with {pages} pages of 64 KiB; {MAX_MEMORY_PAGES} are the most")
    return "command"


def _refuse_imports(module: Module, space: str, names: Collection[str]) -> None:
    for imported in module.imports:
        if imported.module != space or imported.name not in names:
            where = f"{imported.module}.{imported.name}"[:200]
            raise _refused(f"It imports {where}, which is not to be had here; {space} is all there is")


def _require(exports: dict[str, AsExternType], name: str, kind: type[Kind]) -> Kind:
    found = exports.get(name)
    if not isinstance(found, kind):
        what = "function" if kind is FuncType else "memory"
        raise _refused(f"It does not export a {what} called {name}; a WASI preview 1 command does")
    return found


def _require_function(exports: dict[str, AsExternType], name: str, results: list[str]) -> None:
    found = _require(exports, name, FuncType)
    if found.params or [str(kind) for kind in found.results] != results:
        raise _refused(
            f"It exports a {name} that takes or answers what it must not; () → ({' '.join(results)}) is called"
        )


def _reason(why: WasmtimeError) -> str:
    lines = [line.strip() for line in str(why).splitlines() if line.strip() and line.strip() != "Caused by:"]
    return lines[-1][:500] if lines else "unknown"


def _refused(message: str) -> Failure:
    return Failure("load_failed", "ModuleRefused", message)
