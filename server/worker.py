"""A worker process: the work that no caller waits for, until SIGTERM or SIGINT.

Any number of workers share it; one that dies loses nothing, another takes over.
"""

import asyncio
import gc
from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack
from functools import partial
from typing import Final

from server import parts, prerequisites, process
from server.cdc.relay import Relay
from server.dispatch.backfill_rows import kept_from, note_removed
from server.dispatch.cron import Cron
from server.dispatch.dispatcher import Dispatcher
from server.events import outbox, run_outbox, stream
from server.events.backlog import Backlog
from server.events.publisher import Publisher
from server.invocations.async_worker import AsyncWorker
from server.invocations.asynchronous import AsyncRuns
from server.invocations.attempts import Attempts
from server.invocations.idempotency import Idempotency
from server.log import logger
from server.parts import Parts
from server.process import Stopping
from server.runs.writer import Writer
from server.settings import Settings
from server.triggers.cache import TriggerCache
from server.workflows.nodes.condition import ConditionNode
from server.workflows.nodes.delay import DelayNode
from server.workflows.nodes.event import EventNode
from server.workflows.nodes.function import FunctionNode
from server.workflows.nodes.http import HttpNode
from server.workflows.nodes.kv import KeyValueNode
from server.workflows.nodes.step import NodeType
from server.workflows.runs import Workflows
from server.workflows.targets import Targets
from server.workflows.worker import StepWorker

log = logger("worker")

NEEDED: Final = ("worker_socket", *parts.NEEDED)

TIDY_S: Final = 3600.0
SWEEP_S: Final = 60.0
TRIM_S: Final = 5.0
SAMPLE_S: Final = 5.0

Drain = Callable[[], Awaitable[None]]
"""Takes nothing new and lets what runs end, for some seconds. All at once, because a stop takes no longer than that."""


def run_worker(settings: Settings) -> None:
    """Work until SIGTERM or SIGINT, then finish what was begun and return.

    SettingsError names every variable a worker needs and lacks.
    """
    process.require(settings, NEEDED, "a worker process")

    async def main(stack: AsyncExitStack, stopping: Stopping) -> None:
        await prerequisites.present(settings)
        started = await parts.start(settings, stack, "worker")
        await _start_writing(started, stack)
        triggers = TriggerCache(started.pool, started.changes)
        dispatcher = _dispatcher(started, triggers)
        drains = (await _start_running(started, stack), await _start_workflows(started, stack), dispatcher.close)
        await _start_capturing(started, stack)
        await _start_publishing(started, stack)
        await started.listen()
        await triggers.start()
        stack.push_async_callback(dispatcher.close)
        await dispatcher.start()
        await _start_relaying(started, stack)
        parts.repeat(dispatcher.sample, SAMPLE_S, "counting deliveries", stack)
        await _start_cron(started, triggers, stack)
        parts.repeat(partial(_trim, started), TRIM_S, "removing events that are done", stack)
        parts.repeat(started.sweeper.sweep, SWEEP_S, "removing contents that no object has", stack)
        parts.repeat(started.ledger_retention.sweep, SWEEP_S, "removing deliveries that are kept no more", stack)
        parts.repeat(started.projects.sweep, TIDY_S, "removing what deleted projects left", stack)
        parts.repeat(started.lifecycle.sweep, TIDY_S, "removing functions and files that are kept no more", stack)
        gc.collect()
        gc.freeze()  # triggers above all: looking through 100,000 of them again and again is time that events lack
        await _say_ready(settings, stack)
        await stopping
        log.info("worker.draining", "Finishing what runs, taking nothing new")
        await asyncio.gather(*(drain() for drain in drains))

    process.run(main)


async def _start_writing(started: Parts, stack: AsyncExitStack) -> None:
    """Records of runs: into the database, and out of it when they are kept no more."""
    writer = Writer(started.bus, started.pool)
    stack.push_async_callback(writer.close)
    await writer.start()
    parts.repeat(started.retention.sweep, SWEEP_S, "removing records of runs", stack)


async def _start_running(started: Parts, stack: AsyncExitStack) -> Drain:
    """Asynchronous runs. Before `listen`: they are woken by what other processes change."""
    attempts = Attempts(started.recorder)
    queue = AsyncRuns(started.pool, started.changes, started.catalog, started.recorder)
    work = AsyncWorker(started.pool, started.changes, started.invoker(attempts), attempts, started.recorder)
    stack.push_async_callback(work.close)
    await work.start()
    parts.repeat(queue.sweep, SWEEP_S, "removing results of asynchronous runs", stack)
    parts.repeat(Idempotency(started.pool).sweep, SWEEP_S, "removing answers kept for idempotency keys", stack)
    return work.close


def _dispatcher(started: Parts, triggers: TriggerCache) -> Dispatcher:
    """Deliveries of events. Before `listen`, like the cache: both hear what other processes change."""
    return Dispatcher(
        bus=started.bus,
        settings=started.settings,
        pool=started.pool,
        changes=started.changes,
        triggers=triggers,
        invoker=started.invoker(started.recorder),
        metrics=started.metrics,
        workflows=Workflows(started.pool, started.bus, metrics=started.metrics),
    )


async def _trim(started: Parts) -> None:
    kept = await kept_from(started.pool)
    await stream.trim(started.bus, started.settings, kept, partial(note_removed, started.pool))


async def _start_relaying(started: Parts, stack: AsyncExitStack) -> None:
    """Events that functions published within transactions: out of the outbox, into the stream."""
    publisher = Publisher(started.bus, started.settings)
    relay = run_outbox.Relay(started.tenants, started.bus, publisher, metrics=started.metrics)
    stack.push_async_callback(relay.close)
    await relay.start()


async def _start_cron(started: Parts, triggers: TriggerCache, stack: AsyncExitStack) -> None:
    """The schedules: each minute becomes the events that are due in it."""
    publisher = Publisher(started.bus, started.settings)
    await publisher.start()
    keep_hours = started.settings.events_keep_hours
    cron = Cron(started.pool, triggers, publisher, started.metrics, events_keep_hours=keep_hours)
    stack.push_async_callback(cron.close)
    await cron.start()
    parts.repeat(cron.sweep, SWEEP_S, "forgetting ticks that have ended", stack)


async def _start_workflows(started: Parts, stack: AsyncExitStack) -> Drain:
    """Steps of workflows, of any run."""
    publisher = Publisher(started.bus, started.settings)
    await publisher.start()
    types: dict[str, NodeType] = {
        "function": FunctionNode(started.invoker(started.recorder), Targets(started.pool)),
        "http": HttpNode(started.fetcher),
        "condition": ConditionNode(),
        "delay": DelayNode(),
        "event": EventNode(publisher),
        "kv": KeyValueNode(started.keyvalue),
    }
    work = StepWorker(started.pool, started.bus, types, metrics=started.metrics)
    stack.push_async_callback(work.close)
    await work.start()
    parts.repeat(started.workflow_retention.sweep, SWEEP_S, "removing old workflow runs", stack)
    return work.close


async def _start_capturing(started: Parts, stack: AsyncExitStack) -> None:
    """Changes of tenants' tables as events: in the worker that has the slot, the others stand by."""
    relay = Relay(started.tenants, started.bus, started.settings, started.metrics)
    stack.push_async_callback(relay.close)
    await relay.start()


async def _start_publishing(started: Parts, stack: AsyncExitStack) -> None:
    """Events that were committed with what they tell of. Before `listen`: they are announced."""
    publisher = Publisher(started.bus, started.settings)
    await publisher.start()
    relay = outbox.Relay(started.pool, started.changes, publisher, metrics=started.metrics)
    backlog = Backlog(started.pool, started.tenants, started.metrics)
    for part in (relay, backlog):
        stack.push_async_callback(part.close)
        await part.start()


async def _say_ready(settings: Settings, stack: AsyncExitStack) -> None:
    """Who can connect to the socket knows that the worker works; it says nothing there."""
    path = settings.worker_socket
    assert path is not None
    await asyncio.to_thread(path.unlink, missing_ok=True)
    server = await asyncio.start_unix_server(lambda _, writer: writer.close(), path)
    stack.push_async_callback(asyncio.to_thread, path.unlink, missing_ok=True)
    stack.push_async_callback(server.wait_closed)
    stack.callback(server.close)
    log.info("worker.ready", "Working", socket=str(path))
