"""RunService over a real gRPC channel: runs as messages, and tails as streams and as server-sent events."""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable
from datetime import timedelta
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast
from uuid import uuid4

import grpc
import orjson
import pytest
from google.protobuf.timestamp_pb2 import Timestamp

from atlas.runs.v1 import runs_pb2
from atlas.runs.v1 import runs_service_pb2 as pb
from atlas.runs.v1.runs_service_pb2_grpc import RunServiceStub, add_RunServiceServicer_to_server
from engines.contract import LogLine, Metrics, Result
from server.dispatch.stopped import StoppedEvents
from server.errors import NotFound
from server.events.bus import EventBus
from server.functions.catalog import Catalog
from server.postgres.control import Pool, transaction
from server.projects import Principal
from server.rpc.access import Gate
from server.rpc.boundary import Boundary
from server.rpc.runs import RunService
from server.rpc.values import timestamp
from server.runs import rows
from server.runs.peers import Peers
from server.runs.reader import Reader
from server.runs.record import RunError, RunRecord
from server.runs.recorder import Recorder
from server.runs.running import Running
from server.runs.tail import Tail
from tests.fix_runs import a_record, a_run, eventually

KEY = (("apikey", "k"),)
QUICK_S = 0.05
HELLO = str(uuid4())


class Keys:
    def __init__(self, project_id: str) -> None:
        self._principal = Principal(project_id=project_id, role="service", tier="free", key_id=str(uuid4()))

    async def authenticate(self, secret: str) -> Principal | None:
        return self._principal


class OneFunction:
    """A Catalog."""

    async def resolve(self, project_id: str, slug: str) -> Any:
        if slug != "hello":
            raise NotFound("no such function", reason="FUNCTION_NOT_FOUND")
        return SimpleNamespace(function=SimpleNamespace(id=HELLO))


class NoQueue:
    async def withdraw(self, project_id: str, run_id: str) -> RunRecord | None:
        return None


@pytest.fixture
def running() -> Running:
    return Running()


@pytest.fixture
async def recorder(bus: EventBus) -> AsyncIterator[Recorder]:
    made = Recorder(bus)
    await made.start()
    yield made
    await made.close()


@pytest.fixture
async def tail(bus: EventBus) -> Tail:
    return Tail(bus, queue_runs=5)


@pytest.fixture
async def stub(
    bus: EventBus, pool: Pool, running: Running, tail: Tail, project_id: str, stack_dir: Path
) -> AsyncIterator[RunServiceStub]:
    """A client of the service, with a key of the project."""
    peers = Peers(bus, running)
    await peers.start()
    server = grpc.aio.server()
    reader, catalog = Reader(pool, peers, NoQueue()), cast(Catalog, OneFunction())
    service = RunService(reader, tail, catalog, StoppedEvents(pool), keepalive_s=QUICK_S)
    Boundary(server, Gate(Keys(project_id), "a" * 40)).add(add_RunServiceServicer_to_server, service)
    socket = stack_dir / f"{uuid4().hex[:8]}.sock"
    server.add_insecure_port(f"unix:{socket}")
    await server.start()
    async with grpc.aio.insecure_channel(f"unix:{socket}") as channel:
        yield RunServiceStub(channel)
    await server.stop(None)
    await peers.close()


def call(stub: RunServiceStub, method: str) -> Callable[..., Any]:
    """The method, called with the key."""
    return cast(Callable[..., Any], lambda request: getattr(stub, method)(request, metadata=KEY, timeout=20))


async def watched(tail: Tail, project_id: str, watchers: int) -> None:
    async def there() -> bool:
        return len(tail._watchers.get(project_id, ())) == watchers

    await eventually(there)


async def test_a_run_as_a_message(stub: RunServiceStub, pool: Pool, project_id: str) -> None:
    record = a_record(
        project_id,
        run=a_run(project_id, request_id="r", trace_id="a" * 32),
        outcome="fuel_limit",
        error=RunError(reason="FUEL_LIMIT", message="too much", stack="at f"),
        metrics=Metrics(wall_ms=1.23456, memory_bytes=2**33, host_calls=3, fuel_consumed=10**12),
        logs=(LogLine(level="warn", text="careful", at_ms=0.5),),
    )
    async with transaction(pool) as conn:
        await rows.finish(conn, [record])
    run = await call(stub, "GetRun")(pb.GetRunRequest(project_id=project_id, run_id=record.run.id))
    assert record.finished_at is not None
    assert run == runs_pb2.Run(
        id=record.run.id,
        project_id=project_id,
        function_id=record.run.function_id,
        slug="hello",
        version=3,
        runtime="quickjs",
        trigger="http",
        state="finished",
        outcome="fuel_limit",
        error=runs_pb2.RunError(reason="FUEL_LIMIT", message="too much", stack="at f"),
        metrics=runs_pb2.RunMetrics(wall_ms=1.235, memory_bytes=2**33, host_calls=3, fuel_consumed=10**12),
        created_at=timestamp(record.run.created_at),
        finished_at=timestamp(record.finished_at),
        request_id="r",
        trace_id="a" * 32,
        logs=[runs_pb2.LogLine(level="warn", text="careful", at_ms=0.5)],
    )
    listing = await call(stub, "ListRuns")(
        pb.ListRunsRequest(
            project_id=project_id,
            outcome="fuel_limit",
            since=timestamp(record.run.created_at),
            until=timestamp(record.run.created_at + timedelta(microseconds=1)),
        )
    )
    del run.logs[:]
    assert list(listing.runs) == [run]


async def test_runs_of_a_function_by_its_id_or_slug(stub: RunServiceStub, pool: Pool, project_id: str) -> None:
    record = a_record(project_id, run=a_run(project_id, function_id=HELLO))
    async with transaction(pool) as conn:
        await rows.finish(conn, [record, a_record(project_id)])
    for function in (HELLO, "hello"):
        listing = await call(stub, "ListRuns")(pb.ListRunsRequest(project_id=project_id, function=function))
        assert [run.id for run in listing.runs] == [record.run.id]


@pytest.mark.parametrize(
    ("method", "fields", "code"),
    [
        ("ListRuns", {"function": "unknown"}, grpc.StatusCode.NOT_FOUND),
        ("ListRuns", {"page_size": 201}, grpc.StatusCode.INVALID_ARGUMENT),
        ("ListRuns", {"since": Timestamp(seconds=2**60)}, grpc.StatusCode.INVALID_ARGUMENT),
        ("ListRuns", {"outcome": "fine"}, grpc.StatusCode.INVALID_ARGUMENT),
        ("GetRun", {"run_id": "x"}, grpc.StatusCode.INVALID_ARGUMENT),
        ("GetRun", {"run_id": str(uuid4())}, grpc.StatusCode.NOT_FOUND),
        ("CancelRun", {"run_id": str(uuid4())}, grpc.StatusCode.NOT_FOUND),
    ],
)
async def test_what_is_refused(
    stub: RunServiceStub, project_id: str, method: str, fields: dict[str, Any], code: grpc.StatusCode
) -> None:
    request = getattr(pb, f"{method}Request")(project_id=project_id, **fields)
    with pytest.raises(grpc.aio.AioRpcError) as raised:
        await call(stub, method)(request)
    assert raised.value.code() is code


@pytest.mark.parametrize("method", ["TailRuns", "TailRunsHttp"])
async def test_a_tail_with_a_bad_filter_is_refused(stub: RunServiceStub, project_id: str, method: str) -> None:
    request = getattr(pb, f"{method}Request")(project_id=project_id, outcome="fine")
    with pytest.raises(grpc.aio.AioRpcError) as raised:
        await call(stub, method)(request).read()
    assert raised.value.code() is grpc.StatusCode.INVALID_ARGUMENT


async def test_cancel_answers_when_the_run_has_ended(stub: RunServiceStub, running: Running, project_id: str) -> None:
    run, begun = a_run(project_id), asyncio.Event()

    async def work() -> Result:
        begun.set()
        await asyncio.Event().wait()
        raise AssertionError

    task = asyncio.create_task(running.guard(run, work()))
    await begun.wait()
    ended = await call(stub, "CancelRun")(pb.CancelRunRequest(project_id=project_id, run_id=run.id))
    assert (ended.state, ended.outcome, ended.error.reason) == ("finished", "cancelled", "CANCELLED")
    await task


async def test_a_tail_streams_what_ends_and_stops_with_its_client(
    stub: RunServiceStub, recorder: Recorder, tail: Tail, project_id: str
) -> None:
    stream = call(stub, "TailRuns")(pb.TailRunsRequest(project_id=project_id, outcome="ok"))
    await stream.initial_metadata()
    record = a_record(project_id)
    recorder.add(a_record(project_id, outcome="crashed"))
    recorder.add(record)
    seen = await stream.read()
    assert (seen.run.id, seen.dropped, seen.run.logs[0].text) == (record.run.id, 0, "hi")
    stream.cancel()
    await watched(tail, project_id, 0)


async def test_a_tail_as_server_sent_events(
    stub: RunServiceStub, recorder: Recorder, tail: Tail, project_id: str
) -> None:
    stream = call(stub, "TailRunsHttp")(pb.TailRunsHttpRequest(project_id=project_id))
    first = await stream.read()
    assert (first.content_type, first.data) == ("text/event-stream", b": tail\n\n")
    assert (await stream.read()).data == b": keepalive\n\n"
    record = a_record(project_id, logs=(LogLine(level="log", text="a\n\ndata: b\u2028", at_ms=0),))
    recorder.add(record)
    while (event := (await stream.read()).data.decode()).startswith(":"):
        pass
    assert event.endswith("\n\n")
    name, _, text = event.removesuffix("\n\n").partition(": ")
    assert (name, "\n" in text) == ("data", False)
    run = orjson.loads(text)
    assert (run["id"], run["project_id"], run["metrics"]["cpu_ms"]) == (record.run.id, project_id, 1)
    assert run["logs"] == [{"level": "log", "text": "a\n\ndata: b\u2028", "at_ms": 0}]
    assert "dropped" not in event
    await tail.close()
    with contextlib.suppress(asyncio.CancelledError):
        while await stream.read() is not grpc.aio.EOF:
            pass
    assert await stream.code() is grpc.StatusCode.OK


async def test_a_slow_reader_of_events_is_told_what_it_missed(
    stub: RunServiceStub, tail: Tail, project_id: str
) -> None:
    stream = call(stub, "TailRunsHttp")(pb.TailRunsHttpRequest(project_id=project_id))
    await stream.read()
    await watched(tail, project_id, 1)
    (watcher,) = tail._watchers[project_id]
    for _ in range(8):  # the queue holds five, and nobody has a turn between
        watcher.offer(a_record(project_id), 100)
    while (event := (await stream.read()).data.decode()).startswith(":"):
        pass
    assert event.startswith("event: dropped\ndata: 3\n\ndata: {")
