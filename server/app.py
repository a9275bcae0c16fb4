"""One API process: everything wired, served on a unix socket until SIGTERM or SIGINT.

    Boundary ─▶ services ─▶ Invoker · Deployer · Projects ─▶ engines, host API, Postgres, Valkey, NATS

This is the only place that knows all the parts. They start in the order of dependence and end in the reverse of it,
whatever failed in between.
"""

import asyncio
import gc
import os
import signal
from collections.abc import Mapping
from contextlib import AsyncExitStack
from dataclasses import dataclass
from typing import Any, Final, TypeAlias
from urllib.parse import urlsplit

import grpc
import uvloop
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_health.v1._async import HealthServicer
from grpc_reflection.v1alpha import reflection

from atlas.functions.v1 import functions_service_pb2_grpc, invocation_service_pb2_grpc
from atlas.health.v1 import health_service_pb2_grpc
from atlas.projects.v1 import projects_service_pb2_grpc
from engines.build import build
from engines.contract import Engine, Invocation, Outcome, Program
from engines.quickjs.engine import QuickJS
from server.events.bus import EventBus
from server.functions.artifacts import Artifacts
from server.functions.catalog import Catalog
from server.functions.deploy import Deployer
from server.functions.invoke import Invoker
from server.functions.registry import Registry
from server.host.api import HostApi
from server.host.database import Database
from server.host.fetch import Fetcher
from server.host.keyvalue import KeyValue
from server.log import logger
from server.postgres.changes import Changes
from server.postgres.control import Pool, open_pool
from server.postgres.tenants import Tenants
from server.projects import Keyring, Projects
from server.rpc.access import METHODS, Gate
from server.rpc.boundary import Boundary
from server.rpc.functions import FunctionService
from server.rpc.health import HealthService, Probe
from server.rpc.invocations import InvocationService
from server.rpc.projects import ProjectService
from server.settings import Settings, SettingsError, variable
from server.tiers import limits_of

log = logger("api")

MAX_MESSAGE_BYTES: Final = 8 * 1024 * 1024
"""Of a gRPC message: the 6 MiB that Envoy lets through, and room for encoding."""

MAX_HEADERS_BYTES: Final = 256 * 1024
"""More than Envoy lets through (60 KiB, of which the path arrives twice), so that it is the one to refuse them."""

DRAIN_NOTICE_S: Final = 1.6
"""Between NOT_SERVING and the end of accepting, on SIGTERM: longer than Envoy's health check interval of 1 s."""

DRAIN_GRACE_S: Final = 6.0
"""For running invocations after that; what still runs then is cancelled."""

NEEDED: Final = (
    "api_socket",
    "admin_key",
    "master_key",
    "database_url",
    "tenant_database_url",
    "redis_url",
    "nats_url",
)

TIDY_S: Final = 3600.0

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
    missing = [variable(name) for name in NEEDED if not getattr(settings, name)]
    if missing:
        raise SettingsError(f"an API process needs {', '.join(missing)}; `python -m server up` sets all of them")
    uvloop.run(_run(settings, extra))


async def _run(settings: Settings, extra: Services) -> None:
    loop = asyncio.get_running_loop()
    stopping: asyncio.Future[signal.Signals] = loop.create_future()

    def asked(number: signal.Signals) -> None:
        if not stopping.done():
            stopping.set_result(number)

    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, asked, number)
    async with AsyncExitStack() as stack:
        parts = await _start(settings, stack)
        await _serve(settings, parts, extra, stopping)


@dataclass(frozen=True, slots=True, kw_only=True)
class Parts:
    """What the services stand on, started."""

    projects: Projects
    keyring: Keyring
    registry: Registry
    deployer: Deployer
    invoker: Invoker
    engine: Engine
    probes: Mapping[str, Probe]


async def _start(settings: Settings, stack: AsyncExitStack) -> Parts:
    """Every part, in the order of dependence; `stack` closes them."""
    engine = QuickJS(
        spares=settings.sandbox_spares or len(os.sched_getaffinity(0)) + 2,
        max_children=settings.sandbox_max_children,
        max_children_per_project=settings.sandbox_max_children_per_project,
        queue_ms=settings.functions_queue_ms,
        unsafe=settings.unsafe_sandbox,
    )
    stack.push_async_callback(engine.close)
    await engine.start()
    log.info("sandbox.ready", "The sandbox is ready", **engine.report())

    pool = await stack.enter_async_context(open_pool(settings.database_url))
    tenants = Tenants(settings.tenant_database_url, secret=bytes.fromhex(settings.master_key))
    await tenants.start()
    database, keyvalue, fetcher = Database(tenants), KeyValue(settings.redis_url), _fetcher(settings)
    for part in (database, keyvalue, fetcher):
        stack.push_async_callback(part.close)
    bus = EventBus(settings.nats_url)
    stack.push_async_callback(bus.close)
    await bus.start()

    changes = Changes(settings.database_url)
    artifacts = Artifacts(settings.functions_dir)
    registry = Registry(pool, changes, artifacts)
    catalog = Catalog(registry, artifacts, changes, retire=engine.retire)
    keyring = Keyring(pool, changes)
    projects = Projects(pool, changes, tenants, removals=(keyvalue.clear, artifacts.remove_project))
    stack.push_async_callback(changes.close)
    await changes.start()

    tidying = asyncio.create_task(_tidy(projects, registry), name="tidying")
    stack.push_async_callback(_end, tidying)

    engines = {"quickjs": engine}
    hosts = HostApi(database, keyvalue, fetcher)
    return Parts(
        projects=projects,
        keyring=keyring,
        registry=registry,
        deployer=Deployer(registry, artifacts, engines=engines, build=build, settings=settings),
        invoker=Invoker(catalog=catalog, engines=engines, hosts=hosts, settings=settings),
        engine=engine,
        probes={
            "control_database": _probe_control(pool),
            "tenants_database": tenants.ping,
            "key_value": keyvalue.ping,
            "event_bus": bus.ping,
            "sandbox": await _probe_sandbox(engine, hosts, settings),
        },
    )


async def _tidy(projects: Projects, registry: Registry) -> None:
    """At start and every hour, remove what crashes left: schemas without a project, files without a version."""
    while True:
        for sweep in (projects.sweep, registry.sweep):
            try:
                await sweep()
            except Exception:
                log.exception("tidy.failed", "Leftovers stay until the next sweep")
        await asyncio.sleep(TIDY_S)


async def _end(task: asyncio.Task[None]) -> None:
    task.cancel()
    await asyncio.wait([task])


def _fetcher(settings: Settings) -> Fetcher:
    urls = (settings.database_url, settings.tenant_database_url, settings.redis_url, settings.nats_url)
    ports = {port for url in urls if (port := urlsplit(url).port) is not None}
    return Fetcher(allowed=settings.fetch_allow_cidrs, own_ports=frozenset({settings.port, *ports}))


def _probe_control(pool: Pool) -> Probe:
    async def probe() -> None:
        async with pool.connection() as connection:
            await connection.execute("SELECT 1")

    return probe


async def _probe_sandbox(engine: Engine, hosts: HostApi, settings: Settings) -> Probe:
    """A run of a trivial function, through the pool like any other."""
    built = await build(HEALTH_PROGRAM, "javascript", filename="health.js")
    program = Program(project_id=HEALTH_PROJECT, function_id=HEALTH_PROJECT, version=1, code=built.code)
    limits = limits_of("free", settings)

    async def probe() -> None:
        host = hosts.for_invocation(HEALTH_PROJECT, limits)
        result = await engine.invoke(program, Invocation(id="health", input=b"null"), limits, host)
        if result.outcome is not Outcome.OK:
            raise RuntimeError(f"a trivial function ended with {result.outcome}")

    return probe


async def _serve(settings: Settings, parts: Parts, extra: Services, stopping: asyncio.Future[signal.Signals]) -> None:
    gate = Gate(parts.keyring, settings.admin_key)
    server = grpc.aio.server(
        options=[
            ("grpc.max_receive_message_length", MAX_MESSAGE_BYTES),
            ("grpc.max_send_message_length", MAX_MESSAGE_BYTES),
            ("grpc.max_metadata_size", MAX_HEADERS_BYTES),
            ("grpc.absolute_max_metadata_size", MAX_HEADERS_BYTES),
        ],
    )
    boundary = Boundary(server, gate)
    boundary.add(invocation_service_pb2_grpc.add_InvocationServiceServicer_to_server, InvocationService(parts.invoker))
    boundary.add(
        functions_service_pb2_grpc.add_FunctionServiceServicer_to_server,
        FunctionService(parts.registry, parts.deployer),
    )
    boundary.add(projects_service_pb2_grpc.add_ProjectServiceServicer_to_server, ProjectService(parts.projects))
    boundary.add(
        health_service_pb2_grpc.add_HealthServiceServicer_to_server, HealthService(parts.probes, parts.engine.report)
    )
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
        if number is signal.SIGTERM:
            await asyncio.sleep(DRAIN_NOTICE_S)
    finally:
        await server.stop(DRAIN_GRACE_S)
        await asyncio.to_thread(socket.unlink, missing_ok=True)
