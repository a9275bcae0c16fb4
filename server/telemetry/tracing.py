"""Spans of runs and of what they call, in OpenTelemetry's terms; they go out only where an endpoint is configured.

    invoke {slug} ─┬─ db.query
                   ├─ fetch          and its `traceparent` goes to the server that is asked
                   └─ kv.get, …

Without an endpoint nothing is recorded and OpenTelemetry is not even imported; a run whose caller sent a `traceparent`
then passes it on as it came.
"""

from collections.abc import Mapping
from types import TracebackType
from typing import Final

from server.telemetry.correlation import TraceParent

Attributes = Mapping[str, str | bool | int | float]


class Span:
    """A run, or a step of one, of which nothing is recorded. Ends with its `with` block, by an exception as failed."""

    __slots__ = ("place",)

    def __init__(self, place: TraceParent | None = None) -> None:
        self.place = place

    @property
    def trace_id(self) -> str:
        """32 hex digits, or "" for a run without a trace."""
        return self.place.trace_id if self.place else ""

    def step(self, name: str) -> "Span":
        """A span below this one, for a call to another server."""
        return self

    def tell(self, attributes: Attributes) -> None:
        """Add attributes."""

    def fail(self, kind: str) -> None:
        """It failed; `kind` is a stable name of how."""

    def __enter__(self) -> "Span":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        pass


UNTRACED: Final = Span()


class Tracer:
    """Makes the spans of runs: this one those that record nothing."""

    records = False

    def run(self, parent: TraceParent | None, name: str, attributes: Attributes) -> Span:
        """The span of a run, begun now. `parent` is the caller's; without one it begins a trace."""
        return UNTRACED if parent is None else Span(parent)

    async def close(self) -> None:
        """Send what was recorded, for at most 2 s."""
