"""Spans at a real OTLP/HTTP collector: linked to the caller's, and of no weight when the collector is away."""

import asyncio
import json
import logging
import re
import subprocess
import sys
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from ipaddress import ip_network
from types import SimpleNamespace
from typing import Any

import orjson
import pytest
from aiohttp import web
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import (
    ExportTraceServiceRequest,
    ExportTraceServiceResponse,
)

from engines.contract import HostError, Limits, Metrics, Outcome, Result
from server.host.api import HostApi
from server.host.database import Database
from server.host.fetch import Fetcher
from server.host.keyvalue import KeyValue
from server.invocations.observation import Observer
from server.settings import Settings
from server.telemetry.correlation import trace_parent
from server.telemetry.tracers import tracer
from server.telemetry.tracing import Tracer

TRACE, CALLER = "4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7"
SAMPLED = f"00-{TRACE}-{CALLER}-01"
UNSAMPLED = f"00-{TRACE}-{CALLER}-00"
LIMITS = Limits(wall_ms=10_000, cpu_ms=1_000, memory_bytes=1, fetch_calls=5)
FUNCTION = SimpleNamespace(slug="hello", version=3, project_id="p-1", runtime="quickjs")
RESOLVED: Any = SimpleNamespace(function=FUNCTION)


@dataclass
class Collector:
    """What came to a collector, and to a server that user code fetches from."""

    url: str = ""
    status: int = 200
    requests: int = 0
    spans: list[dict[str, Any]] = field(default_factory=list)
    fetched: list[dict[str, str]] = field(default_factory=list)
    holding: asyncio.Event = field(default_factory=asyncio.Event)

    async def take(self, request: web.Request) -> web.Response:
        self.requests += 1
        sent = ExportTraceServiceRequest.FromString(await request.read())
        if self.status == 0:
            await self.holding.wait()
        if self.status != 200:
            return web.Response(status=self.status or 500)
        for of_resource in sent.resource_spans:
            resource = {each.key: each.value.string_value for each in of_resource.resource.attributes}
            for scope in of_resource.scope_spans:
                self.spans += [_read(span, resource) for span in scope.spans]
        return web.Response(
            body=ExportTraceServiceResponse().SerializeToString(), content_type="application/x-protobuf"
        )

    async def answer(self, request: web.Request) -> web.Response:
        self.fetched.append(dict(request.headers))
        if request.path == "/from":
            return web.Response(status=302, headers={"location": "/to?secret=1"})
        return web.Response(status=418)

    def one(self, name: str) -> dict[str, Any]:
        (found,) = (span for span in self.spans if span["name"] == name)
        return found


def _read(span: Any, resource: dict[str, str]) -> dict[str, Any]:
    values = {each.key: getattr(each.value, str(each.value.WhichOneof("value"))) for each in span.attributes}
    return {
        "name": span.name,
        "trace": span.trace_id.hex(),
        "id": span.span_id.hex(),
        "parent": span.parent_span_id.hex(),
        "attributes": values,
        "failed": span.status.code == 2,
        "words": span.status.message,
        "events": len(span.events),
        "took_ms": (span.end_time_unix_nano - span.start_time_unix_nano) / 1e6,
        "resource": resource,
    }


@pytest.fixture
async def collector() -> AsyncIterator[Collector]:
    found = Collector()
    app = web.Application()
    app.router.add_post("/v1/traces", found.take)
    app.router.add_route("*", "/{path:.*}", found.answer)
    runner = web.AppRunner(app, shutdown_timeout=0.1)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    found.url = f"http://127.0.0.1:{runner.addresses[0][1]}"
    yield found
    found.holding.set()
    await runner.cleanup()


@pytest.fixture
async def tracing(collector: Collector) -> AsyncIterator[Tracer]:
    found = tracer(Settings(otlp_endpoint=collector.url), "api")
    yield found
    await found.close()


@pytest.fixture
async def api(database: Database, valkey_url: str) -> AsyncIterator[HostApi]:
    found = HostApi(database, KeyValue(valkey_url), Fetcher(allowed=[ip_network("127.0.0.0/8")]))
    yield found
    await found.keyvalue.close()
    await found.fetcher.close()


def result(outcome: Outcome = Outcome.OK) -> Result:
    used = Metrics(wall_ms=4.5, queue_ms=1.5, boot_ms=2.5, memory_bytes=300, host_calls=4, fuel_consumed=77)
    return Result(outcome=outcome, metrics=used)


async def call(host: Any, op: str, *args: object) -> Any:
    return orjson.loads(await host.call(op, orjson.dumps(args)))


async def test_a_run_and_its_calls_are_one_trace_below_the_caller(
    collector: Collector, tracing: Tracer, api: HostApi, shared_project: str
) -> None:
    with Observer(tracer=tracing).run(RESOLVED, "run-1", SAMPLED) as run:
        host = api.for_invocation(shared_project, LIMITS, run.span)
        await asyncio.gather(call(host, "db.query", "SELECT 1 AS n"), call(host, "kv.get", "k"))
        await call(host, "fetch", f"{collector.url}/from?token=secret", {"headers": [["x-a", "b"]]})
        with pytest.raises(HostError):
            await call(host, "db.query", "SELECT 'secret'::int")
        assert run.span.trace_id == TRACE
        run.ended(result())
    await tracing.close()

    invoke = collector.one("invoke hello")
    assert (invoke["trace"], invoke["parent"], invoke["failed"]) == (TRACE, CALLER, False)
    assert invoke["attributes"] == {
        "faas.name": "hello",
        "faas.version": "3",
        "faas.invocation_id": "run-1",
        "atlas.project_id": "p-1",
        "atlas.runtime": "quickjs",
        "atlas.outcome": "ok",
        "atlas.queue_ms": 1.5,
        "atlas.boot_ms": 2.5,
        "atlas.run_ms": 4.5,
        "atlas.memory_bytes": 300,
        "atlas.host_calls": 4,
        "atlas.fuel_consumed": 77,
    }
    assert invoke["resource"]["service.name"] == "atlas-functions"
    assert invoke["resource"]["atlas.process.role"] == "api"

    steps = [span for span in collector.spans if span is not invoke]
    assert sorted(span["name"] for span in steps) == ["db.query", "db.query", "fetch", "kv.get"]
    assert {(span["trace"], span["parent"]) for span in steps} == {(TRACE, invoke["id"])}
    assert sum(span["took_ms"] for span in steps) > 0
    good, bad = sorted((span for span in steps if span["name"] == "db.query"), key=lambda span: bool(span["failed"]))
    assert (good["failed"], good["attributes"]) == (False, {})
    assert (bad["failed"], bad["attributes"], bad["words"], bad["events"]) == (True, {"error.type": "sql_22P02"}, "", 0)
    assert "secret" not in json.dumps(collector.spans)

    fetch = collector.one("fetch")
    assert fetch["attributes"] == {
        "http.request.method": "GET",
        "server.address": "127.0.0.1",
        "server.port": int(collector.url.rpartition(":")[2]),
        "http.response.status_code": 418,
    }
    assert [sent["traceparent"] for sent in collector.fetched] == [f"00-{TRACE}-{fetch['id']}-01"] * 2
    assert not {"x-request-id", "tracestate"} & {name.lower() for sent in collector.fetched for name in sent}


async def test_without_a_caller_a_run_begins_a_trace(collector: Collector) -> None:
    tracing = tracer(Settings(otlp_endpoint=f"{collector.url}/v1/traces"), "worker")  # the whole address does as well
    with Observer(tracer=tracing).run(RESOLVED, "run-1") as run:
        trace_id = run.span.trace_id
        run.ended(result())
    await tracing.close()
    (invoke,) = collector.spans
    assert re.fullmatch(r"[0-9a-f]{32}", trace_id)
    assert (invoke["trace"], invoke["parent"]) == (trace_id, "")


async def test_a_caller_that_does_not_sample_is_obeyed_and_its_trace_goes_on(
    collector: Collector, tracing: Tracer, api: HostApi, shared_project: str
) -> None:
    with Observer(tracer=tracing).run(RESOLVED, "run-1", UNSAMPLED) as run:
        host = api.for_invocation(shared_project, LIMITS, run.span)
        await call(host, "fetch", collector.url)
        run.ended(result())
    await tracing.close()
    assert (collector.spans, collector.requests) == ([], 0)
    sent = trace_parent(collector.fetched[0]["traceparent"])
    assert sent is not None
    assert (sent.trace_id, sent.sampled) == (TRACE, False)


@pytest.mark.parametrize("outcome", [Outcome.EXCEPTION, Outcome.FUEL_LIMIT, Outcome.OVERLOADED])
async def test_a_run_that_ends_badly_says_how(collector: Collector, tracing: Tracer, outcome: Outcome) -> None:
    with Observer(tracer=tracing).run(RESOLVED, "run-1", SAMPLED) as run:
        run.ended(result(outcome))
    await tracing.close()
    (invoke,) = collector.spans
    assert invoke["failed"]
    assert invoke["attributes"]["atlas.outcome"] == invoke["attributes"]["error.type"] == str(outcome)


@pytest.mark.parametrize(
    ("error", "outcome"), [(asyncio.CancelledError(), "cancelled"), (RuntimeError("secret"), "fault")]
)
async def test_a_run_that_has_no_result_says_why(
    collector: Collector, tracing: Tracer, error: BaseException, outcome: str
) -> None:
    with pytest.raises(type(error)), Observer(tracer=tracing).run(RESOLVED, "run-1", SAMPLED):
        raise error
    await tracing.close()
    (invoke,) = collector.spans
    assert (invoke["failed"], invoke["attributes"]["atlas.outcome"]) == (True, outcome)
    assert "secret" not in json.dumps(collector.spans)


@pytest.mark.parametrize("own", [None, "00-" + "a" * 32 + "-" + "b" * 16 + "-01", "mine"])
async def test_without_an_endpoint_the_caller_s_parent_goes_on_unless_user_code_sets_one(
    collector: Collector, api: HostApi, shared_project: str, own: str | None
) -> None:
    off = tracer(Settings(), "api")
    options = {} if own is None else {"headers": [["Traceparent", own]]}
    with Observer(tracer=off).run(RESOLVED, "run-1", SAMPLED) as run:
        await call(api.for_invocation(shared_project, LIMITS, run.span), "fetch", collector.url, options)
        run.ended(result())
    assert [sent["traceparent"] for sent in collector.fetched] == [own or SAMPLED]


async def test_a_run_without_a_trace_sends_none(collector: Collector, api: HostApi, shared_project: str) -> None:
    with Observer().run(RESOLVED, "run-1", "no parent") as run:
        await call(api.for_invocation(shared_project, LIMITS, run.span), "fetch", collector.url)
        assert run.span.trace_id == ""
        run.ended(result())
    assert "traceparent" not in {name.lower() for name in collector.fetched[0]}


@pytest.mark.parametrize("status", [-1, 0, 400, 503])
async def test_a_collector_that_is_away_slow_or_broken_does_not_matter(
    collector: Collector, status: int, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """-1 refuses connections, 0 never answers."""
    caplog.set_level(logging.WARNING)
    monkeypatch.setattr("server.telemetry.otlp.FLUSH_S", 0.2)
    collector.status = status
    endpoint = "http://127.0.0.1:1" if status < 0 else collector.url
    away = tracer(Settings(otlp_endpoint=endpoint), "api")
    observer = Observer(tracer=away)
    began_s = time.monotonic()
    for _ in range(6_000):  # more than may wait
        with observer.run(RESOLVED, "run-1", SAMPLED) as run:
            run.ended(result())
    runs_s = time.monotonic() - began_s
    began_s = time.monotonic()
    await away.close()
    assert runs_s < 10.0  # it takes 0.3 s, and a collector that were waited for 5 s a batch
    assert time.monotonic() - began_s < 4.0  # OpenTelemetry's own end takes 30 s
    assert len(caplog.records) <= 3
    assert {vars(record).get("action") for record in caplog.records} <= {"tracing.lost", "tracing.cut"}


async def test_a_collector_that_comes_back_is_told_of(
    collector: Collector, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    caplog.set_level(logging.INFO, "atlas.tracing")
    monkeypatch.setattr("server.telemetry.otlp.SEND_EVERY_MS", 20)
    tracing = tracer(Settings(otlp_endpoint=collector.url), "api")
    observer, collector.status = Observer(tracer=tracing), 400

    async def run_until(action: str) -> None:
        async with asyncio.timeout(20):
            while action not in [vars(record).get("action") for record in caplog.records]:
                with observer.run(RESOLVED, "run-1", SAMPLED) as run:
                    run.ended(result())
                await asyncio.sleep(0.01)  # the thread that sends sets no event of ours

    await run_until("tracing.lost")
    collector.status = 200
    await run_until("tracing.back")
    await tracing.close()
    assert collector.spans


def test_what_a_process_may_never_need_is_not_imported() -> None:
    """Importing what sends spans, what renders metrics, or what runs Wasm takes 20 to 60 ms and megabytes each."""
    program = (
        "import sys, server.app, server.worker, server.stack.up;"
        "from server.settings import Settings; from server.telemetry.tracers import tracer; tracer(Settings(), 'api');"
        "print({'opentelemetry', 'prometheus_client', 'wasmtime'} & set(sys.modules))"
    )
    ended = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert ended.stdout == "set()\n"


def test_the_valkey_client_hides_opentelemetry_from_itself_alone() -> None:
    program = "import server.valkey, opentelemetry.trace; print(opentelemetry.trace.get_current_span())"
    subprocess.run([sys.executable, "-c", program], capture_output=True, check=True)
