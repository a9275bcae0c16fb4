"""What operators see of runs: each is counted and timed, and a span while it lasts.

with observer.run(resolved, run_id, traceparent) as run:
    run.ended(await engine.invoke(…, hosts.for_invocation(…, run.span)))
"""

import asyncio
from collections.abc import Mapping
from types import TracebackType
from typing import Final

from engines.contract import Engine, Outcome, Result
from server.functions.catalog import Resolved
from server.telemetry.correlation import trace_parent
from server.telemetry.metrics import Metrics
from server.telemetry.tracing import Span, Tracer

FAULT: Final = "fault"
"""The outcome that is counted when running failed by a fault of ours, which has no Outcome."""


class Run:
    """One run. Its block ends it: `ended` tells how, else it was cancelled or there was a fault of ours."""

    __slots__ = ("_metrics", "_result", "_runtime", "span")

    def __init__(self, metrics: Metrics, runtime: str, span: Span) -> None:
        self.span = span
        self._metrics = metrics
        self._runtime = runtime
        self._result: Result | None = None

    def ended(self, result: Result) -> None:
        self._result = result

    def __enter__(self) -> "Run":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        result, runtime, metrics = self._result, self._runtime, self._metrics
        if result is None:
            outcome = Outcome.CANCELLED if isinstance(error, asyncio.CancelledError) else FAULT
            metrics.invocations(runtime, outcome).add()
            with self.span:
                self.span.tell({"atlas.outcome": str(outcome)})
                self.span.fail(str(outcome))
            return
        used = result.metrics
        metrics.invocations(runtime, result.outcome).add()
        if result.outcome is not Outcome.CANCELLED:  # what it used is not known then
            metrics.queue_s(runtime).observe(used.queue_ms / 1000)
            if result.outcome is not Outcome.OVERLOADED:
                metrics.boot_s(runtime).observe(used.boot_ms / 1000)
                metrics.invocation_s(runtime).observe(used.wall_ms / 1000)
        with self.span:
            if self.span.place is not None:
                _tell(self.span, result)


class Observer:
    """Of one process. Without arguments nobody sees what it counts, and it records no spans."""

    def __init__(self, metrics: Metrics | None = None, tracer: Tracer | None = None) -> None:
        self._metrics = metrics or Metrics()
        self._tracer = tracer or Tracer()

    def run(self, resolved: Resolved, run_id: str, traceparent: str = "") -> Run:
        """A run that begins now; `traceparent` is the header of who asked for it, or empty."""
        function = resolved.function
        attributes: dict[str, str] = {}
        if self._tracer.records:
            attributes = {
                "faas.name": function.slug,
                "faas.version": str(function.version),
                "faas.invocation_id": run_id,
                "atlas.project_id": function.project_id,
                "atlas.runtime": function.runtime,
            }
        span = self._tracer.run(trace_parent(traceparent), f"invoke {function.slug}", attributes)
        return Run(self._metrics, function.runtime, span)


class Sandboxes:
    """The engines' children by state, and how many died. `sample` is to be called about every second."""

    def __init__(self, metrics: Metrics, engines: Mapping[str, Engine]) -> None:
        self._metrics = metrics
        self._engines = engines

    async def sample(self) -> None:
        for runtime, engine in self._engines.items():
            report = engine.report()
            children, crashes = report.get("children"), report.get("crashes")
            if isinstance(children, dict):
                for state, count in children.items():
                    self._metrics.children(runtime, state).set(count)
            if isinstance(crashes, int):
                self._metrics.crashes(runtime).follow(crashes)


def _tell(span: Span, result: Result) -> None:
    used = result.metrics
    span.tell(
        {
            "atlas.outcome": str(result.outcome),
            "atlas.queue_ms": used.queue_ms,
            "atlas.boot_ms": used.boot_ms,
            "atlas.run_ms": used.wall_ms,
            "atlas.memory_bytes": used.memory_bytes,
            "atlas.host_calls": used.host_calls,
        }
    )
    if used.fuel_consumed is not None:
        span.tell({"atlas.fuel_consumed": used.fuel_consumed})
    if result.outcome is not Outcome.OK:
        span.fail(str(result.outcome))
