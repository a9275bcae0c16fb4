"""One API process: everything wired, served on a unix socket until SIGTERM or SIGINT.

Boundary ─▶ services ─▶ Invoker · Deployer · Projects ─▶ server.parts
"""

import asyncio
import gc
import signal
from collections.abc import Mapping
from contextlib import AsyncExitStack
from typing import Any, Final, TypeAlias

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_health.v1._async import HealthServicer
from grpc_reflection.v1alpha import reflection

from atlas.deliveries.v1 import (
    deliveries_service_pb2_grpc,
    lineage_service_pb2_grpc,
    parked_messages_service_pb2_grpc,
)
from atlas.events.v1 import events_service_pb2_grpc
from atlas.functions.v1 import functions_service_pb2_grpc, invocation_service_pb2_grpc
from atlas.health.v1 import health_service_pb2_grpc
from atlas.metrics.v1 import metrics_service_pb2_grpc
from atlas.projects.v1 import projects_service_pb2_grpc
from atlas.runs.v1 import runs_service_pb2_grpc
from atlas.storage.v1 import storage_service_pb2_grpc
from atlas.triggers.v1 import triggers_service_pb2_grpc
from atlas.workflows.v1 import workflows_service_pb2_grpc
from engines.build import build
from engines.contract import Invocation, Outcome, Program
from server import parts, prerequisites, process
from server.dispatch.cancel import Canceller
from server.dispatch.consequences import Lineages
from server.dispatch.deliveries import Deliveries
from server.dispatch.parked_messages import ParkedMessages
from server.dispatch.replay import Replayer
from server.dispatch.stopped import StoppedEvents
from server.events.publisher import Publisher
from server.functions.deploy import Deployer
from server.functions.downloads import Downloads
from server.invocations.asynchronous import AsyncRuns
from server.invocations.idempotency import Idempotency
from server.log import logger
from server.parts import Parts
from server.postgres.control import Pool
from server.process import Stopping
from server.rpc.access import METHODS, Gate
from server.rpc.boundary import Boundary
from server.rpc.deliveries import DeliveryService
from server.rpc.events import EventService
from server.rpc.functions import FunctionService
from server.rpc.health import HealthService, Probe
from server.rpc.invocations import InvocationService
from server.rpc.lineage import LineageService
from server.rpc.metrics import MetricsService
from server.rpc.parked_messages import ParkedMessageService
from server.rpc.projects import ProjectService
from server.rpc.runs import RunService
from server.rpc.storage import StorageService
from server.rpc.triggers import TriggerService
from server.rpc.workflows import WorkflowService
from server.runs.reader import Reader
from server.runs.tail import Tail
from server.settings import Settings
from server.tiers import limits_of
from server.triggers.backtest import Backtester
from server.triggers.diagnosis import Diagnostician
from server.triggers.store import Triggers
from server.workflows.runs import Workflows
from server.workflows.store import Definitions
from server.workflows.watch import Watching

log = logger("api")

MAX_MESSAGE_BYTES: Final = 8 * 1024 * 1024
"""Of a gRPC message: the 6 MiB that Envoy lets through, and room for encoding."""

MAX_HEADERS_BYTES: Final = 256 * 1024
"""More than Envoy lets through (60 KiB, of which the path arrives twice), so that it is the one to refuse them."""

DRAIN_NOTICE_S: Final = 1.6
"""Between NOT_SERVING and the end of accepting, on SIGTERM: longer than Envoy's health check interval of 1 s."""

DRAIN_GRACE_S: Final = 6.0
"""For running invocations after that; what still runs then is cancelled."""

NEEDED: Final = ("api_socket", "admin_key", *parts.NEEDED)

HEALTH_PROGRAM: Final = "export default () => true"
HEALTH_PROJECT: Final = "00000000-0000-0000-0000-000000000000"

Services: TypeAlias = "Mapping[str, dict[str, grpc.RpcMethodHandler[Any, Any]]]"
"""Methods by name, by the full name of their service."""

NONE: Final[Services] = {}


def run_api(settings: Settings, extra: Services = NONE) -> None:
    """Serve until SIGTERM or SIGINT, then drain and return. `extra` services are served beside ours, unguarded.

    SIGTERM first lets the proxy in front notice; SIGINT is for when that is gone, as in `up`.

    SettingsError names every variable an API process needs and lacks.
    """
    process.require(settings, NEEDED, "an API process")

    async def main(stack: AsyncExitStack, stopping: Stopping) -> None:
        await prerequisites.present(settings)
        started = await parts.start(settings, stack, "api")
        await _serve(started, extra, stack, stopping)

    process.run(main)


async def _probes(started: Parts) -> Mapping[str, Probe]:
    return {
        "control_database": _probe_control(started.pool),
        "tenants_database": started.tenants.ping,
        "key_value": started.keyvalue.ping,
        "event_bus": started.bus.ping,
        "sandbox": await _probe_sandbox(started),
    }


def _probe_control(pool: Pool) -> Probe:
    async def probe() -> None:
        async with pool.connection() as connection:
            await connection.execute("SELECT 1")

    return probe


async def _probe_sandbox(started: Parts) -> Probe:
    """A run of a trivial function, through the pool like any other."""
    built = await build(HEALTH_PROGRAM, "javascript", filename="health.js")
    program = Program(project_id=HEALTH_PROJECT, function_id=HEALTH_PROJECT, version=1, code=built.code)
    limits = limits_of("free", started.settings)
    engine = started.runtimes["quickjs"].engine

    async def probe() -> None:
        host = started.hosts.for_invocation(HEALTH_PROJECT, limits)
        result = await engine.invoke(program, Invocation(id="health", input=b"null"), limits, host)
        if result.outcome is not Outcome.OK:
            raise RuntimeError(f"a trivial function ended with {result.outcome}")

    return probe


async def _add_services(
    boundary: Boundary, started: Parts, tail: Tail, workflows: WorkflowService, stack: AsyncExitStack
) -> None:
    queue = AsyncRuns(started.pool, started.changes, started.catalog, started.recorder)
    idempotency = Idempotency(started.pool)
    stack.push_async_callback(idempotency.close)
    await idempotency.start()
    publisher = Publisher(started.bus, started.settings)
    await publisher.start()
    reader = Reader(started.pool, started.peers, queue)
    invocations = InvocationService(started.invoker(started.recorder), queue, idempotency)
    probes = await _probes(started)
    runtimes = started.runtimes
    deployer = Deployer(started.lifecycle, started.artifacts, runtimes=runtimes, settings=started.settings)
    functions = FunctionService(started.registry, deployer, started.lifecycle, Downloads(started.registry, runtimes))

    def report() -> dict[str, Any]:
        return {name: engine.report() for name, engine in started.engines.items()}

    triggers = TriggerService(
        Triggers(started.pool, started.changes, events_keep_hours=started.settings.events_keep_hours),
        Diagnostician(started.pool),
        backtester=Backtester(started.pool, started.bus),
    )
    metrics = MetricsService(started.settings.metrics_dir, started.metrics.numbers)
    boundary.add(invocation_service_pb2_grpc.add_InvocationServiceServicer_to_server, invocations)
    stopped = StoppedEvents(started.pool)
    boundary.add(
        runs_service_pb2_grpc.add_RunServiceServicer_to_server, RunService(reader, tail, started.catalog, stopped)
    )
    boundary.add(events_service_pb2_grpc.add_EventServiceServicer_to_server, EventService(publisher))
    storage = StorageService(started.storage, started.buckets)
    boundary.add(storage_service_pb2_grpc.add_StorageServiceServicer_to_server, storage)
    _add_ledger(boundary, started)
    boundary.add(triggers_service_pb2_grpc.add_TriggerServiceServicer_to_server, triggers)
    boundary.add(workflows_service_pb2_grpc.add_WorkflowServiceServicer_to_server, workflows)
    boundary.add(metrics_service_pb2_grpc.add_MetricsServiceServicer_to_server, metrics)
    boundary.add(functions_service_pb2_grpc.add_FunctionServiceServicer_to_server, functions)
    boundary.add(projects_service_pb2_grpc.add_ProjectServiceServicer_to_server, ProjectService(started.projects))
    boundary.add(health_service_pb2_grpc.add_HealthServiceServicer_to_server, HealthService(probes, report))


def _add_ledger(boundary: Boundary, started: Parts) -> None:
    pool, changes = started.pool, started.changes
    deliveries = DeliveryService(Deliveries(pool), Replayer(pool, changes), Canceller(pool, changes, started.peers))
    parked = ParkedMessageService(ParkedMessages(pool))
    boundary.add(deliveries_service_pb2_grpc.add_DeliveryServiceServicer_to_server, deliveries)
    boundary.add(lineage_service_pb2_grpc.add_LineageServiceServicer_to_server, LineageService(Lineages(pool)))
    boundary.add(parked_messages_service_pb2_grpc.add_ParkedMessageServiceServicer_to_server, parked)


async def _serve(started: Parts, extra: Services, stack: AsyncExitStack, stopping: Stopping) -> None:
    settings = started.settings
    await started.listen()
    gate = Gate(started.keyring, settings.admin_key)
    server = grpc.aio.server(
        options=[
            ("grpc.max_receive_message_length", MAX_MESSAGE_BYTES),
            ("grpc.max_send_message_length", MAX_MESSAGE_BYTES),
            ("grpc.max_metadata_size", MAX_HEADERS_BYTES),
            ("grpc.absolute_max_metadata_size", MAX_HEADERS_BYTES),
        ],
    )
    tail = Tail(started.bus)
    stack.push_async_callback(tail.close)
    runs = Workflows(started.pool, started.bus, metrics=started.metrics)
    watching = Watching(runs, started.bus)
    workflows = WorkflowService(Definitions(started.pool), runs, watching, StoppedEvents(started.pool))
    await _add_services(Boundary(server, gate, started.metrics), started, tail, workflows, stack)
    standard_health = HealthServicer()
    health_pb2_grpc.add_HealthServicer_to_server(standard_health, server)
    services = sorted({method.split("/")[1] for method in METHODS})
    names = [*services, health_pb2.DESCRIPTOR.services_by_name["Health"].full_name, reflection.SERVICE_NAME]
    reflection.enable_server_reflection(names, server)
    server.add_generic_rpc_handlers([grpc.method_handlers_generic_handler(*service) for service in extra.items()])

    socket = settings.api_socket
    assert socket is not None
    await asyncio.to_thread(socket.unlink, missing_ok=True)
    server.add_insecure_port(f"unix:{socket}")
    await server.start()
    for service in ("", *services):
        await standard_health.set(service, health_pb2.HealthCheckResponse.SERVING)
    gc.collect()
    gc.freeze()  # what lives now lives for ever; looking through it again took 50 ms at a time
    log.info("api.ready", f"Serving on {socket}", socket=str(socket))
    try:
        number = await stopping
        log.info("api.draining", "Finishing what runs, taking nothing new")
        await standard_health.enter_graceful_shutdown()
        await tail.close()
        watching.close()
        if number is signal.SIGTERM:
            await asyncio.sleep(DRAIN_NOTICE_S)
    finally:
        await server.stop(DRAIN_GRACE_S)
        await asyncio.to_thread(socket.unlink, missing_ok=True)
