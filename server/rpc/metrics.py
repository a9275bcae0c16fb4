"""MetricsService: one address that Prometheus scrapes for every process of this machine's stack."""

import asyncio
from pathlib import Path

from google.api import httpbody_pb2

from atlas.metrics.v1 import metrics_service_pb2 as pb
from atlas.metrics.v1 import metrics_service_pb2_grpc
from server.rpc.boundary import Context
from server.telemetry.numbers import Numbers


class MetricsService(metrics_service_pb2_grpc.MetricsServiceServicer):
    """`directory` is where the processes count; without one, `own` is all there is."""

    def __init__(self, directory: Path | None, own: Numbers) -> None:
        self._directory = directory
        self._own = own

    async def GetMetrics(self, request: pb.GetMetricsRequest, context: Context) -> httpbody_pb2.HttpBody:
        return await asyncio.to_thread(self._answer)

    def _answer(self) -> httpbody_pb2.HttpBody:
        from server.telemetry.exposition import CONTENT_TYPE, exposition  # 40 ms, when the first scrape comes

        return httpbody_pb2.HttpBody(content_type=CONTENT_TYPE, data=exposition(self._directory, self._own))
