"""InvocationService: typed for gRPC clients, HttpBody for REST. Both end in the same Invoker, at once or queued."""

from typing import Final

import orjson
from google.api import httpbody_pb2

from atlas.functions.v1 import invocation_service_pb2 as pb
from atlas.functions.v1 import invocation_service_pb2_grpc
from engines.contract import Metrics, Response, Result
from server.invocations.asynchronous import AsyncRuns, Pending
from server.invocations.idempotency import Idempotency
from server.invocations.invoke import Body, Call, Finished, Invoker, Request
from server.rpc.access import principal
from server.rpc.boundary import RUN_ID, Context, headers, request_id, trace_parent
from server.rpc.http import (
    STATUS_HEADER,
    answer,
    body_of,
    idempotency_key,
    request_of,
    response_metadata,
    shown,
    wants_async,
)
from server.rpc.values import fill_from_json, to_json

RESULT_PATH: Final = "/functions/v1/runs/"


class InvocationService(invocation_service_pb2_grpc.InvocationServiceServicer):
    def __init__(self, invoker: Invoker, queue: AsyncRuns, idempotency: Idempotency) -> None:
        self._invoker = invoker
        self._queue = queue
        self._idempotency = idempotency

    async def Invoke(self, request: pb.InvokeRequest, context: Context) -> pb.InvokeResponse:
        body = Body(kind="json", data=to_json(request.input, field="input"))
        call = _call(request.slug, body, Request(path=request.path, headers=shown(headers())), trigger="grpc")
        key = request.idempotency_key or None
        if request.respond_async:
            return pb.InvokeResponse(run_id=await self._accept(call, key))
        finished = await self._finish(call, key)
        result = finished.result
        answered = pb.InvokeResponse(run_id=finished.run_id)
        _fill_metrics(answered.metrics, result.metrics)
        if result.response is not None:
            answered.response.CopyFrom(_http_response(result.response))
        else:
            fill_from_json(answered.result, result.value)
        return answered

    async def InvokeHttp(self, request: pb.InvokeHttpRequest, context: Context) -> httpbody_pb2.HttpBody:
        sent, content_type = headers(), request.body.content_type
        body = await body_of(content_type, request.body.data)
        call = _call(request.slug, body, request_of(sent, request.rest, content_type), trigger="http")
        key = idempotency_key(sent)
        if wants_async(sent):
            run_id = await self._accept(call, key)
            return await _accepted(run_id, "queued", context, ("preference-applied", "respond-async"))
        finished = await self._finish(call, key)
        return await _http_body(finished.run_id, finished.result, context)

    async def GetResult(self, request: pb.GetResultRequest, context: Context) -> httpbody_pb2.HttpBody:
        found = await self._queue.result(principal().project_id, request.run_id)
        if isinstance(found, Pending):
            return await _accepted(found.run_id, found.state, context)
        return await _http_body(found.run_id, found.result, context)

    async def _accept(self, call: Call, key: str | None) -> str:
        if key is not None:
            return await self._idempotency.once_accepted(call, key, self._queue.accept)
        return await self._queue.accept(call)

    async def _finish(self, call: Call, key: str | None) -> Finished:
        if key is not None:
            return await self._idempotency.once(call, key, self._invoker.invoke)
        return await self._invoker.invoke(call)


def _call(slug: str, body: Body, seen: Request, *, trigger: str) -> Call:
    caller = principal()
    return Call(
        project_id=caller.project_id,
        tier=caller.tier,
        slug=slug,
        body=body,
        request=seen,
        trigger=trigger,
        request_id=request_id(),
        traceparent=str(trace_parent() or ""),
    )


async def _accepted(run_id: str, state: str, context: Context, *more: tuple[str, str]) -> httpbody_pb2.HttpBody:
    location = ("location", RESULT_PATH + run_id)
    await context.send_initial_metadata(((STATUS_HEADER, "202"), (RUN_ID, run_id), location, *more))
    told = orjson.dumps({"run_id": run_id, "state": state})
    return httpbody_pb2.HttpBody(content_type="application/json", data=told)


async def _http_body(run_id: str, result: Result, context: Context) -> httpbody_pb2.HttpBody:
    named = (RUN_ID, run_id)
    if result.response is None:
        await context.send_initial_metadata((named,))
        return httpbody_pb2.HttpBody(content_type="application/json", data=answer(result.value, result.metrics))
    content_type, metadata = response_metadata(result.response)
    await context.send_initial_metadata((*metadata, named))
    return httpbody_pb2.HttpBody(content_type=content_type, data=result.response.body)


def _fill_metrics(target: pb.Metrics, metrics: Metrics) -> None:
    target.wall_ms = round(metrics.wall_ms, 3)
    target.memory_bytes = metrics.memory_bytes
    if metrics.fuel_consumed is not None:
        target.fuel_consumed = metrics.fuel_consumed


def _http_response(response: Response) -> pb.HttpResponse:
    headers = [pb.HttpHeader(name=name, value=value) for name, value in response.headers]
    return pb.HttpResponse(status=response.status, headers=headers, body=response.body)
