"""The engine image of this checkout, built when it is not there, and a host for it: wasmtime in this process."""

import asyncio
import threading
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import wasmtime

from engines.wasm import abi, artifact
from engines.wasm.abi import Result, Status
from engines.wasm.image import Image, ensure

CACHE_DIR = Path(__file__).parents[1] / "build" / "engines"
MIB = 1024 * 1024
NOW_NS = 1_700_000_000_123_000_000


@pytest.fixture(scope="session")
def wasm_image() -> Image:
    """Some 40 s the first time in a checkout, and after each change of what it is made of."""
    found: list[Image] = []
    builder = threading.Thread(target=lambda: found.append(asyncio.run(ensure(CACHE_DIR))))
    builder.start()
    builder.join()
    return found[0]


class Ended(NamedTuple):
    """How a run ended, with its texts read."""

    status: Status
    text: bytes
    logs: str
    body: bytes
    fuel: int
    memory_bytes: int


class Guest:
    """Compiles and runs programs on an image, each run in instances of its own."""

    def __init__(self, image: Image) -> None:
        config = wasmtime.Config()
        config.consume_fuel = True
        config.max_wasm_stack = 2 * MIB
        self.image = image
        self._engine = wasmtime.Engine(config)
        self._module = wasmtime.Module(self._engine, image.wasm)
        self._instances = wasmtime.Linker(self._engine).instantiate_pre(self._module)

    def compile(self, source: str) -> tuple[Status, bytes]:
        """As a deploy does; the code begins on line 2, as engines.build puts it."""
        code = b"\n" + source.encode()
        with self._store(10**10, 256 * MIB) as store:
            exported = self._instances.instantiate(store).exports(store)
            address = _call(store, exported["atlas_alloc"], len(code) + 1)
            memory = _memory(exported)
            memory.write(store, code, address)
            result = _result(store, memory, _call(store, exported["atlas_compile"], address, len(code)))
            return Status(result.status), _read(store, memory, result.text, result.text_bytes)

    def module(self, source: str) -> bytes:
        status, bytecode = self.compile(source)
        assert status is Status.RETURNED, bytecode
        return artifact.module_of(bytecode, self.image, source=source.encode())

    def run(
        self,
        program: str | bytes,
        body: bytes = b"null",
        *,
        kind: str = "json",
        context: bytes = b"{}",
        now_ns: int = NOW_NS,
        seed: int = 1,
        entropy: bytes = bytes(32),
        fuel: int = 10**9,
        memory_bytes: int = 16 * MIB,
        log_bytes: int = 65536,
        result_bytes: int = 5 * MIB,
        call: str = "atlas_invoke",
    ) -> Ended:
        """Run a source, or a module that was made of one."""
        module = wasmtime.Module(self._engine, self.module(program) if isinstance(program, str) else program)
        with self._store(fuel, memory_bytes) as store:
            exported = self._instances.instantiate(store).exports(store)
            memory, at = _memory(exported), exported["atlas_request"]
            assert isinstance(at, wasmtime.Global)
            for address, data in abi.request_writes(
                at.value(store),
                input_kind=kind,
                input_bytes=body,
                context=context,
                now_ns=now_ns,
                seed=seed,
                entropy=entropy,
                log_bytes=log_bytes,
                result_bytes=result_bytes,
                alloc=lambda length: _call(store, exported["atlas_alloc"], length),
            ):
                memory.write(store, data, address)
            links = [exported[name] for name in ("memory", "atlas_alloc", "atlas_load")]
            own = wasmtime.Instance(store, module, links).exports(store)
            result = _result(store, memory, _call(store, own[artifact.INIT]))
            if result.status == Status.RETURNED:
                result = _result(store, memory, _call(store, exported[call]))
            return Ended(
                Status(result.status),
                _read(store, memory, result.text, result.text_bytes),
                _read(store, memory, result.logs, result.logs_bytes).decode(),
                _read(store, memory, result.body, result.body_bytes),
                fuel - store.get_fuel(),
                memory.data_len(store),
            )

    def _store(self, fuel: int, memory_bytes: int) -> wasmtime.Store:
        store = wasmtime.Store(self._engine)
        store.set_limits(memory_size=memory_bytes)
        store.set_fuel(fuel)
        return store


def _call(store: wasmtime.Store, function: Any, *arguments: int) -> int:
    answer = function(store, *arguments)
    assert isinstance(answer, int)
    return answer & 0xFFFFFFFF


def _memory(exported: Any) -> wasmtime.Memory:
    memory = exported["memory"]
    assert isinstance(memory, wasmtime.Memory)
    return memory


def _read(store: wasmtime.Store, memory: wasmtime.Memory, address: int, length: int) -> bytes:
    return bytes(memory.read(store, address, address + length))


def _result(store: wasmtime.Store, memory: wasmtime.Memory, address: int) -> Result:
    return Result.read(_read(store, memory, address, abi.RESULT.size))


@pytest.fixture(scope="session")
def guest(wasm_image: Image) -> Guest:
    return Guest(wasm_image)
