"""What API processes and workers both stand on: engines, host API, Postgres, Valkey, NATS, and who runs functions.

They start in the order of dependence and end in the reverse of it, whatever failed in between.
"""

import asyncio
import os
from collections.abc import Awaitable, Callable, Mapping
from contextlib import AsyncExitStack
from dataclasses import dataclass
from functools import partial
from typing import Final, TypedDict
from urllib.parse import urlsplit

from engines.build import build
from engines.contract import Engine
from engines.deno.engine import Deno
from engines.lazy import Lazy
from engines.node.engine import Node
from engines.quickjs.engine import QuickJS
from engines.runtimes import Runtime
from engines.v8.builtins import BUILTINS
from engines.wasm import javy
from engines.wasm.engine import Wasm
from server.dispatch.retention import LedgerRetention
from server.events.bus import EventBus
from server.events.outbox import Outbox
from server.events.publisher import Publisher
from server.functions.artifacts import Artifacts
from server.functions.catalog import Catalog
from server.functions.lifecycle import Lifecycle
from server.functions.registry import Registry
from server.functions.secrets import Vault
from server.host.api import HostApi
from server.host.database import Database
from server.host.fetch import Fetcher
from server.host.keyvalue import KeyValue
from server.host.publishing import Publishing
from server.invocations.concurrency import Slots
from server.invocations.invoke import Invoker
from server.invocations.observation import Observer, Sandboxes
from server.log import logger
from server.postgres.changes import Changes
from server.postgres.control import Pool, open_pool
from server.postgres.tenants import Tenants
from server.projects import Keyring, Projects
from server.runs.peers import Peers
from server.runs.recorder import Recorder, Sink
from server.runs.retention import Retention
from server.runs.running import Running
from server.settings import Settings
from server.storage.blobs import Blobs
from server.storage.buckets import Buckets
from server.storage.disk import DiskBlobs
from server.storage.jetstream import StreamBlobs
from server.storage.storage import Storage
from server.storage.sweeper import Sweeper
from server.tasks import end_task
from server.telemetry.metrics import Metrics
from server.telemetry.numbers import Numbers
from server.telemetry.tracers import tracer
from server.telemetry.tracing import Tracer
from server.workflows.retention import WorkflowRetention

log = logger("parts")

SAMPLE_S: Final = 1.0

NEEDED: Final = ("master_key", "database_url", "tenant_database_url", "redis_url", "nats_url")
"""Settings without which nothing of this can start."""

WORKER_SPARES: Final = 1
"""Of QuickJS in a worker, where nobody waits for the milliseconds that a new one takes."""

MOST_V8: Final = 16
"""Node and Deno children of one process: each has some 13 MB of its own before it does anything."""

MOST_V8_PER_PROJECT: Final = 12
"""So that one project's long runs are not all that runs."""


WASM_PATIENCE_S: Final = 60.0
"""How long a call waits for the Wasm engine to be built: less than Envoy waits for the call."""


class _Bounds(TypedDict):
    max_children_per_project: int
    queue_ms: int
    unsafe: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Parts:
    """All of it, started, except that `changes` are not heard before `listen`."""

    settings: Settings
    runtimes: Mapping[str, Runtime]
    pool: Pool
    tenants: Tenants
    keyvalue: KeyValue
    bus: EventBus
    changes: Changes
    metrics: Metrics
    tracer: Tracer
    slots: Slots
    recorder: Recorder
    running: Running
    peers: Peers
    retention: Retention
    outbox: Outbox
    storage: Storage
    buckets: Buckets
    sweeper: Sweeper
    ledger_retention: LedgerRetention
    workflow_retention: WorkflowRetention
    fetcher: Fetcher
    hosts: HostApi
    projects: Projects
    keyring: Keyring
    artifacts: Artifacts
    registry: Registry
    lifecycle: Lifecycle
    catalog: Catalog

    async def listen(self) -> None:
        """Hear what other processes change. Whoever subscribes to that does so before."""
        await self.changes.start()

    def invoker(self, sink: Sink) -> Invoker:
        """Runs functions; records of the runs go to `sink`."""
        return Invoker(
            catalog=self.catalog,
            engines=self.engines,
            hosts=self.hosts,
            settings=self.settings,
            slots=self.slots,
            running=self.running,
            sink=sink,
            observer=Observer(self.metrics, self.tracer),
        )

    @property
    def engines(self) -> dict[str, Engine]:
        return {name: runtime.engine for name, runtime in self.runtimes.items()}


async def start(settings: Settings, stack: AsyncExitStack, role: str) -> Parts:
    """Every part; `stack` closes them. `role` (api, worker) is what operators see.

    Call from the main thread: sandboxes die with the thread that started them.
    """
    metrics = Metrics(Numbers(settings.metrics_dir, role))
    stack.callback(metrics.numbers.close)
    tracing = tracer(settings, role)
    stack.push_async_callback(tracing.close)
    runtimes = await _start_runtimes(settings, stack, role)

    pool = await stack.enter_async_context(open_pool(settings.database_url))
    tenants = Tenants(settings.tenant_database_url, secret=bytes.fromhex(settings.master_key))
    await tenants.start()
    database, keyvalue, fetcher = Database(tenants), KeyValue(settings.redis_url), _fetcher(settings)
    for part in (database, keyvalue, fetcher):
        stack.push_async_callback(part.close)
    slots = Slots(settings.redis_url, queue_ms=settings.functions_queue_ms)
    stack.push_async_callback(slots.close)
    bus = EventBus(settings.nats_url)
    stack.push_async_callback(bus.close)
    await bus.start()
    running, recorder = Running(), Recorder(bus)
    peers = Peers(bus, running)
    for started in (recorder, peers):
        stack.push_async_callback(started.close)
        await started.start()

    changes = Changes(settings.database_url)
    artifacts = Artifacts(settings.functions_dir)
    vault = Vault(bytes.fromhex(settings.master_key))
    registry = Registry(pool, artifacts)
    catalog = Catalog(registry, changes, vault=vault, retire=_retire_in(runtimes))
    keyring = Keyring(pool, changes)
    retention = Retention(pool, keep_hours=settings.runs_keep_hours, keep_mb=settings.runs_keep_mb)
    blobs = await _blobs(settings, bus)
    outbox, sweeper = Outbox(changes), Sweeper(pool, blobs)
    storage = Storage(pool, blobs, outbox, quota_mb=settings.storage_quota_mb)
    ledger_retention = LedgerRetention(
        pool,
        events_keep_hours=settings.events_keep_hours,
        dead_letters_keep_days=settings.dead_letters_keep_days,
    )
    workflow_retention = WorkflowRetention(pool, keep_hours=settings.runs_keep_hours, keep_mb=settings.runs_keep_mb)
    removals = (
        keyvalue.clear,
        artifacts.remove_project,
        retention.remove_project,
        ledger_retention.remove_project,
        workflow_retention.remove_project,
        sweeper.remove_project,
    )
    projects = Projects(pool, changes, tenants, removals=removals)
    stack.push_async_callback(changes.close)

    engines = {name: runtime.engine for name, runtime in runtimes.items()}
    sandboxes = Sandboxes(metrics, engines)

    async def sample() -> None:
        await sandboxes.sample()
        metrics.records_dropped().follow(recorder.dropped)

    repeat(sample, SAMPLE_S, "counting sandboxes", stack)
    publishing = Publishing(Publisher(bus, settings), bus)
    hosts = HostApi(database, keyvalue, fetcher, metrics, publishing=publishing, storage=storage)
    return Parts(
        settings=settings,
        runtimes=runtimes,
        pool=pool,
        tenants=tenants,
        keyvalue=keyvalue,
        bus=bus,
        changes=changes,
        metrics=metrics,
        tracer=tracing,
        slots=slots,
        recorder=recorder,
        running=running,
        peers=peers,
        retention=retention,
        outbox=outbox,
        storage=storage,
        buckets=Buckets(pool),
        sweeper=sweeper,
        ledger_retention=ledger_retention,
        workflow_retention=workflow_retention,
        fetcher=fetcher,
        hosts=hosts,
        projects=projects,
        keyring=keyring,
        artifacts=artifacts,
        registry=registry,
        lifecycle=Lifecycle(pool, changes, artifacts, vault),
        catalog=catalog,
    )


async def _start_runtimes(settings: Settings, stack: AsyncExitStack, role: str) -> dict[str, Runtime]:
    """QuickJS is ready when this returns; the others start when they are first used."""
    bounds: _Bounds = {
        "max_children_per_project": settings.sandbox_max_children_per_project,
        "queue_ms": settings.functions_queue_ms,
        "unsafe": settings.unsafe_sandbox,
    }
    most = settings.sandbox_max_children
    spares = WORKER_SPARES if role == "worker" else settings.sandbox_spares or len(os.sched_getaffinity(0)) + 2
    quickjs = QuickJS(spares=spares, max_children=most, **bounds)
    wasm = Wasm(
        cache_dir=settings.engine_cache_dir.absolute(),
        secret=bytes.fromhex(settings.master_key),
        javy=javy.find(settings.javy),
        patience_s=WASM_PATIENCE_S,
        max_children=most,
        **bounds,
    )
    build_for_v8 = partial(build, builtins=BUILTINS)
    v8: _Bounds = {**bounds, "max_children_per_project": min(bounds["max_children_per_project"], MOST_V8_PER_PROJECT)}
    runtimes = {
        "quickjs": Runtime(engine=quickjs, build=build),
        "wasm": Runtime(engine=wasm, build=wasm.build, accept=wasm.accept, standalone=wasm.standalone),
        "node": Runtime(engine=Lazy(Node(max_children=min(most, MOST_V8), **v8)), build=build_for_v8),
        "deno": Runtime(engine=Lazy(Deno(max_children=min(most, MOST_V8), **v8)), build=build_for_v8),
    }
    for runtime in runtimes.values():
        stack.push_async_callback(runtime.engine.close)
        await runtime.engine.start()
    log.info("sandbox.ready", "The sandbox is ready", **quickjs.report())
    return runtimes


async def _blobs(settings: Settings, bus: EventBus) -> Blobs:
    """The configured store of contents, started."""
    blobs: Blobs = StreamBlobs(bus) if settings.storage_backend == "jetstream" else DiskBlobs(settings.storage_dir)
    await blobs.start()
    return blobs


def _retire_in(runtimes: Mapping[str, Runtime]) -> Callable[[str, str | None], None]:
    def retire(project_id: str, function_id: str | None) -> None:
        for runtime in runtimes.values():
            runtime.engine.retire(project_id, function_id)

    return retire


def _fetcher(settings: Settings) -> Fetcher:
    urls = (settings.database_url, settings.tenant_database_url, settings.redis_url, settings.nats_url)
    ports = {port for url in urls if (port := urlsplit(url).port) is not None}
    return Fetcher(allowed=settings.fetch_allow_cidrs, own_ports=frozenset({settings.port, *ports}))


def repeat(work: Callable[[], Awaitable[object]], every_s: float, name: str, stack: AsyncExitStack) -> None:
    """Do `work` now and every so often until the stack is closed. A failure is logged and the next try is on time."""

    async def go_on() -> None:
        while True:
            try:
                await work()
            except Exception:
                log.exception("repeat.failed", f"{name} failed; it is tried again in {every_s:g} s")
            await asyncio.sleep(every_s)

    task = asyncio.create_task(go_on(), name=name)
    stack.push_async_callback(end_task, task)
