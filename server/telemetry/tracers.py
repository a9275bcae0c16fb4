"""Which tracer a process has, by its settings."""

from server.settings import Settings
from server.telemetry.tracing import Tracer


def tracer(settings: Settings, role: str) -> Tracer:
    """The process's tracer; `role` (api, worker) is told as `atlas.process.role`."""
    if not settings.otlp_endpoint:
        return Tracer()
    from server.telemetry.otlp import RecordingTracer  # OpenTelemetry takes a quarter of a second to import

    return RecordingTracer(settings.otlp_endpoint, role)
