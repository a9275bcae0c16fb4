"""Run records on a real NATS and a real Postgres."""

import asyncio
import contextlib
import secrets
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, TypeVar
from uuid import uuid4

import pytest
from nats.js.errors import NotFoundError

from engines.contract import LogLine, Metrics
from server.events.bus import EventBus
from server.postgres.control import Pool
from server.runs import stream
from server.runs.record import Run, RunRecord
from server.stack import nats
from server.stack.account import servant
from server.stack.part import Part, Running, start
from tests.fix_functions import add_project

DEADLINE_S = 45.0
"""Only what fails takes so long; a machine that is busy with other tests needs some of it."""
T = TypeVar("T")


async def eventually(probe: Callable[[], Awaitable[T | None]], within_s: float = DEADLINE_S) -> T:
    """The first true answer of the probe, asked again and again."""
    loop = asyncio.get_running_loop()
    deadline_s = loop.time() + within_s
    while loop.time() < deadline_s:
        if answer := await probe():
            return answer
        await asyncio.sleep(0.01)
    raise AssertionError(f"{probe.__qualname__} was not true within {within_s} s")


def a_run(project_id: str, **fields: Any) -> Run:
    return replace(
        Run(
            id=str(uuid4()),
            project_id=project_id,
            function_id=str(uuid4()),
            slug="hello",
            version=3,
            runtime="quickjs",
            trigger="http",
            created_at=datetime.now(UTC),
        ),
        **fields,
    )


def a_record(project_id: str, *, run: Run | None = None, **fields: Any) -> RunRecord:
    """A record of a run that ended well, with a line of console output."""
    record = RunRecord(
        run=run or a_run(project_id),
        outcome="ok",
        metrics=Metrics(wall_ms=1.5, cpu_ms=1.0, memory_bytes=4096, queue_ms=0.25, host_calls=2),
        finished_at=datetime.now(UTC),
        logs=(LogLine(level="log", text="hi", at_ms=0.5),),
    )
    return replace(record, **fields)


@pytest.fixture
async def bus(nats_url: str) -> AsyncIterator[EventBus]:
    """Connected, with a runs stream that is empty."""
    made = EventBus(nats_url)
    await made.start()
    with contextlib.suppress(NotFoundError):
        await made.jetstream.delete_stream(stream.NAME)
    await stream.ensure(made)
    yield made
    await made.close()


@pytest.fixture
async def project_id(pool: Pool) -> str:
    return await add_project(pool)


@dataclass(slots=True)
class OwnNats:
    """A NATS server of one test, to be stopped and started."""

    url: str
    part: Part
    running: Running | None = None

    def start(self) -> None:
        self.running = start(self.part, f"pytest-{secrets.token_hex(4)}")
        self.running.wait_ready()

    def stop(self) -> None:
        if self.running is not None:
            self.running.stop()
            self.running = None

    def kill(self) -> None:
        """It has no time to write anything."""
        if self.running is not None:
            self.running.kill()
            self.stop()


@pytest.fixture
def own_nats(stack_dir: Path) -> Iterator[OwnNats]:
    """Running."""
    name, port, token = f"nats-{secrets.token_hex(4)}", nats.free_port(), secrets.token_urlsafe(24)
    part = nats.part(
        data=stack_dir / name,
        port=port,
        config=stack_dir / f"{name}.conf",
        programs=stack_dir / "bin",
        log=stack_dir / f"{name}.log",
        token=token,
        account=servant(),
    )
    server = OwnNats(nats.url(port, token), part)
    server.start()
    yield server
    server.stop()
