"""The WebAssembly binary format: what is written is read again, and what is not WebAssembly is Malformed."""

import pytest

from engines.wasm import binary
from engines.wasm.binary import Malformed, Reader, SectionId


@pytest.mark.parametrize("value", [0, 1, 127, 128, 16383, 16384, 2**31, 2**32 - 1])
def test_unsigned_integers(value: int) -> None:
    assert Reader(binary.u32(value)).u32() == value


@pytest.mark.parametrize("value", [0, 1, -1, 63, 64, -64, -65, 2**31 - 1, -(2**31)])
def test_signed_integers(value: int) -> None:
    reader = Reader(binary.i32(value) + b"rest")
    assert reader.i32() == value
    assert reader.left == 4


@pytest.mark.parametrize("raw", [b"", b"\x80", b"\xff\xff\xff\xff\x7f", b"\x80\x80\x80\x80\x80\x00"])
def test_integers_that_are_cut_short_or_too_long(raw: bytes) -> None:
    with pytest.raises(Malformed):
        Reader(raw).u32()


def test_a_name_must_be_utf8() -> None:
    assert Reader(binary.vector("é".encode())).name() == "é"
    with pytest.raises(Malformed, match="UTF-8"):
        Reader(b"\x01\xff").name()


def test_sections_in_order() -> None:
    wasm = (
        binary.PREAMBLE
        + binary.custom("one", b"1")
        + binary.section(SectionId.DATA, b"\0")
        + binary.custom("two", b"2")
    )
    assert [(number, bytes(content)) for number, content in binary.sections(wasm)] == [
        (0, b"\x03one1"),
        (11, b"\0"),
        (0, b"\x03two2"),
    ]
    assert binary.custom_section(wasm, "two") == b"2"
    assert binary.custom_section(wasm, "three") is None
    assert bytes(binary.section_of(wasm, SectionId.DATA)) == b"\0"
    assert bytes(binary.section_of(wasm, SectionId.CODE)) == b""


@pytest.mark.parametrize(
    "wasm",
    [b"", b"\0asm", b"\0asm\x02\0\0\0", binary.PREAMBLE + b"\0", binary.PREAMBLE + b"\0\x05abc"],
)
def test_what_is_not_a_module(wasm: bytes) -> None:
    with pytest.raises(Malformed):
        list(binary.sections(wasm))


def test_sections_without_end_are_refused() -> None:
    with pytest.raises(Malformed, match="more than"):
        list(binary.sections(binary.PREAMBLE + b"\0\0" * 1_000_000))


def test_exports() -> None:
    export = binary.vector(b"run") + b"\0\x07"
    wasm = binary.PREAMBLE + binary.section(SectionId.EXPORT, binary.items([export]))
    assert binary.exports(wasm) == [("run", 0, 7)]
    assert binary.exports(binary.PREAMBLE) == []
    with pytest.raises(Malformed, match="exports"):
        binary.exports(binary.PREAMBLE + binary.section(SectionId.EXPORT, binary.u32(2**31)))


def test_addresses_in_the_upper_half_are_negative_constants() -> None:
    assert Reader(binary.i32_const(2**31 + 5)[1:]).i32() == 5 - 2**31
    assert binary.i32_const(8) == b"\x41\x08\x0b"
