"""How tasks end: those that go on for ever, and work that is not to be cut off."""

import asyncio
from collections.abc import Coroutine
from typing import Any, Final

AGAIN_S: Final = 1.0


async def end_task(task: asyncio.Task[Any], again_s: float = AGAIN_S) -> None:
    """Cancel it until it is done, every `again_s` seconds. nats-py, and wait_for of Python 3.11, may keep a
    cancellation to themselves: a loop that catches what they raise instead would go on, and be waited for in vain."""
    while not task.done():
        task.cancel()
        await asyncio.wait([task], timeout=again_s)


async def whole(work: Coroutine[object, object, None]) -> None:
    """Do it to its end; a cancellation waits for that."""
    task = asyncio.create_task(work)
    try:
        await asyncio.shield(task)
    except asyncio.CancelledError:
        await asyncio.wait([task])
        raise
