"""GET /metrics as gRPC serves it: the text of all processes, for the admin key alone."""

from collections.abc import AsyncIterator
from pathlib import Path

import grpc
import pytest

from atlas.metrics.v1 import metrics_service_pb2 as pb
from atlas.metrics.v1 import metrics_service_pb2_grpc
from server.projects import Principal
from server.rpc.access import Gate
from server.rpc.boundary import Boundary
from server.rpc.metrics import MetricsService
from server.telemetry.metrics import Metrics
from server.telemetry.numbers import Numbers

ADMIN_KEY = "a" * 40


class Nobody:
    async def authenticate(self, secret: str) -> Principal | None:
        return None


@pytest.fixture
async def numbers(tmp_path: Path) -> AsyncIterator[Numbers]:
    found = Numbers(tmp_path / "metrics", "api")
    yield found
    found.close()


@pytest.fixture
async def stub(tmp_path: Path, numbers: Numbers) -> "AsyncIterator[metrics_service_pb2_grpc.MetricsServiceAsyncStub]":
    server = grpc.aio.server()
    service = MetricsService(tmp_path / "metrics", numbers)
    boundary = Boundary(server, Gate(Nobody(), ADMIN_KEY), Metrics(numbers))
    boundary.add(metrics_service_pb2_grpc.add_MetricsServiceServicer_to_server, service)
    address = f"unix:{tmp_path}/s"
    server.add_insecure_port(address)
    await server.start()
    async with grpc.aio.insecure_channel(address) as channel:
        yield metrics_service_pb2_grpc.MetricsServiceStub(channel)
    await server.stop(0)


async def test_the_admin_key_reads_what_every_process_counted(
    stub: "metrics_service_pb2_grpc.MetricsServiceAsyncStub", tmp_path: Path
) -> None:
    other = Numbers(tmp_path / "metrics", "worker")
    Metrics(other).invocations("deno", "ok").add(41)
    metadata = (("authorization", f"Bearer {ADMIN_KEY}"),)
    await stub.GetMetrics(pb.GetMetricsRequest(), metadata=metadata)
    answer = await stub.GetMetrics(pb.GetMetricsRequest(), metadata=metadata)
    assert answer.content_type == "text/plain; version=0.0.4; charset=utf-8"
    text = answer.data.decode()
    assert 'atlas_invocations_total{outcome="ok",runtime="deno"} 41.0' in text
    assert 'atlas_rpc_total{code="OK",method="atlas.metrics.v1.MetricsService/GetMetrics"} 1.0' in text
    assert 'process_start_time_seconds{pid="' in text
    other.close()


@pytest.mark.parametrize("headers", [(), (("authorization", "Bearer nobody-has-this-key"),)])
async def test_nobody_else_does(
    stub: "metrics_service_pb2_grpc.MetricsServiceAsyncStub", headers: tuple[tuple[str, str], ...]
) -> None:
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await stub.GetMetrics(pb.GetMetricsRequest(), metadata=headers)
    assert caught.value.code() is grpc.StatusCode.UNAUTHENTICATED
