"""Why a child died in the middle of a run: from what was decided about the run, and from how its process ended."""

import signal
from typing import Final

from engines.contract import Outcome, Result, ScriptError
from engines.kind import Kind
from engines.run import Run
from engines.zygote import Exit

_NOT_FOR_MEMORY: Final = frozenset({signal.SIGSYS, signal.SIGILL, signal.SIGTERM})


def result(run: Run, exit_: Exit, kind: Kind, *, cpu_before_ms: float, now_ms: float) -> Result:
    """How the run ended. `cpu_before_ms` is what its child had used before it."""
    outcome = run.verdict or _cause(run, exit_, kind)
    error: ScriptError | None = None
    if outcome is Outcome.CRASHED:
        how = exit_.signal.name if exit_.signal else f"status {exit_.status}"
        error = ScriptError(name="SandboxCrashed", message=f"The sandbox process ended with {how}")
    used_ms = max(0.0, exit_.cpu_ms - cpu_before_ms)
    return run.stopped(outcome, now_ms, cpu_ms=used_ms, memory_bytes=exit_.maxrss_bytes, error=error)


def is_blameless(run: Run, exit_: Exit, kind: Kind) -> bool:
    """Somebody killed its child, most likely the zygote's end, before it began: it may have another, once."""
    killed = run.verdict is None and run.result is None and exit_.signal is signal.SIGKILL
    return killed and not run.started_ms and not run.tries and exit_.maxrss_bytes < _full_bytes(run, kind)


def _cause(run: Run, exit_: Exit, kind: Kind) -> Outcome:
    if exit_.signal is signal.SIGXCPU:
        return Outcome.CPU_LIMIT
    if exit_.signal in kind.dies_of_memory:
        return Outcome.MEMORY_LIMIT
    if exit_.maxrss_bytes >= _full_bytes(run, kind) and exit_.signal not in _NOT_FOR_MEMORY:
        return Outcome.MEMORY_LIMIT
    return Outcome.CRASHED


def _full_bytes(run: Run, kind: Kind) -> int:
    return run.limits.memory_bytes + (kind.base_bytes if kind.is_sized or kind.is_apart else 0)
