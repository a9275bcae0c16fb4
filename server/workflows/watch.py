"""A run as it goes on, for those who watch: its state, then each change, until it has ended. From any process.

Core NATS says that something changed; what, is read from Postgres, so that a message that is lost costs only time.
Changes that follow one another closely are told together.
"""

import asyncio
from collections import Counter
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from typing import Final

from nats.aio.msg import Msg

from server.errors import ResourceExhausted, Unavailable
from server.events.bus import EventBus
from server.workflows import stream
from server.workflows.records import Run, StepRecord
from server.workflows.runs import Workflows

POLL_S: Final = 5.0
AWAY_POLL_S: Final = 1.0
"""While NATS is away."""

SETTLE_S: Final = 0.02
WATCHERS_PER_PROJECT: Final = 50
"""In one process."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Change:
    """The run, and those of its steps that are other than when last told; at first all."""

    run: Run
    steps: Sequence[StepRecord]


class Watching:
    def __init__(self, workflows: Workflows, bus: EventBus, *, poll_s: float = POLL_S) -> None:
        self._workflows = workflows
        self._bus = bus
        self._poll_s = poll_s
        self._watching: Counter[str] = Counter()
        self._wakes: set[asyncio.Event] = set()
        self._closed = False

    async def watch(self, project_id: str, run_id: str, *, silence_s: float) -> AsyncIterator[Change | None]:
        """The changes; None after each `silence_s` without one. Ends with the run, or with this process's service.

        NotFound; ResourceExhausted above WATCHERS_PER_PROJECT.
        """
        async with self._counted(project_id), self._told(run_id.lower()) as wake:
            run, steps = await self._workflows.get(project_id, run_id)
            yield Change(run=run, steps=steps)
            quiet_s = 0.0
            while run.state == "running" and not self._closed:
                wait_s = min(self._poll_s if self._bus.connected else AWAY_POLL_S, silence_s - quiet_s)
                if await _set_within(wake, wait_s):
                    await asyncio.sleep(SETTLE_S)
                wake.clear()
                known = (run, {step.node_id: step for step in steps})
                with suppress(Unavailable):
                    run, steps = await self._workflows.get(project_id, run_id)
                changed = [step for step in steps if known[1].get(step.node_id) != step]
                if changed or run != known[0]:
                    quiet_s = 0.0
                    yield Change(run=run, steps=changed)
                elif (quiet_s := quiet_s + wait_s) >= silence_s:
                    quiet_s = 0.0
                    yield None

    def close(self) -> None:
        """End every watch. For the beginning of a shutdown."""
        self._closed = True
        for wake in self._wakes:
            wake.set()

    @asynccontextmanager
    async def _counted(self, project_id: str) -> AsyncIterator[None]:
        if self._watching[project_id] >= WATCHERS_PER_PROJECT:
            raise ResourceExhausted(
                f"This server serves {WATCHERS_PER_PROJECT} watchers of a project's runs at a time; end one first",
                reason="TOO_MANY_WATCHERS",
                metadata={"allowed": str(WATCHERS_PER_PROJECT)},
            )
        self._watching[project_id] += 1
        try:
            yield
        finally:
            self._watching[project_id] -= 1
            if not self._watching[project_id]:
                del self._watching[project_id]

    @asynccontextmanager
    async def _told(self, run_id: str) -> AsyncIterator[asyncio.Event]:
        """Set whenever something of the run changed. While NATS is away, polling does."""
        wake = asyncio.Event()

        async def hear(_: Msg) -> None:
            wake.set()

        self._wakes.add(wake)
        subscription = None
        with suppress(*stream.AWAY):
            subscription = await self._bus.client.subscribe(f"{stream.PROGRESS}.{_token(run_id)}", cb=hear)
        try:
            yield wake
        finally:
            self._wakes.discard(wake)
            if subscription is not None:
                with suppress(*stream.AWAY):
                    await subscription.unsubscribe()


def _token(run_id: str) -> str:
    """What may stand in a subject; whatever else is no run's id."""
    return "".join(char for char in run_id if char.isalnum() or char == "-")[:36] or "none"


async def _set_within(event: asyncio.Event, seconds: float) -> bool:
    with suppress(TimeoutError):
        async with asyncio.timeout(seconds):
            await event.wait()
    return event.is_set()
