"""Spans that are recorded, and sent in batches as OTLP over HTTP by a thread. Imported only when they are.

A collector that is slow or away costs a run nothing: spans wait in a queue of MAX_QUEUED, what does not fit is dropped.
Sampling follows the caller's sampled flag; a trace that begins here is sampled, unless OTEL_TRACES_SAMPLER says
otherwise. OTEL_EXPORTER_OTLP_HEADERS and the other variables of the OpenTelemetry SDK are honoured.
"""

import asyncio
import logging
import threading
from collections.abc import Sequence
from types import TracebackType
from typing import Final

from opentelemetry import trace
from opentelemetry.context import Context
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor, SpanExporter, SpanExportResult
from opentelemetry.trace import NonRecordingSpan, SpanContext, SpanKind, Status, StatusCode, TraceFlags

from server.log import logger
from server.telemetry.correlation import TraceParent
from server.telemetry.tracing import Attributes, Span, Tracer

log = logger("tracing")

SERVICE: Final = "atlas-functions"
TRACES_PATH: Final = "/v1/traces"
MAX_QUEUED: Final = 4096
BATCH: Final = 256
SEND_EVERY_MS: Final = 1_000
SEND_TIMEOUT_S: Final = 5.0  # of one batch, attempts included
FLUSH_S: Final = 2.0


class RecordedSpan(Span):
    __slots__ = ("_span", "_tracer")

    def __init__(self, tracer: trace.Tracer, span: trace.Span) -> None:
        context = span.get_span_context()
        super().__init__(TraceParent(f"{context.trace_id:032x}", f"{context.span_id:016x}", int(context.trace_flags)))
        self._tracer, self._span = tracer, span

    def step(self, name: str) -> Span:
        context = trace.set_span_in_context(self._span, Context())
        return RecordedSpan(self._tracer, self._tracer.start_span(name, context, SpanKind.CLIENT))

    def tell(self, attributes: Attributes) -> None:
        self._span.set_attributes(attributes)

    def fail(self, kind: str) -> None:
        self._span.set_status(Status(StatusCode.ERROR))
        self._span.set_attribute("error.type", kind)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if error is not None:  # never its text, which may hold what users sent
            code = getattr(error, "code", None)
            self.fail(code if isinstance(code, str) else type(error).__name__)
        self._span.end()


class RecordingTracer(Tracer):
    """To the collector at `endpoint`, e.g. http://localhost:4318 (or the full address of its traces)."""

    records = True

    def __init__(self, endpoint: str, role: str) -> None:
        address = endpoint.rstrip("/")
        address = address if address.endswith(TRACES_PATH) else address + TRACES_PATH
        logging.getLogger("opentelemetry").setLevel(logging.CRITICAL)  # _Watched says what there is to say
        resource = Resource.create({"service.name": SERVICE, "atlas.process.role": role})
        self._exporter = _Watched(OTLPSpanExporter(endpoint=address, timeout=SEND_TIMEOUT_S), address)
        self._provider = TracerProvider(resource=resource, shutdown_on_exit=False)
        self._provider.add_span_processor(
            BatchSpanProcessor(
                self._exporter,
                max_queue_size=MAX_QUEUED,
                max_export_batch_size=BATCH,
                schedule_delay_millis=SEND_EVERY_MS,
            )
        )
        self._tracer = self._provider.get_tracer(SERVICE)

    def run(self, parent: TraceParent | None, name: str, attributes: Attributes) -> Span:
        context = Context()
        if parent is not None:
            flags = TraceFlags(TraceFlags.SAMPLED if parent.sampled else TraceFlags.DEFAULT)
            caller = SpanContext(int(parent.trace_id, 16), int(parent.span_id, 16), is_remote=True, trace_flags=flags)
            context = trace.set_span_in_context(NonRecordingSpan(caller), context)
        span = self._tracer.start_span(name, context, SpanKind.SERVER, attributes)
        return RecordedSpan(self._tracer, span)

    async def close(self) -> None:
        loop, flushed = asyncio.get_running_loop(), asyncio.Event()

        def shut_down() -> None:
            self._provider.shutdown()
            if not loop.is_closed():
                loop.call_soon_threadsafe(flushed.set)

        threading.Thread(target=shut_down, name="last spans", daemon=True).start()
        try:
            async with asyncio.timeout(FLUSH_S):
                await flushed.wait()
        except TimeoutError:
            log.warning("tracing.cut", f"The last spans were not taken within {FLUSH_S:g} s and are lost")
            self._exporter.shutdown()


class _Watched(SpanExporter):
    """Says when the collector is lost and when it is back, not at every batch."""

    def __init__(self, exporter: SpanExporter, address: str) -> None:
        self._exporter, self._address = exporter, address
        self._lost = False

    def export(self, spans: Sequence[ReadableSpan]) -> SpanExportResult:
        result = self._exporter.export(spans)
        lost = result is not SpanExportResult.SUCCESS
        if lost and not self._lost:
            log.warning("tracing.lost", "The collector does not take our spans; they are dropped", url=self._address)
        if self._lost and not lost:
            log.info("tracing.back", "The collector takes our spans again", url=self._address)
        self._lost = lost
        return result

    def shutdown(self) -> None:
        self._exporter.shutdown()

    def force_flush(self, timeout_millis: int = 30_000) -> bool:
        return self._exporter.force_flush(timeout_millis)
