"""Run a function by slug: resolve, bound, run, tell.

    slug ── Catalog ──▶ Program ── Engine.invoke(limits of the tier, HostApi of the project) ──▶ Result

The project and its tier come from the caller's key. Cancelling `invoke` kills the run.
"""

import asyncio
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Final, Protocol
from uuid import uuid4

import orjson

from engines.contract import BodyKind, Engine, Host, Invocation, Limits, LogLine, Outcome, Result
from engines.sourcemap import CODE_FILE, MOST_PLACES, translate_stack
from server.errors import Unimplemented
from server.functions.catalog import Catalog, Resolved
from server.functions.outcomes import error_of
from server.log import logger
from server.settings import Settings
from server.tiers import Tier, limits_of

log = logger("functions")

LINES_AT_ONCE: Final = 20
"""Of a run's console output; a line takes some 15 µs of the event loop, and there may be 4,000."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """What the function sees as `ctx.request`. Header names are in lower case; of a repeated query name, the last."""

    method: str = "POST"
    path: str = ""
    query: Mapping[str, str] = field(default_factory=dict)
    headers: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class Body:
    """The function's input: JSON text, other text, or bytes."""

    kind: BodyKind
    data: bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class Call:
    """Who wants which function run, with what, and what is known of the asking."""

    project_id: str
    tier: Tier | None
    slug: str
    body: Body
    request: Request
    trigger: str = "http"  # or `grpc`, `async`, the id of a trigger
    request_id: str = ""
    traceparent: str = ""  # W3C, checked
    run_id: str = field(default_factory=lambda: str(uuid4()))


@dataclass(frozen=True, slots=True)
class Finished:
    """A run that ended OK."""

    run_id: str
    result: Result


class Hosts(Protocol):
    """Makes the capabilities of one invocation: `server.host.api.HostApi`."""

    def for_invocation(self, project_id: str, limits: Limits) -> Host: ...


class Invoker:
    def __init__(self, *, catalog: Catalog, engines: Mapping[str, Engine], hosts: Hosts, settings: Settings) -> None:
        self._catalog = catalog
        self._engines = engines
        self._hosts = hosts
        self._limits: dict[Tier | None, Limits] = {
            tier: limits_of(tier, settings) for tier in (None, "free", "pro", "enterprise")
        }

    async def invoke(self, call: Call) -> Finished:
        """A run that ended OK; every other outcome is raised as the error its caller is told, with its `run_id`.

        NotFound when the project has no function of that slug.
        """
        resolved = await self._catalog.resolve(call.project_id, call.slug)
        engine = self._engines.get(resolved.function.runtime)
        if engine is None:
            raise Unimplemented(
                f'The runtime "{resolved.function.runtime}" of this function is not served here',
                reason="RUNTIME_UNAVAILABLE",
                metadata={"runtime": resolved.function.runtime},
            )
        limits = self._limits[call.tier]
        result = await engine.invoke(
            resolved.program, _invocation(call), limits, self._hosts.for_invocation(call.project_id, limits)
        )
        if result.logs or result.error is not None:
            result = _in_source_terms(result, resolved.source_map)
            await _log_output(resolved, call.run_id, result)
        if result.outcome is Outcome.OK:
            return Finished(call.run_id, result)
        error = error_of(result)
        error.metadata["run_id"] = call.run_id
        raise error


def _invocation(call: Call) -> Invocation:
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
    return Invocation(id=call.run_id, input=call.body.data, input_kind=call.body.kind, context=orjson.dumps(context))


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


async def _log_output(resolved: Resolved, invocation_id: str, result: Result) -> None:
    run = {
        "function": resolved.function.slug,
        "version": resolved.function.version,
        "project_id": resolved.function.project_id,
        "invocation_id": invocation_id,
    }
    for number, line in enumerate(result.logs, 1):
        log.info("function.log", line.text, console=line.level, at_ms=round(line.at_ms, 3), **run)
        if number % LINES_AT_ONCE == 0:
            await asyncio.sleep(0)
    if result.logs_truncated:
        log.info("function.log_cut", "The run wrote more than is kept of its console; the rest was dropped", **run)
