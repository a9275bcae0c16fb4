"""Workflows in one worker process, beside direct invocations of the same functions by the same process.

Runs are started before the clock is, so that what is measured is what the worker does; of single ones it begins just
before they are started. A run has ended when that is told.
"""

import asyncio
import time
from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack
from typing import Any, Final
from uuid import uuid4

import orjson
from nats.aio.msg import Msg

from server.events.json_text import read
from server.invocations.invoke import Body, Call, Request
from server.workflows import stream
from server.workflows.nodes.function import FunctionNode
from server.workflows.queue import WINDOW
from server.workflows.runs import Workflows
from server.workflows.store import Definitions
from server.workflows.targets import Targets
from server.workflows.worker import StepWorker
from tests.bench import worker
from tests.bench.rows import Row, percentile
from tests.bench.worker import Worker

TITLE: Final = "Workflows, in one worker process"
RUNS: Final = 400
SINGLE: Final = 150
COLD: Final = 15
PAUSE_S: Final = 0.005
SOURCE: Final = "export default (input) => input"


async def measure() -> list[Row]:
    """About 15 s."""
    async with worker.running() as made, AsyncExitStack() as stack:
        await made.deploy("bench", SOURCE)
        site = _Site(made)
        three, one = await site.define(3), await site.define(1)
        direct_per_s = await site.direct(3 * RUNS) / 3
        await site.prepare(three)
        began_s = time.monotonic()
        work = StepWorker(made.started.pool, made.started.bus, site.types, metrics=made.started.metrics)
        stack.push_async_callback(work.close)
        await work.start()
        for _ in range(RUNS):
            await site.ended.get()
        per_s = RUNS / (time.monotonic() - began_s)
        run_ms = await each_ms(lambda: site.whole(one))
        invoked_ms = await each_ms(site.invoke)
    return [
        Row("runs of 3 functions, one after the other", per_s, "/s", baseline=direct_per_s),
        *(
            Row(
                f"start to end of a run of one, p{part}",
                percentile(run_ms, part),
                "ms",
                "",
                percentile(invoked_ms, part),
            )
            for part in (50, 99)
        ),
    ]


async def each_ms(do: Callable[[], Awaitable[object]]) -> list[float]:
    took_ms = []
    for _ in range(SINGLE):
        began_s = time.monotonic()
        await do()
        took_ms.append((time.monotonic() - began_s) * 1000)
        await asyncio.sleep(PAUSE_S)
    return took_ms[COLD:]


class _Site:
    def __init__(self, made: Worker) -> None:
        started = made.started
        self._made = made
        self._bus = started.bus
        self._definitions = Definitions(started.pool)
        self._workflows = Workflows(started.pool, started.bus)
        self.types = {"function": FunctionNode(made.invoker, Targets(started.pool))}
        self.ended: asyncio.Queue[str] = asyncio.Queue()

    async def define(self, steps: int) -> str:
        nodes: list[Any] = [
            {"id": f"n{number}", "type": "function", "config": {"function": "bench"}} for number in range(steps)
        ]
        edges = [{"source": f"n{number}", "target": f"n{number + 1}"} for number in range(steps - 1)]
        document = read(orjson.dumps({"nodes": nodes, "edges": edges}))
        return (await self._definitions.create(self._made.project.id, f"of {steps}", document)).id

    async def start(self, workflow_id: str) -> None:
        await self._workflows.run(self._made.project.id, workflow_id, read(b'{"amount":120.5}'))

    async def prepare(self, workflow_id: str) -> None:
        """RUNS of them, which no worker has yet."""

        async def hear(message: Msg) -> None:
            self.ended.put_nowait(message.data.decode())

        await stream.ensure(self._bus)
        await self._bus.client.subscribe(stream.CANCELLED, cb=hear)
        for _ in range(RUNS):
            await self.start(workflow_id)

    async def whole(self, workflow_id: str) -> None:
        await self.start(workflow_id)
        await self.ended.get()

    async def invoke(self) -> None:
        project = self._made.project
        body = Body(kind="json", data=b'{"amount":120.5}')
        await self._made.invoker.invoke(
            Call(
                project_id=project.id,
                tier=project.tier,
                slug="bench",
                body=body,
                request=Request(),
                run_id=str(uuid4()),
            )
        )

    async def direct(self, count: int) -> float:
        """Invocations per second, as many at a time as steps of a project run at most."""
        turn = asyncio.Semaphore(WINDOW)

        async def one() -> None:
            async with turn:
                await self.invoke()

        await self.invoke()
        began_s = time.monotonic()
        await asyncio.gather(*(one() for _ in range(count)))
        return count / (time.monotonic() - began_s)
