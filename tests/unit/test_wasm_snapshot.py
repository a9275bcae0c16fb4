"""Pre-initialisation as a function of a module and the memory its set-up left, on modules written by hand."""

import pytest
import wasmtime

from engines.wasm import binary
from engines.wasm.binary import Kind, Malformed, SectionId
from engines.wasm.snapshot import STACK_POINTER, frozen, snapshot

PAGE = binary.PAGE_BYTES
_SET_UP = """
(module
  (memory (export "memory") 1)
  (global (export "__stack_pointer") (mut i32) (i32.const 4096))
  (global (export "table_at") i32 (i32.const -2147483640))
  (data (i32.const 8) "before")
  (func (export "boot")
    (drop (memory.grow (i32.const 1)))
    (i32.store8 (i32.const 9) (i32.const 69))
    (i32.store (i32.const 70000) (i32.const 0x64636261))
    (global.set 0 (i32.const 4000)))
  (func (export "read") (param i32) (result i32) (i32.load8_u (local.get 0)))
  (func (export "pages") (result i32) (memory.size))
  (func (export "stack") (result i32) (global.get 0)))
"""
KEEP = ("read", "pages", "stack", "table_at")


def _module(text: str = _SET_UP) -> bytes:
    return bytes(wasmtime.wat2wasm(text))


def test_what_the_set_up_left_is_where_every_instance_begins() -> None:
    image = snapshot(_module(), run=("boot",), keep=KEEP)
    assert sorted(export.name for export in binary.exports(image)) == sorted(KEEP)
    engine = wasmtime.Engine()
    store = wasmtime.Store(engine)
    exported = wasmtime.Instance(store, wasmtime.Module(engine, image), []).exports(store)

    def call(name: str, *arguments: int) -> int:
        function = exported[name]
        assert isinstance(function, wasmtime.Func)
        return int(function(store, *arguments))

    assert bytes(call("read", at) for at in range(8, 14)) == b"bEfore"
    assert bytes(call("read", at) for at in range(70_000, 70_004)) == b"abcd"
    assert (call("pages"), call("stack")) == (2, 4000)
    constant = exported["table_at"]
    assert isinstance(constant, wasmtime.Global)
    assert constant.value(store) == -2147483640
    store.close()


def test_the_same_every_time() -> None:
    assert snapshot(_module(), run=("boot",), keep=KEEP) == snapshot(_module(), run=("boot",), keep=KEEP)


def test_zeros_take_no_room() -> None:
    memory = bytearray(4 * PAGE)
    memory[10:13] = b"abc"
    memory[20:22] = b"de"  # near enough for one segment
    memory[3 * PAGE] = 1
    image = frozen(_module(), memory=bytes(memory), stack_pointer=0, keep=KEEP)
    data = bytes(binary.section_of(image, SectionId.DATA))
    joined = b"abc" + bytes(7) + b"de"
    assert data == binary.items([binary.active_data(10, joined), binary.active_data(3 * PAGE, b"\1")])


def test_a_call_that_traps_is_raised() -> None:
    with pytest.raises(wasmtime.Trap):
        snapshot(
            _module(_SET_UP.replace("(drop (memory.grow (i32.const 1)))", "(unreachable)")), run=("boot",), keep=KEEP
        )


@pytest.mark.parametrize(
    ("before", "after", "why"),
    [
        ("(func (export", "(global (mut i32) (i32.const 1)) (func (export", "mutable global"),
        ("(func (export", "(start 0) (func (export", "start function"),
        ('"memory") 1)', '"memory") 1 3)', "maximum"),
        ("(func (export", "(global i64 (i64.const 1)) (func (export", "not an i32 constant"),
    ],
)
def test_modules_of_another_shape_are_refused(before: str, after: str, why: str) -> None:
    wasm = _module(_SET_UP.replace(before, after, 1))
    with pytest.raises(Malformed, match=why):
        frozen(wasm, memory=bytes(PAGE), stack_pointer=0, keep=KEEP)


def test_an_export_that_is_not_there() -> None:
    with pytest.raises(Malformed, match="no export other"):
        frozen(_module(), memory=bytes(PAGE), stack_pointer=0, keep=("other",))


def test_the_name_of_the_stack_pointer_is_the_linkers() -> None:
    exported = {export.name: export.kind for export in binary.exports(_module())}
    assert exported[STACK_POINTER] == Kind.GLOBAL
