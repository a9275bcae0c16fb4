"""The request as bytes at addresses, and results as they are read."""

import pytest

from engines.wasm.abi import (
    CONTEXT_AREA_BYTES,
    ENTROPY_BYTES,
    INPUT_AREA_BYTES,
    REQUEST,
    Result,
    Status,
    request_writes,
)

AT = 1 << 20
CONTEXT_AT = AT + REQUEST.size + INPUT_AREA_BYTES


def _writes(body: bytes, context: bytes, *, allocated: list[int] | None = None) -> list[tuple[int, bytes]]:
    answers = iter(allocated or [])
    return list(
        request_writes(
            AT,
            input_kind="text",
            input_bytes=body,
            context=context,
            now_ns=-1,
            seed=2**64 - 1,
            entropy=b"e" * ENTROPY_BYTES,
            log_bytes=3,
            result_bytes=4,
            alloc=lambda _: next(answers),
        )
    )


def test_small_texts_go_to_their_areas() -> None:
    (at, head), context = _writes(b"body", b"{}")
    assert at == AT
    assert context == (CONTEXT_AT, b"{}")
    assert head[REQUEST.size :] == b"body"
    assert REQUEST.unpack(head[: REQUEST.size]) == (
        *(-1, 2**64 - 1, b"e" * 32, 1),
        *(AT + REQUEST.size, 4, CONTEXT_AT, 2, 3, 4, 0),
    )


def test_an_area_keeps_a_byte_to_spare() -> None:
    """The guest ends each text with one."""
    assert len(_writes(b"x" * (INPUT_AREA_BYTES - 1), b"y" * (CONTEXT_AREA_BYTES - 1))) == 2
    long = _writes(b"x" * INPUT_AREA_BYTES, b"y" * CONTEXT_AREA_BYTES, allocated=[5000, 9000])
    assert [(at, len(data)) for at, data in long] == [
        (AT, REQUEST.size),
        (5000, INPUT_AREA_BYTES),
        (9000, CONTEXT_AREA_BYTES),
    ]


def test_no_memory_for_a_long_text() -> None:
    with pytest.raises(MemoryError):
        _writes(b"x" * INPUT_AREA_BYTES, b"", allocated=[0])


def test_a_result() -> None:
    raw = b"".join(number.to_bytes(4, "little") for number in (1, 2, 3, 4, 5, 6, 7))
    result = Result.read(raw)
    assert result == (1, 2, 3, 4, 5, 6, 7)
    assert Status(result.status) is Status.THREW
