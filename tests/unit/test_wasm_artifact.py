"""A function's own module: what it says of itself, and that hostile bytes say nothing."""

import hashlib
from dataclasses import dataclass

import pytest
import wasmtime

from engines.wasm import binary
from engines.wasm.artifact import bytecode_of, engine_of, module_of, source_of, standalone
from engines.wasm.binary import Malformed

_COMMAND = """
(module
  (memory (export "memory") 2)
  (global (export "atlas_program") i32 (i32.const 64))
  (data (i32.const 8) "image")
  (func (export "_start"))
  (func (export "where") (result i32) (i32.load (i32.const 64)))
  (func (export "length") (result i32) (i32.load (i32.const 68)))
  (func (export "at") (param i32) (result i32) (i32.load8_u (local.get 0))))
"""


@dataclass(frozen=True)
class FakeImage:
    sha256: str = hashlib.sha256(b"an engine").hexdigest()
    command: bytes = bytes(wasmtime.wat2wasm(_COMMAND))


IMAGE = FakeImage()


@pytest.mark.parametrize("bytecode", [b"", b"x", bytes(range(256)) * 300])
def test_what_is_put_in_is_read_again(bytecode: bytes) -> None:
    wasm = module_of(bytecode, IMAGE, source=b"source")
    wasmtime.Module.validate(wasmtime.Engine(), wasm)
    assert engine_of(wasm) == IMAGE.sha256
    assert source_of(wasm) == hashlib.sha256(b"source").hexdigest()
    assert bytecode_of(wasm) == bytecode
    assert wasm == module_of(bytecode, IMAGE, source=b"source")
    assert len(wasm) < len(bytecode) + 300


def test_what_it_imports_and_exports() -> None:
    module = wasmtime.Module(wasmtime.Engine(), module_of(b"code", IMAGE, source=b""))
    assert [(item.module, item.name) for item in module.imports] == [
        ("atlas_engine_v1", "memory"),
        ("atlas_engine_v1", "atlas_alloc"),
        ("atlas_engine_v1", "atlas_load"),
    ]
    assert [export.name for export in module.exports] == ["atlas_init"]


def _host(bytecode: bytes, *, address: int) -> tuple[int, list[tuple[int, int, bytes]]]:
    """What atlas_init answers to an engine whose atlas_alloc gives `address`, and what it was asked to load."""
    engine = wasmtime.Engine()
    with wasmtime.Store(engine) as store:
        memory = wasmtime.Memory(store, wasmtime.MemoryType(wasmtime.Limits(2, None)))
        i32 = wasmtime.ValType.i32()
        loaded: list[tuple[int, int, bytes]] = []

        def load(at: int, length: int) -> int:
            loaded.append((at, length, bytes(memory.read(store, at, at + length))))
            return 77

        links: list[wasmtime.Func | wasmtime.Memory] = [
            memory,
            wasmtime.Func(store, wasmtime.FuncType([i32], [i32]), lambda _: address),
            wasmtime.Func(store, wasmtime.FuncType([i32, i32], [i32]), load),
        ]
        wasm = module_of(bytecode, IMAGE, source=b"")
        init = wasmtime.Instance(store, wasmtime.Module(engine, wasm), links).exports(store)["atlas_init"]
        assert isinstance(init, wasmtime.Func)
        return int(init(store)), loaded


def test_init_puts_the_bytecode_into_memory_and_loads_it() -> None:
    bytecode = bytes(range(256)) * 300
    assert _host(bytecode, address=1000) == (77, [(1000, len(bytecode), bytecode)])


def test_init_without_memory_answers_0() -> None:
    assert _host(b"code", address=0) == (0, [])


@pytest.mark.parametrize(
    "wasm",
    [
        b"",
        b"not wasm",
        binary.PREAMBLE,
        binary.PREAMBLE + binary.custom("atlas", b""),
        binary.PREAMBLE + binary.custom("atlas", b"\x02" + bytes(64)),
        binary.PREAMBLE + binary.custom("atlas", b"\x01" + bytes(65)),
        binary.PREAMBLE + binary.custom("other", b"\x01" + bytes(64)),
        binary.PREAMBLE + b"\0\0" * 5000,
    ],
)
def test_bytes_that_are_not_of_ours(wasm: bytes) -> None:
    assert engine_of(wasm) is None
    assert source_of(wasm) is None
    with pytest.raises(Malformed):
        bytecode_of(wasm)


@pytest.mark.parametrize("length", [1, binary.PAGE_BYTES, binary.PAGE_BYTES + 1])
def test_standalone_puts_the_bytecode_behind_the_image(length: int) -> None:
    wasm = standalone(IMAGE, b"\x05" * length)
    assert [export.name for export in binary.exports(wasm)] == ["memory", "_start", "where", "length", "at"]
    engine = wasmtime.Engine()
    with wasmtime.Store(engine) as store:
        exported = wasmtime.Instance(store, wasmtime.Module(engine, wasm), []).exports(store)

        def call(name: str, *arguments: int) -> int:
            function = exported[name]
            assert isinstance(function, wasmtime.Func)
            return int(function(store, *arguments))

        base = 2 * binary.PAGE_BYTES
        assert (call("where"), call("length")) == (base, length)
        assert [call("at", at) for at in (8, base, base + length - 1)] == [ord("i"), 5, 5]
        memory = exported["memory"]
        assert isinstance(memory, wasmtime.Memory)
        assert memory.size(store) == 2 + -(-length // binary.PAGE_BYTES)


def test_an_image_without_the_place_for_a_program() -> None:
    wasm = bytes(wasmtime.wat2wasm('(module (memory 1) (global (export "other") i32 (i32.const 1)))'))
    with pytest.raises(Malformed, match="atlas_program"):
        standalone(FakeImage(command=wasm), b"code")
