"""Tasks end, whatever becomes of a cancellation."""

import asyncio
from typing import Any, cast

import pytest

from server.invocations import leases
from server.invocations.async_worker import AsyncWorker
from server.invocations.attempts import Attempts
from server.invocations.leases import Leases
from server.runs import stream
from server.runs.writer import Writer
from server.tasks import end_task
from server.workflows import claims
from server.workflows.claims import Claims


async def test_a_task_that_is_done_is_left_alone() -> None:
    task = asyncio.create_task(asyncio.sleep(0))
    await task
    await end_task(task)
    assert not task.cancelled()


async def test_a_task_ends_though_a_cancellation_is_swallowed() -> None:
    swallowed = 0

    async def stubborn() -> None:
        nonlocal swallowed
        while True:
            try:
                await asyncio.Event().wait()
            except asyncio.CancelledError:
                swallowed += 1
                if swallowed == 3:
                    raise

    task = asyncio.create_task(stubborn())
    await asyncio.sleep(0)
    await end_task(task, again_s=0.001)
    assert (task.cancelled(), swallowed) == (True, 3)


async def test_a_task_may_tidy_up_meanwhile() -> None:
    tidy = False

    async def work() -> None:
        nonlocal tidy
        try:
            await asyncio.Event().wait()
        finally:
            await asyncio.sleep(0)
            tidy = True

    task = asyncio.create_task(work())
    await asyncio.sleep(0)
    await end_task(task)
    assert tidy


class Changes:
    def subscribe(self, *_: object) -> None:
        pass


async def test_every_loop_ends_so(monkeypatch: pytest.MonkeyPatch) -> None:
    stubborn = asyncio.Semaphore(0)
    swallowed: set[object] = set()

    async def swallow_once(*_: object) -> None:
        stubborn.release()
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            if (task := asyncio.current_task()) in swallowed:
                raise
            swallowed.add(task)

    nothing: Any = cast("Any", None)
    loops: list[Leases | Claims | Writer | AsyncWorker] = [
        Leases(nothing, "idempotency_keys"),
        Claims(nothing),
        Writer(nothing, nothing),
        AsyncWorker(nothing, cast("Any", Changes()), nothing, Attempts(nothing), nothing),
    ]
    for module in (leases, claims):
        monkeypatch.setattr(module, "RENEW_EVERY_S", 0.0)
    monkeypatch.setattr(Leases, "renew", swallow_once)
    monkeypatch.setattr(Claims, "renew", swallow_once)
    monkeypatch.setattr(stream, "ensure", swallow_once)
    monkeypatch.setattr(AsyncWorker, "_claim", swallow_once)
    for each in loops:
        await each.start()
    for _ in range(len(loops) + 1):  # the worker has leases as well
        await stubborn.acquire()
    async with asyncio.timeout(10):
        await asyncio.gather(*(each.close(0, 0) if isinstance(each, Claims) else each.close() for each in loops))
