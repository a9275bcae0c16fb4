"""Keeps the parts running: a part that ends is started again, later each time, for as long as it takes.

start ─▶ ready ─▶ (ends) ─▶ wait ─▶ start …      Only one that is not ready at its first start is an error.
"""

import asyncio
import contextlib
import time
from collections.abc import Callable
from typing import Final

from server.stack.part import POLL_S, Part, PartFailed, Running, start

FIRST_DELAY_S: Final = 0.1
LONGEST_DELAY_S: Final = 30.0
STEADY_S: Final = 10.0
"""One that was ready for so long is started at once."""

TELLING: Final = 5
"""The failure in a row at which people are told what it wrote last."""


class Restarts:
    """When to start a part again: pure, the clock is the caller's."""

    def __init__(self) -> None:
        self.failures = 0
        """In a row."""
        self._ready_at_s = float("inf")

    def ready(self, now_s: float) -> None:
        self._ready_at_s = now_s

    def after_failure(self, now_s: float) -> float:
        """How long to wait before the next start."""
        if now_s - self._ready_at_s >= STEADY_S:
            self.failures = 0
        self._ready_at_s = float("inf")
        self.failures += 1
        return min(FIRST_DELAY_S * 2.0 ** min(self.failures - 1, 20), LONGEST_DELAY_S)


class Supervisor:
    """`say` gets a line for people whenever a part ends or is back."""

    def __init__(self, mark: str, say: Callable[[str], None]) -> None:
        self._mark = mark
        self._say = say
        self._running: dict[str, Running] = {}
        self._order: list[str] = []
        self._keepers: dict[str, asyncio.Task[None]] = {}

    def __repr__(self) -> str:
        return f"<Supervisor {', '.join(repr(running) for running in self._running.values()) or 'of nothing'}>"

    async def start(self, part: Part) -> float:
        """Start a part and keep it running; how many seconds it took to be ready. PartFailed if it is not."""
        began_s = time.monotonic()
        self._order.append(part.name)
        await self._launch(part)
        self._keepers[part.name] = asyncio.create_task(self._keep(part), name=f"keep {part.name}")
        return time.monotonic() - began_s

    async def stop(self) -> None:
        """Stop all parts, the last one first; none is left when it returns."""
        for keeper in self._keepers.values():
            keeper.cancel()
        await asyncio.gather(*self._keepers.values(), return_exceptions=True)
        for names in self._stages():
            await asyncio.gather(*(self._end(self._running[name]) for name in names if name in self._running))

    def kill(self) -> None:
        """End every part now, without its consent. `stop` still has to reap them."""
        for running in self._running.values():
            running.kill()

    def _stages(self) -> list[list[str]]:
        """Names in the order of stopping; `api-0`, `api-1`, … stop together."""
        stages: list[list[str]] = []
        for name in reversed(self._order):
            kind = name.partition("-")[0]
            if stages and stages[-1][0].partition("-")[0] == kind:
                stages[-1].append(name)
            else:
                stages.append([name])
        return stages

    async def _launch(self, part: Part) -> None:
        running = self._running[part.name] = start(part, self._mark)
        deadline_s = time.monotonic() + part.ready_s
        while not running.check_ready(deadline_s):  # noqa: ASYNC110
            await asyncio.sleep(POLL_S)  # another process, which sets no event of ours

    async def _keep(self, part: Part) -> None:
        restarts = Restarts()
        restarts.ready(time.monotonic())
        problem: str | None = None
        while True:
            running = self._running[part.name]
            if problem is None:
                await _end_of(running)
                problem = running.obituary()
            running.kill()
            running.close()
            delay_s = restarts.after_failure(time.monotonic())
            if restarts.failures == TELLING:
                self._say(f"! {problem}")
            later = f" in {delay_s:.0f} s" if delay_s >= 1 else ""
            self._say(f"! {problem.splitlines()[0]}; starting it again{later}")
            await asyncio.sleep(delay_s)
            try:
                await self._launch(part)
            except PartFailed as why:
                problem = str(why)
            except Exception as why:  # whatever it is, it may pass
                problem = f"{part.name} could not be started: {why}"
            else:
                problem = None
                restarts.ready(time.monotonic())
                self._say(f"· {part.name} is back")

    async def _end(self, running: Running) -> None:
        running.ask_to_stop()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(running.part.stop_s):
                await _end_of(running)
        running.kill()
        running.close()


async def _end_of(running: Running) -> None:
    """Wait until the process has ended."""
    if running.pidfd < 0 or not running.alive:
        return
    loop = asyncio.get_running_loop()
    done = asyncio.Event()
    loop.add_reader(running.pidfd, done.set)
    try:
        await done.wait()
    finally:
        loop.remove_reader(running.pidfd)
    running.process.wait()
