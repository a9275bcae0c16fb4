"""By what a call is found again elsewhere: `x-request-id`, and `traceparent` of W3C Trace Context level 1. Pure.

    traceparent  00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01
                 version · trace id · id of the caller's span · flags, bit 0 says that the trace is sampled

A header that breaks the rules counts as absent, as the standard asks: it is never an error. `tracestate` is not read.
"""

import re
import uuid
from dataclasses import dataclass
from typing import Final

REQUEST_ID: Final = "x-request-id"
TRACEPARENT: Final = "traceparent"
MAX_REQUEST_ID_CHARS: Final = 128
SAMPLED: Final = 0x01

_REQUEST_ID: Final = re.compile(rf"[!-~]{{1,{MAX_REQUEST_ID_CHARS}}}")
_TRACEPARENT: Final = re.compile(r"00-(?!0{32})([0-9a-f]{32})-(?!0{16})([0-9a-f]{16})-([0-9a-f]{2})")


@dataclass(frozen=True, slots=True)
class TraceParent:
    """Where in which trace the caller is."""

    trace_id: str  # 32 lower-case hex digits, not all zero
    span_id: str  # 16 of them
    flags: int = 0  # one byte

    @property
    def sampled(self) -> bool:
        return bool(self.flags & SAMPLED)

    def __str__(self) -> str:
        """The header's value."""
        return f"00-{self.trace_id}-{self.span_id}-{self.flags:02x}"


def trace_parent(value: str | None) -> TraceParent | None:
    """What the header says, or None when it is absent, malformed, of another version, or has an id of zeros."""
    found = _TRACEPARENT.fullmatch(value) if value else None
    return TraceParent(found[1], found[2], int(found[3], 16)) if found else None


def is_request_id(value: str) -> bool:
    """Whether it may go on as it came: 1 to 128 characters of visible ASCII."""
    return _REQUEST_ID.fullmatch(value) is not None


def new_request_id() -> str:
    return str(uuid.uuid4())
