"""Run a function by slug: resolve, bound, run, tell.

    slug ── Catalog ──▶ Program ── Engine.invoke(limits, HostApi of the project) ──▶ Result ──▶ caller, record, metrics

The project and its tier come from the caller's key. Cancelling `invoke` kills the run.
"""

import asyncio
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from datetime import datetime
from functools import partial
from typing import Final, Protocol
from uuid import uuid4

import orjson

from engines.contract import (
    BodyKind,
    Engine,
    Host,
    Invocation,
    LimitHit,
    Limits,
    LogLine,
    Metrics,
    Outcome,
    Result,
)
from engines.runtimes import EngineNotReady
from engines.sourcemap import CODE_FILE, MOST_PLACES, translate_stack
from engines.value import value
from server.clock import Clock, SystemClock
from server.errors import AtlasError, NotFound, Unavailable, Unimplemented
from server.fields import shown
from server.functions.catalog import Catalog, Resolved
from server.functions.compiling import not_ready
from server.functions.outcomes import error_of
from server.functions.records import Function
from server.host.origin import Origin, origin_of
from server.host.run_transaction import RunTransaction
from server.invocations.concurrency import NoSlot, Slots
from server.invocations.exactly_once import BY_HAND, run_once
from server.invocations.observation import Observer
from server.runs.record import Run, RunError, cancelled, finished
from server.runs.recorder import Sink
from server.runs.running import Running
from server.settings import Settings
from server.telemetry.tracing import Span
from server.tiers import Tier, limits_of

FAULT: Final = Result(outcome=Outcome.CRASHED)
FAULT_TOLD: Final = RunError(reason="INTERNAL_FAULT", message="Something failed on our side while it ran")


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """What the function sees as `ctx.request`. Header names are in lower case; of a repeated query name, the last."""

    method: str = "POST"
    path: str = ""
    query: Mapping[str, str] = field(default_factory=dict)
    headers: Mapping[str, str] = field(default_factory=dict)


@value(kw_only=True)
class Body:
    """The function's input: JSON text, other text, or bytes."""

    kind: BodyKind
    data: bytes


@value(kw_only=True)
class Call:
    """Who wants which function run, with what, and what is known of the asking."""

    project_id: str
    tier: Tier | None
    slug: str
    body: Body
    request: Request
    function_id: str | None = None  # the function that is meant, if that is known: the slug may be another's now
    event: bytes | None = None  # JSON text: what the function sees as `ctx.event`
    trigger: str = "http"  # or `grpc`, `async`, the id of a trigger
    request_id: str = ""
    traceparent: str = ""  # the W3C header of who asked
    accepted_at: datetime | None = None  # now when None
    run_id: str = field(default_factory=lambda: str(uuid4()))


@value()
class Finished:
    """A run that ended OK."""

    run_id: str
    result: Result


class Hosts(Protocol):
    """Makes the capabilities of one invocation: `server.host.api.HostApi`."""

    def run_transaction(self, project_id: str, origin: Origin, *, repeated: bool) -> RunTransaction: ...

    def for_invocation(
        self, project_id: str, limits: Limits, span: Span, origin: Origin, whole: RunTransaction | None
    ) -> Host: ...


class Invoker:
    def __init__(
        self,
        *,
        catalog: Catalog,
        engines: Mapping[str, Engine],
        hosts: Hosts,
        settings: Settings,
        slots: Slots,
        running: Running,
        sink: Sink,
        observer: Observer,
        clock: Clock | None = None,
    ) -> None:
        self._catalog = catalog
        self._engines = engines
        self._hosts = hosts
        self._slots = slots
        self._running = running
        self._sink = sink
        self._observer = observer
        self._clock = clock or SystemClock()
        self._limits: dict[Tier | None, Limits] = {
            tier: limits_of(tier, settings) for tier in (None, "free", "pro", "enterprise")
        }

    async def invoke(self, call: Call) -> Finished:
        """A run that ended OK; every other outcome is raised as the error its caller is told, with its `run_id`.

        NotFound when the project has no function of that slug, or not the one that is meant. However a run ends, a
        record of it goes to the sink.
        """
        resolved = await self._catalog.resolve(call.project_id, call.slug)
        if call.function_id not in (None, resolved.function.id):
            raise _replaced(call.slug)
        with self._observer.run(resolved, call.run_id, call.traceparent) as observed:
            run = self._begun(call, resolved.function, observed.span.trace_id)
            try:
                result = await self._running.guard(run, self._run(call, resolved, observed.span))
            except asyncio.CancelledError:
                self._sink.add(cancelled(run, at=self._clock.now()))
                raise
            except AtlasError as why:  # it could not even be started
                outcome = Outcome.OVERLOADED if isinstance(why, Unavailable) else Outcome.LOAD_FAILED
                told = RunError(reason=why.reason, message=why.message)
                self._sink.add(finished(run, Result(outcome=outcome), told, at=self._clock.now()))
                why.metadata["run_id"] = call.run_id
                raise
            except Exception:
                self._sink.add(finished(run, FAULT, FAULT_TOLD, at=self._clock.now()))
                raise
            observed.ended(result)
        if result.logs or result.error is not None:
            result = _in_source_terms(result, resolved.source_map)
        if result.outcome is Outcome.OK:
            self._sink.add(finished(run, result, at=self._clock.now()))
            return Finished(call.run_id, result)
        error = error_of(result)
        told = RunError(reason=error.reason, message=error.message, stack=error.metadata.get("stack", ""))
        self._sink.add(finished(run, result, told, at=self._clock.now()))
        error.metadata["run_id"] = call.run_id
        raise error

    def _begun(self, call: Call, function: Function, trace_id: str) -> Run:
        return Run(
            id=call.run_id,
            project_id=call.project_id,
            function_id=function.id,
            slug=function.slug,
            version=function.version,
            runtime=function.runtime,
            trigger=call.trigger,
            created_at=call.accepted_at or self._clock.now(),
            request_id=call.request_id,
            trace_id=trace_id,
        )

    async def _run(self, call: Call, resolved: Resolved, span: Span) -> Result:
        function = resolved.function
        engine = self._engines.get(function.runtime)
        if engine is None:
            raise Unimplemented(
                f'The runtime "{function.runtime}" of this function is not served here',
                reason="RUNTIME_UNAVAILABLE",
                metadata={"runtime": function.runtime},
            )
        limits = resolved.limits_for(self._limits[call.tier])
        origin = origin_of(call.run_id, call.event)
        whole: RunTransaction | None = None
        if function.exactly_once:
            whole = self._hosts.run_transaction(call.project_id, origin, repeated=call.trigger not in BY_HAND)
        host = self._hosts.for_invocation(call.project_id, limits, span, origin, whole)
        invocation = _invocation(call, resolved.env_json)
        run = partial(engine.invoke, resolved.program, invocation, limits, host)
        if whole is not None:
            run = partial(run_once, whole, run)
        at_most = function.settings.concurrency
        try:
            if at_most is None:
                return await run()
            async with self._slots.hold(function.id, at_most, limits.wall_ms):
                return await run()
        except EngineNotReady as why:
            raise not_ready(function.runtime, why) from why
        except NoSlot as why:
            hit = LimitHit(limit="queue", used=why.waited_ms, allowed=why.waited_ms, unit="ms")
            return Result(outcome=Outcome.OVERLOADED, limit=hit, metrics=Metrics(queue_ms=why.waited_ms))


def _invocation(call: Call, env_json: bytes) -> Invocation:
    context = {
        "request": {
            "method": call.request.method,
            "path": call.request.path,
            "query": call.request.query,
            "headers": call.request.headers,
        },
        "invocation_id": call.run_id,
        "project_id": call.project_id,
    }
    event = b"" if call.event is None else b',"event":' + call.event
    told = orjson.dumps(context)[:-1] + event + b',"env":' + env_json + b"}"
    return Invocation(id=call.run_id, input=call.body.data, input_kind=call.body.kind, context=told)


def _replaced(slug: str) -> NotFound:
    return NotFound(
        f"The function that was meant is deleted; {shown(slug)} is another one now",
        reason="FUNCTION_NOT_FOUND",
        metadata={"slug": slug[:100]},
    )


def _in_source_terms(result: Result, source_map: bytes | None) -> Result:
    """The result with the places in its stack and in its logs pointing into the source that was deployed."""
    if source_map is None:
        return result
    error = result.error
    if error is not None and error.stack:
        error = replace(error, stack=translate_stack(error.stack, source_map))
    return replace(result, error=error, logs=tuple(_located(result.logs, source_map)))


def _located(logs: tuple[LogLine, ...], source_map: bytes) -> Iterator[LogLine]:
    """The lines with their places translated, as long as there are not more of them than of one stack."""
    left = MOST_PLACES
    for line in logs:
        places = line.text.count(CODE_FILE)
        left -= places
        yield replace(line, text=translate_stack(line.text, source_map)) if places and left >= 0 else line
