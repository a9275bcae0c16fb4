"""RunService: messages in and out of `server.runs`; the rules live there."""

from collections.abc import AsyncIterator
from typing import Final

from google.api import httpbody_pb2
from google.protobuf.json_format import MessageToJson

from atlas.runs.v1 import runs_pb2, runs_service_pb2_grpc
from atlas.runs.v1 import runs_service_pb2 as pb
from server.dispatch.stopped import StoppedEvents
from server.fields import is_id
from server.functions.catalog import Catalog
from server.rpc.access import principal
from server.rpc.boundary import Context
from server.rpc.stopped import fill_stopped
from server.rpc.values import moment, timestamp
from server.runs.reader import Filter, Reader
from server.runs.record import RunRecord
from server.runs.tail import Tail, TailEnded

KEEPALIVE_S: Final = 15.0
EVENT_STREAM: Final = "text/event-stream"


class RunService(runs_service_pb2_grpc.RunServiceServicer):
    def __init__(
        self,
        reader: Reader,
        tail: Tail,
        catalog: Catalog,
        stopped: StoppedEvents,
        *,
        keepalive_s: float = KEEPALIVE_S,
    ) -> None:
        self._reader = reader
        self._stopped = stopped
        self._tail = tail
        self._catalog = catalog
        self._keepalive_s = keepalive_s

    async def ListRuns(self, request: pb.ListRunsRequest, context: Context) -> pb.ListRunsResponse:
        wanted = Filter(
            function_id=await self._function_id(request.function),
            outcome=request.outcome,
            state=request.state,
            since=moment("since", request.since) if request.HasField("since") else None,
            until=moment("until", request.until) if request.HasField("until") else None,
        )
        page = await self._reader.list(principal().project_id, wanted, request.page_size, request.page_token)
        return pb.ListRunsResponse(
            runs=[run_message(item) for item in page.items], next_page_token=page.next_page_token
        )

    async def _function_id(self, function: str) -> str:
        if not function or is_id(function):
            return function
        return (await self._catalog.resolve(principal().project_id, function)).function.id

    async def GetRun(self, request: pb.GetRunRequest, context: Context) -> runs_pb2.Run:
        project_id = principal().project_id
        shown = run_message(await self._reader.get(project_id, request.run_id))
        fill_stopped(shown, await self._stopped.of(project_id, request.run_id))
        return shown

    async def CancelRun(self, request: pb.CancelRunRequest, context: Context) -> runs_pb2.Run:
        return run_message(await self._reader.cancel(principal().project_id, request.run_id))

    async def TailRuns(self, request: pb.TailRunsRequest, context: Context) -> AsyncIterator[pb.TailRunsResponse]:
        wanted = Filter(function_id=await self._function_id(request.function), outcome=request.outcome)
        async with self._tail.watch(principal().project_id, wanted) as watcher:
            await context.send_initial_metadata(())  # so that the client knows that nothing is missed from here on
            while True:
                try:
                    tailed = await watcher.next(self._keepalive_s)
                except TailEnded:
                    return
                if tailed is not None:
                    yield pb.TailRunsResponse(run=run_message(tailed.record), dropped=tailed.dropped)

    async def TailRunsHttp(
        self, request: pb.TailRunsHttpRequest, context: Context
    ) -> AsyncIterator[httpbody_pb2.HttpBody]:
        wanted = Filter(function_id=await self._function_id(request.function), outcome=request.outcome)
        async with self._tail.watch(principal().project_id, wanted) as watcher:
            yield _event(": tail\n\n")
            while True:
                try:
                    tailed = await watcher.next(self._keepalive_s)
                except TailEnded:
                    return
                if tailed is None:
                    yield _event(": keepalive\n\n")
                    continue
                dropped = f"event: dropped\ndata: {tailed.dropped}\n\n" if tailed.dropped else ""
                yield _event(f"{dropped}data: {_json(run_message(tailed.record))}\n\n")


def _event(text: str) -> httpbody_pb2.HttpBody:
    return httpbody_pb2.HttpBody(content_type=EVENT_STREAM, data=text.encode())


def _json(run: runs_pb2.Run) -> str:
    """In one line, with the names and the zeros of every other answer over REST."""
    return MessageToJson(run, preserving_proto_field_name=True, always_print_fields_with_no_presence=True, indent=None)


def run_message(record: RunRecord) -> runs_pb2.Run:
    run, metrics, error = record.run, record.metrics, record.error
    return runs_pb2.Run(
        id=run.id,
        project_id=run.project_id,
        function_id=run.function_id,
        slug=run.slug,
        version=run.version,
        runtime=run.runtime,
        trigger=run.trigger,
        state=record.state,
        outcome=record.outcome,
        error=runs_pb2.RunError(reason=error.reason, message=error.message, stack=error.stack) if error else None,
        metrics=runs_pb2.RunMetrics(
            wall_ms=round(metrics.wall_ms, 3),
            cpu_ms=round(metrics.cpu_ms, 3),
            queue_ms=round(metrics.queue_ms, 3),
            boot_ms=round(metrics.boot_ms, 3),
            memory_bytes=metrics.memory_bytes,
            host_calls=metrics.host_calls,
            fuel_consumed=metrics.fuel_consumed,
        ),
        created_at=timestamp(run.created_at),
        finished_at=timestamp(record.finished_at) if record.finished_at else None,
        request_id=run.request_id,
        trace_id=run.trace_id,
        logs=[runs_pb2.LogLine(level=line.level, text=line.text, at_ms=round(line.at_ms, 3)) for line in record.logs],
        logs_truncated=record.logs_truncated,
    )
