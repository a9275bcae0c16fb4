"""HealthService: every part an invocation needs, probed for real.

Answers are shared for a second, so that probes from outside, which need no key, cannot load the server.
"""

import asyncio
import time
from collections.abc import Awaitable, Callable, Mapping
from typing import Any, Final

from google.protobuf import json_format

from atlas.health.v1 import health_service_pb2 as pb
from atlas.health.v1 import health_service_pb2_grpc
from server.errors import Unavailable
from server.log import logger
from server.rpc.boundary import Context

log = logger("health")

Probe = Callable[[], Awaitable[object]]

PROBE_TIMEOUT_S: Final = 2.0
SHARED_FOR_S: Final = 1.0


class HealthService(health_service_pb2_grpc.HealthServiceServicer):
    """`probes` by part name, each raising when its part is broken; `report` describes the sandbox."""

    def __init__(
        self,
        probes: Mapping[str, Probe],
        report: Callable[[], dict[str, Any]],
        clock_s: Callable[[], float] = time.monotonic,
    ) -> None:
        self._probes = probes
        self._report = report
        self._clock_s = clock_s
        self._parts: dict[str, str] = {}
        self._checked_at_s = float("-inf")
        self._checking = asyncio.Lock()

    async def CheckHealth(self, request: pb.CheckHealthRequest, context: Context) -> pb.CheckHealthResponse:
        async with self._checking:
            if self._clock_s() - self._checked_at_s >= SHARED_FOR_S:
                results = await asyncio.gather(*(self._check(name, probe) for name, probe in self._probes.items()))
                self._parts = dict(zip(self._probes, results, strict=True))
                self._checked_at_s = self._clock_s()
            parts = self._parts
        broken = {name: state for name, state in parts.items() if not state.startswith("ok")}
        if broken:
            raise Unavailable(f"Not healthy: {', '.join(sorted(broken))}", reason="UNHEALTHY", metadata=parts)
        answer = pb.CheckHealthResponse(status="ok", parts=parts)
        json_format.ParseDict(self._report(), answer.sandbox)
        return answer

    async def _check(self, name: str, probe: Probe) -> str:
        started_s = self._clock_s()
        try:
            async with asyncio.timeout(PROBE_TIMEOUT_S):
                await probe()
        except TimeoutError:
            return f"no answer within {PROBE_TIMEOUT_S:g} s"
        except Exception as why:
            log.warning("health.broken", f"{name} is broken: {why!r}", part=name)
            return "broken"
        return f"ok in {(self._clock_s() - started_s) * 1000:.1f} ms"
