"""What host and guest say to each other: ABI version 1, the other side of guest/shim.h. Sans-IO.

    export of the engine            meaning
    memory                          32-bit, grown by the guest; its size is the most it ever was
    atlas_request                   a constant: where the request is written, REQUEST and two areas behind it
    atlas_alloc(n) → ptr            n bytes; 0: out of memory
    atlas_compile(ptr, n) → result  a module, UTF-8 and a spare byte behind it, to bytecode
    atlas_load(ptr, n) → result     bytecode that atlas_compile of the same image made
    atlas_evaluate() → result       run the top level and look for the default export, without calling it
    atlas_invoke() → result         atlas_evaluate, then the call, to its end

A function's own module (engines.wasm.artifact) imports memory, atlas_alloc and atlas_load from `atlas_engine_v1` and
exports `atlas_init() → result`, 0 when there is no memory. One run, in a new instance of both:

    write the request (`request_writes`), atlas_init, atlas_invoke, read the result

Fuel is the same for the same module, input and limits, whatever context, clock, seed and entropy are, as long as the
program does not look at those. Context and input therefore go to fixed areas, where their length costs nothing; longer
ones go where atlas_alloc says, and then their length does cost some.

All that is read from a guest is hostile: pointers may lie, texts may not be what they should be.
"""

import struct
from collections.abc import Callable, Iterator
from enum import IntEnum
from typing import Final, NamedTuple

VERSION: Final = 1
IMPORT_MODULE: Final = f"atlas_engine_v{VERSION}"
EXPORTS: Final = (
    "memory",
    "atlas_request",
    "atlas_alloc",
    "atlas_compile",
    "atlas_load",
    "atlas_evaluate",
    "atlas_invoke",
)

REQUEST: Final = struct.Struct("<qQ32s8I")
RESULT: Final = struct.Struct("<7I")
ENTROPY_BYTES: Final = 32
INPUT_AREA_BYTES: Final = 16 * 1024
CONTEXT_AREA_BYTES: Final = 256 * 1024

INPUT_KINDS: Final = {"json": 0, "text": 1, "bytes": 2}


class Status(IntEnum):
    """How a call ended. `text` of all with an error is its JSON: {"name","message","stack","code"?}."""

    RETURNED = 0  # text: the value's JSON; of atlas_compile the bytecode; of atlas_load and atlas_evaluate nothing
    THREW = 1  # error
    NOT_COMPILED = 2  # error: a syntax error, or bytecode that is not of this image
    LOAD_FAILED = 3  # error: the top level threw, or there is no default function
    NEVER_SETTLES = 4  # no text: nothing is left that could settle the promise, of the top level or of the call
    BAD_INPUT = 5  # error: the input is not one JSON value
    OUT_OF_MEMORY = 6  # error, a static text
    RESPONDED = 7  # text: the JSON of {"status","headers"}; body: "t" and text, or "b" and base64
    TOO_LONG = 8  # text: what the result's length in bytes is at least, in decimal


class Result(NamedTuple):
    """A result as it lies in memory. Each text is an address and a length in bytes; address 0: there is none.

    `logs` is the inside of an object from the value of its key "logs" on: `[[level,text,at_us],…],"truncated":false`.
    """

    status: int
    text: int
    text_bytes: int
    logs: int
    logs_bytes: int
    body: int
    body_bytes: int

    @classmethod
    def read(cls, raw: bytes) -> "Result":
        """RESULT.size bytes at the address that a call gave."""
        return cls(*RESULT.unpack(raw))


def request_writes(
    at: int,
    *,
    input_kind: str,
    input_bytes: bytes,
    context: bytes,
    now_ns: int,
    seed: int,
    entropy: bytes,
    log_bytes: int,
    result_bytes: int,
    alloc: Callable[[int], int],
) -> Iterator[tuple[int, bytes]]:
    """What to write where, for the request at address `at`.

    `input_bytes` of kind json or text, and `context`, are UTF-8. `now_ns` counts from 1970, `seed` is a u64 for
    Math.random, `entropy` ENTROPY_BYTES for crypto. `alloc` is atlas_alloc, asked only for what fits no area. Raises
    MemoryError when it answers 0.
    """
    input_area = at + REQUEST.size
    context_area = input_area + INPUT_AREA_BYTES
    input_at = input_area if len(input_bytes) < INPUT_AREA_BYTES else _taken(alloc, len(input_bytes))
    context_at = context_area if len(context) < CONTEXT_AREA_BYTES else _taken(alloc, len(context))
    head = REQUEST.pack(
        now_ns,
        seed,
        entropy,
        INPUT_KINDS[input_kind],
        input_at,
        len(input_bytes),
        context_at,
        len(context),
        log_bytes,
        result_bytes,
        0,
    )
    if input_at == input_area:
        yield at, head + input_bytes
    else:
        yield at, head
        yield input_at, input_bytes
    yield context_at, context


def _taken(alloc: Callable[[int], int], length: int) -> int:
    address = alloc(length + 1)
    if not address:
        raise MemoryError
    return address
