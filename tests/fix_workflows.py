"""Workflows on a real Postgres and a real NATS, around nodes that do what the test says."""

import asyncio
import contextlib
import json
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass, field
from typing import Any
from uuid import uuid4

import pytest
from nats.js.errors import NotFoundError

from server.events.bus import EventBus
from server.events.json_text import Json, read
from server.postgres.control import Pool, transaction
from server.workflows import stream
from server.workflows.nodes.condition import ConditionNode
from server.workflows.nodes.delay import DelayNode
from server.workflows.nodes.step import Attempt, NodeType, Output, Wait
from server.workflows.records import Run, StepRecord
from server.workflows.runs import Workflows
from server.workflows.store import Definitions
from server.workflows.worker import StepWorker
from tests.fix_functions import add_project
from tests.fix_runs import DEADLINE_S, eventually

Work = Callable[[Attempt], Awaitable[Output | Wait]]


async def fine(attempt: Attempt) -> Output:
    """Hands on what a kv node would set."""
    return Output(json=json.dumps(attempt.input.get("value", attempt.node.id)).encode())


@dataclass
class Scripted:
    """A NodeType that does `work` and counts attempts by node."""

    work: Work = fine
    attempts: Counter[str] = field(default_factory=Counter)
    running: set[str] = field(default_factory=set)

    async def run(self, attempt: Attempt) -> Output | Wait:
        self.attempts[attempt.node.id] += 1
        self.running.add(attempt.node.id)
        try:
            return await self.work(attempt)
        finally:
            self.running.discard(attempt.node.id)


def document(value: Any) -> Json:
    return read(json.dumps(value).encode())


def kv(node_id: str, value: Any = None, **more: Any) -> dict[str, Any]:
    """A node that the test's own work runs."""
    return {"id": node_id, "type": "kv", "config": {"op": "set", "key": node_id, "value": value}, **more}


def edges(*pairs: str) -> list[dict[str, Any]]:
    """`a b` is an edge; `a b +` one for true, `a b -` one for false."""
    found = []
    for pair in pairs:
        source, target, *branch = pair.split()
        found.append({"source": source, "target": target} | ({"branch": branch == ["+"]} if branch else {}))
    return found


@dataclass
class Site:
    """A project, and as many workers as the test wants."""

    pool: Pool
    bus: EventBus
    project_id: str
    definitions: Definitions
    workflows: Workflows
    workers: list[StepWorker] = field(default_factory=list)

    async def worker(self, work: NodeType | Work = fine, concurrency: int = 8) -> Scripted:
        """A worker that runs."""
        node = work if isinstance(work, Scripted) else Scripted(work)  # type: ignore[arg-type]
        types: dict[str, NodeType] = {"kv": node, "condition": ConditionNode(), "delay": DelayNode()}
        made = StepWorker(self.pool, self.bus, types, concurrency=concurrency)
        self.workers.append(made)
        await made.start()
        return node

    async def define(self, nodes: list[Any], *pairs: str) -> str:
        made = await self.definitions.create(
            self.project_id, "Test", document({"nodes": nodes, "edges": edges(*pairs)})
        )
        return made.id

    async def run(self, workflow_id: str, data: Any = None) -> str:
        return (await self.workflows.run(self.project_id, workflow_id, document(data))).id

    async def get(self, run_id: str) -> tuple[Run, dict[str, StepRecord]]:
        run, steps = await self.workflows.get(self.project_id, run_id)
        return run, {step.node_id: step for step in steps}

    async def ended(self, run_id: str, within_s: float = DEADLINE_S) -> tuple[Run, dict[str, StepRecord]]:
        async def over() -> tuple[Run, dict[str, StepRecord]] | None:
            found = await self.get(run_id)
            return found if found[0].state != "running" else None

        return await eventually(over, within_s)

    async def result(self, run_id: str) -> tuple[str, dict[str, str]]:
        """The state in which the run ended, and its steps'."""
        run, steps = await self.ended(run_id)
        return run.state, {name: step.state for name, step in steps.items()}

    async def execute(self, sql: str, *values: object) -> list[Any]:
        async with transaction(self.pool) as conn:
            cursor = await conn.execute(sql.encode(), values)
            return await cursor.fetchall() if cursor.description else []


@pytest.fixture
async def workflow_bus(nats_url: str) -> AsyncIterator[EventBus]:
    """Connected, with a stream of steps that is empty."""
    made = EventBus(nats_url)
    await made.start()
    with contextlib.suppress(NotFoundError):
        await made.jetstream.delete_stream(stream.NAME)
    await stream.ensure(made)
    yield made
    await made.close()


@pytest.fixture
async def workflow_site(pool: Pool, workflow_bus: EventBus) -> AsyncIterator[Site]:
    project_id = await add_project(pool)
    made = Site(pool, workflow_bus, project_id, Definitions(pool), Workflows(pool, workflow_bus))
    yield made
    for worker in made.workers:
        await worker.close(drain_s=0)


async def hang(_: Attempt) -> Output:
    await asyncio.Event().wait()
    raise AssertionError


def an_id() -> str:
    return str(uuid4())


def value_of(output: bytes | None) -> object:
    return None if output is None else json.loads(output)
