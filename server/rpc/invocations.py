"""InvocationService: typed for gRPC clients, HttpBody for REST. Both end in the same Invoker."""

from google.api import httpbody_pb2

from atlas.functions.v1 import invocation_service_pb2 as pb
from atlas.functions.v1 import invocation_service_pb2_grpc
from engines.contract import Metrics, Response
from server.functions.invoke import Body, Call, Invoker, Request
from server.rpc.access import principal
from server.rpc.boundary import Context, headers
from server.rpc.http import answer, body_of, request_of, response_metadata, shown
from server.rpc.values import fill_from_json, to_json


class InvocationService(invocation_service_pb2_grpc.InvocationServiceServicer):
    def __init__(self, invoker: Invoker) -> None:
        self._invoker = invoker

    async def Invoke(self, request: pb.InvokeRequest, context: Context) -> pb.InvokeResponse:
        caller = principal()
        body = Body(kind="json", data=to_json(request.input, field="input"))
        seen = Request(path=request.path, headers=shown(headers()))
        call = Call(
            project_id=caller.project_id, tier=caller.tier, slug=request.slug, body=body, request=seen, trigger="grpc"
        )
        finished = await self._invoker.invoke(call)
        result = finished.result
        answered = pb.InvokeResponse()
        _fill_metrics(answered.metrics, result.metrics)
        if result.response is not None:
            answered.response.CopyFrom(_http_response(result.response))
        else:
            fill_from_json(answered.result, result.value)
        return answered

    async def InvokeHttp(self, request: pb.InvokeHttpRequest, context: Context) -> httpbody_pb2.HttpBody:
        caller = principal()
        content_type = request.body.content_type
        body = await body_of(content_type, request.body.data)
        seen = request_of(headers(), request.rest, content_type)
        call = Call(project_id=caller.project_id, tier=caller.tier, slug=request.slug, body=body, request=seen)
        result = (await self._invoker.invoke(call)).result
        if result.response is not None:
            content_type, metadata = response_metadata(result.response)
            await context.send_initial_metadata(metadata)
            return httpbody_pb2.HttpBody(content_type=content_type, data=result.response.body)
        return httpbody_pb2.HttpBody(content_type="application/json", data=answer(result.value, result.metrics))


def _fill_metrics(target: pb.Metrics, metrics: Metrics) -> None:
    target.wall_ms = round(metrics.wall_ms, 3)
    target.memory_bytes = metrics.memory_bytes
    if metrics.fuel_consumed is not None:
        target.fuel_consumed = metrics.fuel_consumed


def _http_response(response: Response) -> pb.HttpResponse:
    headers = [pb.HttpHeader(name=name, value=value) for name, value in response.headers]
    return pb.HttpResponse(status=response.status, headers=headers, body=response.body)
