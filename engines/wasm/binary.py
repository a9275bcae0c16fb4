"""The WebAssembly binary format, as far as it is read and written here: integers, sections, exports.

Readers take hostile bytes: they raise Malformed, never anything else, and look at MOST_SECTIONS sections at most.
"""

from collections.abc import Iterable, Iterator
from enum import IntEnum
from typing import Final, NamedTuple

PREAMBLE: Final = b"\0asm\x01\0\0\0"
MOST_SECTIONS: Final = 200
MOST_EXPORTS: Final = 10_000
PAGE_BYTES: Final = 65_536


class SectionId(IntEnum):
    CUSTOM = 0
    TYPE = 1
    IMPORT = 2
    FUNCTION = 3
    TABLE = 4
    MEMORY = 5
    GLOBAL = 6
    EXPORT = 7
    START = 8
    ELEMENT = 9
    CODE = 10
    DATA = 11
    DATA_COUNT = 12


class Kind(IntEnum):
    """Of what is imported or exported."""

    FUNCTION = 0
    TABLE = 1
    MEMORY = 2
    GLOBAL = 3


class Malformed(ValueError):
    """Not a WebAssembly module, or not one of the shape that is asked for."""


class Reader:
    """A cursor over bytes."""

    def __init__(self, data: bytes | memoryview) -> None:
        self._data = memoryview(data)
        self._at = 0

    @property
    def left(self) -> int:
        return len(self._data) - self._at

    def take(self, length: int) -> memoryview:
        if not 0 <= length <= self.left:
            raise Malformed("cut short")
        self._at += length
        return self._data[self._at - length : self._at]

    def byte(self) -> int:
        return self.take(1)[0]

    def u32(self) -> int:
        value, _, _ = self._leb128()
        if value >= 1 << 32:
            raise Malformed("an integer of more than 32 bits")
        return value

    def i32(self) -> int:
        value, bits, last = self._leb128()
        return value - (1 << bits) if last & 0x40 else value

    def _leb128(self) -> tuple[int, int, int]:
        """The bits as they stand, how many there are, and the last byte, which knows the sign."""
        value = shift = 0
        while True:
            byte = self.byte()
            value |= (byte & 0x7F) << shift
            shift += 7
            if byte < 0x80:
                return value, shift, byte
            if shift > 28:
                raise Malformed("an integer of too many bytes")

    def vector(self) -> memoryview:
        return self.take(self.u32())

    def name(self) -> str:
        try:
            return str(self.vector(), "utf-8")
        except UnicodeDecodeError as why:
            raise Malformed("a name that is not UTF-8") from why


class Section(NamedTuple):
    id: int
    content: memoryview


class Export(NamedTuple):
    name: str
    kind: int
    at: int


def sections(wasm: bytes) -> Iterator[Section]:
    """The sections of a module, in order."""
    reader = Reader(wasm)
    if reader.left < len(PREAMBLE) or bytes(reader.take(len(PREAMBLE))) != PREAMBLE:
        raise Malformed("not a WebAssembly module")
    for _ in range(MOST_SECTIONS):
        if not reader.left:
            return
        yield Section(reader.byte(), reader.vector())
    if reader.left:
        raise Malformed(f"more than {MOST_SECTIONS} sections")


def section_of(wasm: bytes, wanted: SectionId) -> memoryview:
    """The content of the first section of a kind; empty when there is none."""
    return next((content for number, content in sections(wasm) if number == wanted), memoryview(b""))


def custom_section(wasm: bytes, name: str) -> bytes | None:
    """What the first custom section of that name holds."""
    for number, content in sections(wasm):
        if number == SectionId.CUSTOM:
            reader = Reader(content)
            if reader.name() == name:
                return bytes(reader.take(reader.left))
    return None


def exports(wasm: bytes) -> list[Export]:
    content = section_of(wasm, SectionId.EXPORT)
    if not content:
        return []
    reader = Reader(content)
    count = reader.u32()
    if count > MOST_EXPORTS:
        raise Malformed(f"more than {MOST_EXPORTS} exports")
    return [Export(reader.name(), reader.byte(), reader.u32()) for _ in range(count)]


def has_imports(wasm: bytes) -> bool:
    return bytes(section_of(wasm, SectionId.IMPORT)) not in (b"", b"\0")


def u32(value: int) -> bytes:
    out = bytearray()
    while value >= 0x80:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)
    return bytes(out)


def i32(value: int) -> bytes:
    out = bytearray()
    while not -0x40 <= value < 0x40:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value & 0x7F)
    return bytes(out)


def vector(content: bytes) -> bytes:
    """Bytes, or a name, with their length in front."""
    return u32(len(content)) + content


def items(encoded: Iterable[bytes]) -> bytes:
    """Things of one kind with their number in front."""
    listed = list(encoded)
    return u32(len(listed)) + b"".join(listed)


def section(number: SectionId, content: bytes) -> bytes:
    return bytes([number]) + vector(content)


def custom(name: str, content: bytes) -> bytes:
    return section(SectionId.CUSTOM, vector(name.encode()) + content)


def i32_const(value: int) -> bytes:
    """A constant expression; addresses of 2 GiB and more are negative in it."""
    return b"\x41" + i32(value - (1 << 32) if value >= 1 << 31 else value) + b"\x0b"


def active_data(address: int, content: bytes) -> bytes:
    """A data segment that is put into memory when a module is instantiated."""
    return b"\0" + i32_const(address) + vector(content)
