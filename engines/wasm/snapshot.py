"""Pre-initialisation, as Wizer does it: run a module's set-up once, and make the memory it leaves the module's own.

What is rewritten: the least size of the memory, the data segments, the stack pointer, the exports. A module may have
no other state: one memory, one mutable global, no start function.
"""

import re
from collections.abc import Collection
from typing import Final

import wasmtime

from engines.wasm import binary
from engines.wasm.binary import Kind, Malformed, Reader, SectionId

STACK_POINTER: Final = "__stack_pointer"
_NONZERO = re.compile(rb"[^\0]+(?:\0{1,31}[^\0]+)*")  # a segment costs about as much as a few zeros


def snapshot(wasm: bytes, *, run: tuple[str, ...], keep: Collection[str]) -> bytes:
    """The module as it is after its exports `run` were called, of its exports only those in `keep`.

    What it imports is not there while they run. Raises Malformed, and wasmtime's errors when a call traps.
    """
    with wasmtime.Engine() as engine, wasmtime.Store(engine) as store:
        module = wasmtime.Module(engine, wasm)
        linker = wasmtime.Linker(engine)
        linker.define_unknown_imports_as_traps(module)
        instance = linker.instantiate(store, module)
        exported = instance.exports(store)
        for name in run:
            function = exported[name]
            assert isinstance(function, wasmtime.Func)
            function(store)
        memory, pointer = exported["memory"], exported[STACK_POINTER]
        assert isinstance(memory, wasmtime.Memory)
        assert isinstance(pointer, wasmtime.Global)
        left = bytes(memory.read(store))
        return frozen(wasm, memory=left, stack_pointer=pointer.value(store), keep=keep)


def frozen(wasm: bytes, *, memory: bytes, stack_pointer: int, keep: Collection[str]) -> bytes:
    """The module with `memory` for its beginning. Pure; custom sections are dropped."""
    segments = [binary.active_data(found.start(), found[0]) for found in _NONZERO.finditer(memory)]
    kept = [export for export in binary.exports(wasm) if export.name in keep]
    if missing := set(keep) - {export.name for export in kept}:
        raise Malformed(f"no export {', '.join(sorted(missing))}")
    pointer = next((e.at for e in binary.exports(wasm) if e.name == STACK_POINTER and e.kind == Kind.GLOBAL), None)
    out = [binary.PREAMBLE]
    for number, content in binary.sections(wasm):
        if number == SectionId.CUSTOM:
            continue
        if number == SectionId.START:
            raise Malformed("a start function")
        new = bytes(content)
        if number == SectionId.MEMORY:
            new = _memory(content, len(memory) // binary.PAGE_BYTES)
        elif number == SectionId.GLOBAL:
            new = _globals(content, pointer, stack_pointer)
        elif number == SectionId.EXPORT:
            new = binary.items(binary.vector(e.name.encode()) + bytes([e.kind]) + binary.u32(e.at) for e in kept)
        elif number == SectionId.DATA_COUNT:
            new = binary.u32(len(segments))
        elif number == SectionId.DATA:
            new = binary.items(segments)
        out.append(binary.section(SectionId(number), new))
    return b"".join(out)


def _memory(content: memoryview, pages: int) -> bytes:
    reader = Reader(content)
    if (reader.u32(), reader.byte()) != (1, 0):
        raise Malformed("not one memory without a maximum")
    return binary.items([b"\0" + binary.u32(pages)])


def _globals(content: memoryview, pointer: int | None, value: int) -> bytes:
    reader = Reader(content)
    out = []
    for index in range(reader.u32()):
        head = bytes(reader.take(2))
        if reader.byte() != 0x41:
            raise Malformed("a global that is not an i32 constant")
        constant = reader.i32()
        if reader.byte() != 0x0B:
            raise Malformed("a global of a longer expression")
        if head[1] and index != pointer:
            raise Malformed("a mutable global besides the stack pointer")
        out.append(head + binary.i32_const((value if index == pointer else constant) % (1 << 32)))
    return binary.items(out)
