"""What went wrong, for people and for scripts: gRPC statuses and our own, in one form with one exit code."""

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Final

import grpc
from google.protobuf.message import DecodeError
from google.rpc import error_details_pb2, status_pb2

FUNCTION_FAILED: Final = 1
USAGE: Final = 2
REFUSED: Final = 3
UNAVAILABLE: Final = 4

RUN_REASONS: Final = frozenset(
    (
        *("FUNCTION_EXCEPTION", "FUNCTION_LOAD_FAILED", "NEVER_SETTLES", "SANDBOX_CRASHED", "CANCELLED"),
        *("WALL_CLOCK_LIMIT", "CPU_LIMIT", "MEMORY_LIMIT", "FETCH_CALL_LIMIT", "FUEL_LIMIT", "STACK_LIMIT"),
        *("RESULT_SIZE_LIMIT", "RESULT_TOO_MANY_VALUES", "RESPONSE_HEADER_INVALID", "RESPONSE_HEADERS_TOO_LARGE"),
    )
)
"""Reasons that say how a run ended: the function failed, and the API did its work."""

_OURS: Final = frozenset(("UNAVAILABLE", "INTERNAL", "UNKNOWN", "DEADLINE_EXCEEDED", "DATA_LOSS"))
_DETAILS: Final = "grpc-status-details-bin"
_PLACE = re.compile(r"(?:^|; )(\d{1,9}):(\d{1,9}): ")


@dataclass(eq=False)
class Problem(Exception):
    """Ends the command. `fields` are (field, description) of bad input; `hint` says what to do."""

    message: str
    exit_code: int = REFUSED
    hint: str = ""
    code: str = ""
    reason: str = ""
    metadata: Mapping[str, str] = field(default_factory=dict)
    fields: tuple[tuple[str, str], ...] = ()
    details: str = ""  # more lines for people: a stack, a compiler's report
    source: tuple[str, str] | None = None  # name and text of the file whose compilation failed

    def __str__(self) -> str:
        return self.message

    def document(self) -> dict[str, Any]:
        """`{"error": …}` as `--json` prints it."""
        told: dict[str, Any] = {"message": self.message, "exit_code": self.exit_code}
        for name in ("code", "reason", "hint", "details"):
            if value := getattr(self, name):
                told[name] = value
        if self.metadata:
            told["metadata"] = dict(self.metadata)
        if self.fields:
            told["fields"] = [{"field": name, "description": text} for name, text in self.fields]
        return {"error": told}


def problem_of(error: grpc.RpcError, url: str) -> Problem:
    """What a call that failed is told as. `url` is where it went."""
    assert isinstance(error, grpc.Call)
    status, message = error.code().name, error.details() or ""
    reason, metadata, fields = "", {}, []
    for detail in _details(error):
        if isinstance(detail, error_details_pb2.ErrorInfo):
            reason, metadata = detail.reason, dict(detail.metadata)
        elif isinstance(detail, error_details_pb2.BadRequest):
            fields += [(item.field, item.description) for item in detail.field_violations]
    problem = Problem(
        message=message or status.lower().replace("_", " "),
        exit_code=exit_code(status, reason),
        code=status.lower(),
        reason=reason,
        metadata=metadata,
        fields=tuple(fields),
        details=metadata.get("stack", ""),
    )
    if not reason:
        _explain(problem, status, url)
    return problem


def exit_code(status: str, reason: str) -> int:
    """Of a gRPC status by name and the reason that came with it, if one did."""
    if reason in RUN_REASONS:
        return FUNCTION_FAILED
    return UNAVAILABLE if status in _OURS else REFUSED


def diagnostics(message: str) -> Iterator[tuple[int, int, str]]:
    """(line, column, text) of each problem in the message of a compilation that failed."""
    _, *parts = _PLACE.split(message.removeprefix("Compilation failed: "))
    for line, column, text in zip(parts[::3], parts[1::3], parts[2::3], strict=True):
        yield int(line), int(column), text


def _explain(problem: Problem, status: str, url: str) -> None:
    """A status that gRPC or a proxy made, not the service, in terms of what its reader can do."""
    if status == "UNAVAILABLE":
        problem.message = f"{url} cannot be reached: {problem.message}"
        problem.hint = "is the server running (`make run`), and is this its address (--url, ATLAS_URL)?"
    elif status == "DEADLINE_EXCEEDED":
        problem.message = f"{url} did not answer in time"
    elif status == "UNIMPLEMENTED":
        problem.hint = "the server does not have this method; it may be older than this command line"


def _details(error: grpc.Call) -> Iterator[error_details_pb2.ErrorInfo | error_details_pb2.BadRequest]:
    for key, value in error.trailing_metadata() or ():
        if key != _DETAILS or not isinstance(value, bytes):
            continue
        try:
            status = status_pb2.Status.FromString(value)
        except DecodeError:
            continue
        for packed in status.details:
            for kind in (error_details_pb2.ErrorInfo, error_details_pb2.BadRequest):
                detail = kind()
                if packed.Is(kind.DESCRIPTOR) and packed.Unpack(detail):
                    yield detail
