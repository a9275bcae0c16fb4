"""What an invocation is compared with: methods of the same messages that do nothing, in the same API process.

`python -m tests.bench.noop CPU` is `python -m server api` with these methods, it and its sandboxes pinned to one core.
"""

import os
import sys
from typing import Any, Final

import grpc
from google.api import annotations_pb2, httpbody_pb2
from google.protobuf import descriptor_pb2, struct_pb2

from atlas.functions.v1 import invocation_service_pb2 as pb

SERVICE: Final = "atlas.bench.v1.NoopService"
PATH: Final = "/bench/noop/"

ANSWER: Final = pb.InvokeResponse(
    result=struct_pb2.Value(number_value=1), metrics=pb.Metrics(wall_ms=0.021, memory_bytes=300_000)
)
HTTP_ANSWER: Final = httpbody_pb2.HttpBody(
    content_type="application/json", data=b'{"result":1,"metrics":{"wall_ms":0.021,"memory_bytes":300000}}'
)


async def invoke(_request: pb.InvokeRequest, _context: object) -> pb.InvokeResponse:
    return ANSWER


async def invoke_http(_request: pb.InvokeHttpRequest, _context: object) -> httpbody_pb2.HttpBody:
    return HTTP_ANSWER


def methods() -> "dict[str, grpc.RpcMethodHandler[Any, Any]]":
    unary = grpc.unary_unary_rpc_method_handler
    return {
        "Invoke": unary(invoke, pb.InvokeRequest.FromString, pb.InvokeResponse.SerializeToString),
        "InvokeHttp": unary(invoke_http, pb.InvokeHttpRequest.FromString, httpbody_pb2.HttpBody.SerializeToString),
    }


def with_noop(descriptors: bytes) -> bytes:
    """Our descriptors and the service's, whose InvokeHttp Envoy makes of `POST /bench/noop/{slug}`."""
    files = descriptor_pb2.FileDescriptorSet.FromString(descriptors)
    file = files.file.add(name="atlas/bench/v1/noop.proto", package="atlas.bench.v1", syntax="proto3")
    file.dependency.extend((pb.DESCRIPTOR.name, "google/api/annotations.proto", "google/api/httpbody.proto"))
    service = file.service.add(name="NoopService")
    for name, request, response in (
        ("Invoke", pb.InvokeRequest, pb.InvokeResponse),
        ("InvokeHttp", pb.InvokeHttpRequest, httpbody_pb2.HttpBody),
    ):
        types = {"input_type": request.DESCRIPTOR.full_name, "output_type": response.DESCRIPTOR.full_name}
        service.method.add(name=name, **{field: f".{kind}" for field, kind in types.items()})
    rule = service.method[1].options.Extensions[annotations_pb2.http]
    rule.post, rule.body = PATH + "{slug}", "body"
    return files.SerializeToString()


def main(cpu: int) -> None:
    from server import log
    from server.app import run_api
    from server.settings import load

    os.sched_setaffinity(0, {cpu})
    settings = load()
    log.configure(settings.log_level)
    run_api(settings, extra={SERVICE: methods()})


if __name__ == "__main__":
    main(int(sys.argv[1]))
