"""One invocation in a sandbox, from the request to its Result: what it used, what was decided, who waits for it."""

import asyncio
import os
from collections.abc import Iterable
from typing import Final

from engines.children import Key, Request, Shape
from engines.contract import (
    Host,
    Invocation,
    LimitHit,
    Limits,
    LogLine,
    Metrics,
    Outcome,
    Program,
    Response,
    Result,
    ScriptError,
)
from engines.messages import Failed, Meta, Returned

LOAD_CPU_MS: Final = 2_000
"""What a child allows a module's top level; engines/quickjs/child.py has the same figure."""

_CORES: Final = os.cpu_count() or 1


class Run(Request):
    """A request for a child, and what became of it.

    It is over in two steps: `end` fixes the Result and cancels host calls that are still out; `future` resolves when
    the last of them has ended.
    """

    __slots__ = (
        "boot_ms",
        "call_bytes",
        "calls",
        "future",
        "host",
        "host_calls",
        "invocation",
        "limits",
        "program",
        "queue_ms",
        "refused_fetches",
        "result",
        "settled",
        "started_ms",
        "tries",
        "verdict",
    )

    def __init__(
        self,
        key: Key,
        program: Program,
        invocation: Invocation | None,
        limits: Limits,
        host: Host | None,
        now_ms: float,
        future: "asyncio.Future[Result]",
        shape: Shape = (),
    ) -> None:
        super().__init__(key, now_ms, shape, size_bytes=len(invocation.input) if invocation else 0)
        self.program = program
        self.invocation = invocation  # None: only load it
        self.limits = limits
        self.host = host
        self.future = future
        self.calls: dict[int, asyncio.Task[None]] = {}  # host calls in flight
        self.call_bytes = 0  # of their arguments
        self.host_calls = 0
        self.refused_fetches = 0
        self.queue_ms = 0.0
        self.boot_ms = 0.0
        self.started_ms = 0.0
        self.tries = 0  # children that were killed under it before it began
        self.verdict: Outcome | None = None  # decided by the supervisor; whatever the child still says is too late
        self.result: Result | None = None
        self.settled = False

    def end(self, result: Result) -> None:
        """Fix the result. Host calls in flight are cancelled; the caller learns it when they have ended."""
        self.result = result
        if self.calls:
            for task in self.calls.values():
                task.cancel()
        else:
            self._settle(result)

    def call_ended(self, call: int, size_bytes: int, task: "asyncio.Task[None]") -> None:
        """A host call's task is over, whichever way."""
        del self.calls[call]
        self.call_bytes -= size_bytes
        if self.result is not None and not self.calls:
            self._settle(self.result)

    def _settle(self, result: Result) -> None:
        self.settled = True
        if not self.future.done():
            self.future.set_result(result)

    def returned(self, event: Returned, now_ms: float) -> Result:
        """The result of a run that came to its end in the sandbox."""
        metrics = self._metrics(event.meta, now_ms)
        logs, truncated = self._logs(event.meta)
        size_bytes = len(event.value if event.response is None else event.response.body)
        if size_bytes > self.limits.result_bytes:
            limit = LimitHit(limit="result_size", used=size_bytes, allowed=self.limits.result_bytes, unit="bytes")
            return Result(
                outcome=Outcome.RESULT_LIMIT, limit=limit, metrics=metrics, logs=logs, logs_truncated=truncated
            )
        response: Response | None = event.response
        return Result(
            outcome=Outcome.OK,
            value=event.value,
            response=response,
            metrics=metrics,
            logs=logs,
            logs_truncated=truncated,
        )

    def failed(self, event: Failed, now_ms: float) -> Result:
        """The result of a run that the sandbox itself called a failure."""
        outcome, limits = event.outcome, self.limits
        limit: LimitHit | None = None
        metrics = self._metrics(event.meta, now_ms)
        match outcome:
            case Outcome.EXCEPTION if self.refused_fetches and event.error and event.error.code == "fetch_limit":
                outcome = Outcome.FETCH_LIMIT
                used = limits.fetch_calls + self.refused_fetches
                limit = LimitHit(limit="fetch_calls", used=used, allowed=limits.fetch_calls, unit="calls")
            case Outcome.CPU_LIMIT:
                cpu_ms = metrics.cpu_ms if event.used is None else event.used
                allowed_ms = limits.cpu_ms if self.started_ms else LOAD_CPU_MS
                limit = LimitHit(limit="cpu", used=cpu_ms, allowed=allowed_ms, unit="ms")
            case Outcome.MEMORY_LIMIT:
                memory_bytes = metrics.memory_bytes if event.used is None else event.used
                limit = LimitHit(limit="memory", used=memory_bytes, allowed=limits.memory_bytes, unit="bytes")
            case Outcome.FUEL_LIMIT:
                fuel = limits.fuel if event.used is None else event.used
                limit = LimitHit(limit="fuel", used=fuel, allowed=limits.fuel, unit="units")
            case Outcome.STACK_LIMIT:
                used_bytes = 0.0 if event.used is None else event.used
                limit = LimitHit(limit="stack", used=used_bytes, allowed=used_bytes, unit="bytes")
            case Outcome.WALL_LIMIT:
                used_ms = max(metrics.wall_ms, limits.wall_ms)
                limit = LimitHit(limit="wall_clock", used=used_ms, allowed=limits.wall_ms, unit="ms")
            case Outcome.RESULT_LIMIT:
                size_bytes = limits.result_bytes + 1 if event.used is None else event.used
                limit = LimitHit(limit="result_size", used=size_bytes, allowed=limits.result_bytes, unit="bytes")
        logs, truncated = self._logs(event.meta)
        return Result(
            outcome=outcome, error=event.error, limit=limit, metrics=metrics, logs=logs, logs_truncated=truncated
        )

    def stopped(
        self,
        outcome: Outcome,
        now_ms: float,
        *,
        cpu_ms: float = 0.0,
        memory_bytes: int = 0,
        error: ScriptError | None = None,
        meta: Meta | None = None,
    ) -> Result:
        """The result of a run that was ended from outside, or that never began."""
        limits = self.limits
        begun_ms = self.started_ms or self.queued_ms + self.queue_ms
        limit: LimitHit | None = None
        match outcome:
            case Outcome.WALL_LIMIT:
                used_ms = max(now_ms - begun_ms, limits.wall_ms)
                limit = LimitHit(limit="wall_clock", used=used_ms, allowed=limits.wall_ms, unit="ms")
            case Outcome.CPU_LIMIT:
                limit = LimitHit(
                    limit="cpu", used=cpu_ms, allowed=limits.cpu_ms if self.started_ms else LOAD_CPU_MS, unit="ms"
                )
            case Outcome.MEMORY_LIMIT:
                limit = LimitHit(limit="memory", used=memory_bytes, allowed=limits.memory_bytes, unit="bytes")
        wall_ms = now_ms - self.started_ms if self.started_ms else 0.0
        metrics = Metrics(
            wall_ms=wall_ms,
            cpu_ms=cpu_ms,
            memory_bytes=memory_bytes,
            queue_ms=self.queue_ms,
            boot_ms=self.boot_ms,
            host_calls=self.host_calls,
            fuel_consumed=meta.fuel if meta else None,
        )
        logs, truncated = self._logs(meta) if meta else ((), False)
        return Result(outcome=outcome, error=error, limit=limit, metrics=metrics, logs=logs, logs_truncated=truncated)

    def refused(self, now_ms: float, allowed_ms: float) -> Result:
        """No child was free before the queue's deadline, or the queue is full."""
        waited_ms = now_ms - self.queued_ms
        return Result(
            outcome=Outcome.OVERLOADED,
            limit=LimitHit(limit="queue", used=waited_ms, allowed=allowed_ms, unit="ms"),
            metrics=Metrics(queue_ms=waited_ms),
        )

    def _metrics(self, meta: Meta, now_ms: float) -> Metrics:
        """Times as the child tells them, as far as they can be true."""
        observed_ms = now_ms - (self.started_ms or self.queued_ms)
        return Metrics(
            wall_ms=min(meta.wall_us / 1000, observed_ms) if self.started_ms else 0.0,
            cpu_ms=min(meta.cpu_us / 1000, observed_ms * _CORES),
            memory_bytes=meta.memory_bytes,
            queue_ms=self.queue_ms,
            boot_ms=self.boot_ms,
            host_calls=self.host_calls,
            fuel_consumed=meta.fuel,
        )

    def _logs(self, meta: Meta) -> tuple[tuple[LogLine, ...], bool]:
        if not meta.logs:
            return (), meta.truncated
        kept = list(_first_bytes(meta.logs, self.limits.log_bytes))
        return tuple(kept), meta.truncated or len(kept) < len(meta.logs)


def _first_bytes(lines: Iterable[LogLine], most_bytes: int) -> Iterable[LogLine]:
    for line in lines:
        most_bytes -= len(line.text.encode())
        if most_bytes < 0:
            return
        yield line
