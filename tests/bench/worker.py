"""All parts of a worker in this process, on servers of their own, with a project and its functions."""

import asyncio
import contextlib
import gc
import sys
import time
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from dataclasses import dataclass, field, replace
from typing import Final

from server import parts
from server.dispatch.dispatcher import Dispatcher
from server.dispatch.runs import Invokes
from server.events import stream
from server.functions.deploy import Deployer
from server.functions.records import Function
from server.invocations.invoke import Call, Finished
from server.parts import Parts
from server.postgres.control import transaction
from server.projects import Project
from server.stack import bootstrap
from server.stack.credentials import credentials
from server.stack.launch import start_servers
from server.triggers.cache import TriggerCache
from tests.bench.stack import state_of_its_own

SOURCE: Final = "export default (event) => event.data.amount"


@dataclass
class Timed:
    """An Invoker that notes when it is asked, and when at the latest the function began: its end less its wall."""

    invoker: Invokes
    asked_s: asyncio.Queue[float] = field(default_factory=asyncio.Queue)
    began_s: asyncio.Queue[float] = field(default_factory=asyncio.Queue)

    async def invoke(self, call: Call) -> Finished:
        self.asked_s.put_nowait(time.monotonic())
        finished = await self.invoker.invoke(call)
        self.began_s.put_nowait(time.monotonic() - finished.result.metrics.wall_ms / 1000)
        return finished


@dataclass
class Worker:
    started: Parts
    project: Project
    triggers: TriggerCache
    invoker: Timed

    async def deploy(self, slug: str, source: str = SOURCE) -> Function:
        started, project = self.started, self.project
        deployer = Deployer(started.lifecycle, started.artifacts, runtimes=started.runtimes, settings=started.settings)
        return await deployer.deploy(project.id, project.tier, name=slug, slug=slug, runtime="quickjs", source=source)

    async def bind(self, event_type: str, function: Function, conditions: str = "[]") -> None:
        """A trigger, for dispatchers that are made later."""
        async with transaction(self.started.pool) as conn:
            await conn.execute(
                "INSERT INTO triggers (project_id, event_type, target_type, function_id, conditions)"
                " VALUES (%s, %s, 'function', %s, %s)",
                [self.project.id, event_type, function.id, conditions],
            )

    def dispatcher(self, *, timed: bool = True) -> Dispatcher:
        started = self.started
        return Dispatcher(
            bus=started.bus,
            settings=started.settings,
            pool=started.pool,
            changes=started.changes,
            triggers=self.triggers,
            invoker=self.invoker if timed else self.invoker.invoker,
            metrics=started.metrics,
        )


@contextlib.asynccontextmanager
async def running() -> AsyncIterator[Worker]:
    """With an empty stream of events. The cache of triggers is not started: first come the triggers."""
    async with _started() as started:
        await stream.ensure(started.bus, started.settings)
        triggers = TriggerCache(started.pool, started.changes)
        await started.listen()
        project = (await started.projects.list(1)).items[0]
        gc.collect()
        gc.freeze()  # as a worker does
        yield Worker(started, project, triggers, Timed(started.invoker(started.recorder)))


@contextlib.asynccontextmanager
async def _started() -> AsyncIterator[Parts]:
    async with state_of_its_own() as (settings, home, supervisor):
        with contextlib.redirect_stdout(sys.stderr):
            secrets = credentials(home.state, settings)
            settings = replace(settings, admin_key=secrets.admin_key, master_key=secrets.master_key)
            settings = await start_servers(settings, home, secrets, supervisor)
            await bootstrap.prepare(
                control_url=settings.database_url,
                tenants_url=settings.tenant_database_url,
                credentials=secrets,
                kept={},
                url="http://localhost",
            )
        async with AsyncExitStack() as stack:
            yield await parts.start(settings, stack, "worker")
