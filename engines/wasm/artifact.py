"""A function as a WebAssembly module: its bytecode, and a link to the engine image that it was compiled by.

The module is what `javy build -C dynamic` makes in spirit: it imports the engine's memory, atlas_alloc and atlas_load,
holds the bytecode as passive data, and exports `atlas_init`, which puts the bytecode into memory and loads it. Its
custom section `atlas` says by hash which engine it needs and which source it came from.

`standalone` is the same function as one self-contained WASI preview 1 command.
"""

import hashlib
from typing import Final, Protocol

from engines.wasm import binary
from engines.wasm.abi import IMPORT_MODULE
from engines.wasm.binary import Kind, Malformed, Reader, SectionId

INIT: Final = "atlas_init"
PROGRAM: Final = "atlas_program"
_SECTION = "atlas"
_FORMAT = 1
_SECTION_BYTES = 1 + 32 + 32
_PROGRAM_BYTES = 8

_I32 = b"\x7f"
_TYPES = (
    b"\x60\0" + binary.items([_I32]),
    *(b"\x60" + binary.items([_I32] * n) + binary.items([_I32]) for n in (1, 2)),
)
_INIT_TYPE, _ALLOC_TYPE, _LOAD_TYPE = range(3)
_ALLOC, _LOAD, _INIT_FUNCTION = range(3)


class Linked(Protocol):
    """What is needed of engines.wasm.image.Image here."""

    @property
    def sha256(self) -> str: ...

    @property
    def command(self) -> bytes: ...


def module_of(bytecode: bytes, image: Linked, *, source: bytes) -> bytes:
    """The module of bytecode that `image` compiled from `source`. Deterministic; some 300 bytes and the bytecode."""
    identity = bytes([_FORMAT]) + bytes.fromhex(image.sha256) + hashlib.sha256(source).digest()
    imports = (
        _import("memory", bytes([Kind.MEMORY]) + b"\0\0"),
        _import("atlas_alloc", bytes([Kind.FUNCTION, _ALLOC_TYPE])),
        _import("atlas_load", bytes([Kind.FUNCTION, _LOAD_TYPE])),
    )
    export = binary.vector(INIT.encode()) + bytes([Kind.FUNCTION, _INIT_FUNCTION])
    return b"".join(
        (
            binary.PREAMBLE,
            binary.custom(_SECTION, identity),
            binary.section(SectionId.TYPE, binary.items(_TYPES)),
            binary.section(SectionId.IMPORT, binary.items(imports)),
            binary.section(SectionId.FUNCTION, binary.items([bytes([_INIT_TYPE])])),
            binary.section(SectionId.EXPORT, binary.items([export])),
            binary.section(SectionId.DATA_COUNT, binary.u32(1)),
            binary.section(SectionId.CODE, binary.items([binary.vector(_init_body(len(bytecode)))])),
            binary.section(SectionId.DATA, binary.items([b"\x01" + binary.vector(bytecode)])),
        )
    )


def engine_of(wasm: bytes) -> str | None:
    """The hash of the engine image a module of ours needs; None for every other sequence of bytes."""
    identity = _identity(wasm)
    return None if identity is None else identity[1:33].hex()


def source_of(wasm: bytes) -> str | None:
    """The hash of the source a module of ours was compiled from; None for every other sequence of bytes."""
    identity = _identity(wasm)
    return None if identity is None else identity[33:].hex()


def bytecode_of(wasm: bytes) -> bytes:
    """The bytecode in a module of ours. Raises Malformed."""
    reader = Reader(binary.section_of(wasm, SectionId.DATA))
    if (reader.u32(), reader.byte()) != (1, 1):
        raise Malformed("not one passive data segment")
    return bytes(reader.vector())


def standalone(image: Linked, bytecode: bytes) -> bytes:
    """A WASI preview 1 command: JSON on stdin, JSON on stdout, logs and errors on stderr, exit status 1 for an error.

    `bytecode` must be of this image. The bytecode goes behind the memory of the image's own command, and where it is
    into `atlas_program`. Deterministic; timers do not wait, as everywhere in this engine.
    """
    command = image.command
    pages = _memory_pages(command)
    base = pages * binary.PAGE_BYTES
    more = -(-len(bytecode) // binary.PAGE_BYTES)
    where = base.to_bytes(4, "little") + len(bytecode).to_bytes(4, "little")
    added = (binary.active_data(_constant(command, PROGRAM), where), binary.active_data(base, bytecode))
    out = [binary.PREAMBLE]
    for number, content in binary.sections(command):
        new = bytes(content)
        if number == SectionId.MEMORY:
            new = binary.items([b"\0" + binary.u32(pages + more)])
        elif number == SectionId.EXPORT:
            kept = [e for e in binary.exports(command) if e.name != PROGRAM]
            new = binary.items(binary.vector(e.name.encode()) + bytes([e.kind]) + binary.u32(e.at) for e in kept)
        elif number == SectionId.DATA_COUNT:
            new = binary.u32(Reader(content).u32() + len(added))
        elif number == SectionId.DATA:
            reader = Reader(content)
            new = binary.u32(reader.u32() + len(added)) + bytes(reader.take(reader.left)) + b"".join(added)
        out.append(binary.section(SectionId(number), new))
    return b"".join(out)


def _identity(wasm: bytes) -> bytes | None:
    try:
        identity = binary.custom_section(wasm, _SECTION)
    except Malformed:
        return None
    if identity is None or len(identity) != _SECTION_BYTES or identity[0] != _FORMAT:
        return None
    return identity


def _import(name: str, description: bytes) -> bytes:
    return binary.vector(IMPORT_MODULE.encode()) + binary.vector(name.encode()) + description


def _init_body(length: int) -> bytes:
    """(func (result i32) (local i32)): memory for `length` bytes, the data copied there, loaded; 0 without memory."""
    constant = b"\x41" + binary.i32(length)
    return b"".join(
        (
            b"\x01\x01" + _I32,
            constant + b"\x10" + bytes([_ALLOC]),
            b"\x22\0\x45\x04\x40\x41\0\x0f\x0b",  # local.tee 0, i32.eqz, if, i32.const 0, return, end
            b"\x20\0\x41\0" + constant + b"\xfc\x08\0\0",  # memory.init of data 0 to local 0
            b"\x20\0" + constant + b"\x10" + bytes([_LOAD]),
            b"\x0b",
        )
    )


def _memory_pages(wasm: bytes) -> int:
    reader = Reader(binary.section_of(wasm, SectionId.MEMORY))
    if (reader.u32(), reader.byte()) != (1, 0):
        raise Malformed("not one memory without a maximum")
    return reader.u32()


def _constant(wasm: bytes, name: str) -> int:
    """The value of an exported constant global."""
    index = next((e.at for e in binary.exports(wasm) if e.name == name and e.kind == Kind.GLOBAL), None)
    reader = Reader(binary.section_of(wasm, SectionId.GLOBAL))
    for number in range(reader.u32()):
        reader.take(2)
        if reader.byte() != 0x41:
            break
        value = reader.i32()
        reader.byte()
        if number == index:
            return value % (1 << 32)
    raise Malformed(f"no constant {name}")
