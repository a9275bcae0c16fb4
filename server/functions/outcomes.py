"""From the Outcome of a run to what its caller is told. One table; RPC status codes follow from the error's class."""

from typing import Final

from engines.contract import Metrics, Outcome, Result
from server.errors import (
    AtlasError,
    Cancelled,
    DeadlineExceeded,
    FunctionFailed,
    Internal,
    ResourceExhausted,
    Unavailable,
)

FAILED_STATUS: Final = 400
"""A Response of this status or a higher one is a failure, for who cannot be answered with it."""

RETRY_AFTER_MS: Final = 1_000
"""What an overloaded server asks callers to wait; long enough for a wave of short runs to drain."""

TABLE: Final[dict[Outcome, tuple[type[AtlasError], str, str]]] = {
    Outcome.EXCEPTION: (FunctionFailed, "FUNCTION_EXCEPTION", "The function threw {error}"),
    Outcome.LOAD_FAILED: (FunctionFailed, "FUNCTION_LOAD_FAILED", "The function could not be loaded: {error}"),
    Outcome.NEVER_SETTLES: (
        FunctionFailed,
        "NEVER_SETTLES",
        "The function's promise can never settle: nothing it waits for is in flight",
    ),
    Outcome.WALL_LIMIT: (
        DeadlineExceeded,
        "WALL_CLOCK_LIMIT",
        "Function timeout: it ran for {used} of {allowed} of wall clock; make it faster or upgrade the tier",
    ),
    Outcome.CPU_LIMIT: (
        ResourceExhausted,
        "CPU_LIMIT",
        "The function used {used} of {allowed} of CPU time; make it faster or upgrade the tier",
    ),
    Outcome.MEMORY_LIMIT: (
        ResourceExhausted,
        "MEMORY_LIMIT",
        "The function needs more memory than {allowed}; use less or upgrade the tier",
    ),
    Outcome.FETCH_LIMIT: (
        ResourceExhausted,
        "FETCH_CALL_LIMIT",
        "The function made {used} of {allowed} to atlas.fetch; make fewer or upgrade the tier",
    ),
    Outcome.FUEL_LIMIT: (
        ResourceExhausted,
        "FUEL_LIMIT",
        "The function used {used} of {allowed} of fuel; make it do less or upgrade the tier",
    ),
    Outcome.STACK_LIMIT: (
        ResourceExhausted,
        "STACK_LIMIT",
        "The function's recursion is deeper than the engine's stack; make it shallower",
    ),
    Outcome.RESULT_LIMIT: (
        ResourceExhausted,
        "RESULT_SIZE_LIMIT",
        "The function returned {used}, allowed are {allowed}; return less",
    ),
    Outcome.CRASHED: (Internal, "SANDBOX_CRASHED", "The sandbox of this run died; other runs were not affected"),
    Outcome.CANCELLED: (Cancelled, "CANCELLED", "The run was cancelled"),
    Outcome.OVERLOADED: (
        Unavailable,
        "OVERLOADED",
        "No room to run it became free within {allowed}; try again in a second",
    ),
}


def error_of(result: Result) -> AtlasError:
    """What the caller of a run that did not end OK is told, with metrics in the metadata."""
    error_class, reason, template = TABLE[result.outcome]
    metadata = _metrics(result.metrics)
    thrown = ""
    if result.error is not None:
        thrown = f"{result.error.name}: {result.error.message}" if result.error.message else result.error.name
        metadata |= {"name": result.error.name, "stack": result.error.stack}
        if result.error.code is not None:
            metadata["code"] = result.error.code
    used = allowed = ""
    if (hit := result.limit) is not None:
        used, allowed = quantity(hit.used, hit.unit), quantity(hit.allowed, hit.unit)
        metadata |= {"limit": hit.limit, "used": _number(hit.used), "allowed": _number(hit.allowed), "unit": hit.unit}
    return error_class(
        template.format(error=thrown, used=used, allowed=allowed),
        reason=reason,
        metadata={name: value for name, value in metadata.items() if value},
        retry_after_ms=RETRY_AFTER_MS if result.outcome is Outcome.OVERLOADED else None,
    )


def quantity(amount: float, unit: str) -> str:
    """A number with its unit as people read it: `5 s`, `16 MiB`, `6 calls`."""
    if unit == "ms":
        return f"{amount / 1000:.3g} s" if amount >= 1000 else f"{amount:.3g} ms"
    if unit == "bytes":
        return f"{amount / 2**20:.3g} MiB" if amount >= 2**20 else f"{amount:.0f} bytes"
    return f"{amount:.0f} {unit.removesuffix('s') if amount == 1 else unit}"


def _metrics(metrics: Metrics) -> dict[str, str]:
    return {"wall_ms": f"{metrics.wall_ms:.3f}", "memory_bytes": str(metrics.memory_bytes)}


def _number(amount: float) -> str:
    return f"{amount:.3f}".rstrip("0").rstrip(".")
