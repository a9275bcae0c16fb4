"""A QuickJS engine with real jailed children, and hosts for it to talk to."""

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest

from engines.contract import Invocation, Limits, Program, Result
from engines.quickjs.engine import QuickJS
from engines.supervisor import Supervisor

MIB = 1024 * 1024
LIMITS = Limits(wall_ms=5_000, cpu_ms=5_000, memory_bytes=32 * MIB, fetch_calls=5)


class Silence:
    """A host that never answers, and remembers who asked and who was cancelled."""

    def __init__(self) -> None:
        self.asked = asyncio.Event()
        self.calls = 0
        self.cancelled = 0

    async def call(self, op: str, args: bytes) -> bytes:
        self.calls += 1
        self.asked.set()
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            self.cancelled += 1
            raise
        return b"null"


class Scripted:
    """A host that answers with what a function of (op, args) returns."""

    def __init__(self, answer: Callable[[str, Any], Any]) -> None:
        self._answer = answer

    async def call(self, op: str, args: bytes) -> bytes:
        told = self._answer(op, json.loads(args))
        if isinstance(told, Awaitable):
            told = await told
        return json.dumps(told).encode()


def program(code: str, *, project: str = "p", function: str = "f", version: int = 1, fresh: bool = False) -> Program:
    """`code` is a whole module, or the body of `export default function (input, ctx)`."""
    if "export default" not in code:
        code = f"export default async function (input, ctx) {{ {code} }}"
    return Program(
        project_id=project,
        function_id=function,
        version=version,
        code=code.encode(),
        isolation="fresh" if fresh else "warm",
    )


async def run(
    engine: Supervisor, code: str | Program, argument: object = None, *, host: Any = None, limits: Limits = LIMITS
) -> Result:
    """Invoke it once."""
    what = program(code) if isinstance(code, str) else code
    invocation = Invocation(id="i", input=json.dumps(argument).encode())
    return await engine.invoke(what, invocation, limits, host or Silence())


def children_of(engine: Supervisor) -> dict[int, str]:
    """Pid and pool state of every live child."""
    return {link.worker.pid: child.state.value for child, link in engine._links.items()}


async def until(condition: Callable[[], bool], timeout_s: float = 10) -> None:
    """Poll until it holds, or fail."""
    async with asyncio.timeout(timeout_s):
        while not condition():  # noqa: ASYNC110 - what it waits for has no event
            await asyncio.sleep(0.002)


def is_alive(pid: int) -> bool:
    """Whether the process runs; a zombie does not."""
    with contextlib.suppress(OSError):
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    return False


def open_descriptors() -> int:
    return len(list(Path("/proc/self/fd").iterdir()))


@pytest.fixture
async def engine() -> AsyncIterator[QuickJS]:
    """Small caps, one spare; whatever the test does, nothing is left behind."""
    descriptors = open_descriptors()
    subject = QuickJS(spares=1, max_children=8, max_children_per_project=6, queue_ms=3_000)
    await subject.start()
    pids = {subject._keeper.zygote._process.pid}
    try:
        yield subject
    finally:
        pids |= set(children_of(subject))
        await subject.close()
    assert not any(map(is_alive, pids))
    assert open_descriptors() <= descriptors
