"""How tasks end: those that go on for ever, and work that is not to be cut off."""

import asyncio
from collections.abc import Coroutine
from typing import Any, Final

AGAIN_S: Final = 1.0


async def end_task(*tasks: asyncio.Task[Any], again_s: float = AGAIN_S) -> None:
    """Cancel them until they are done, every `again_s` seconds. nats-py, and wait_for of Python 3.11, may keep a
    cancellation to themselves: a loop that catches what they raise instead would go on, and be waited for in vain."""
    while going := [task for task in tasks if not task.done()]:
        for task in going:
            task.cancel()
        await asyncio.wait(going, timeout=again_s)


def unheard(task: asyncio.Task[Any]) -> None:
    """A done callback: should it fail, the event loop is not to report it, since another of the same work tells why."""
    if not task.cancelled():
        task.exception()


async def whole(work: Coroutine[object, object, None]) -> None:
    """Do it to its end; a cancellation waits for that."""
    task = asyncio.create_task(work)
    try:
        await asyncio.shield(task)
    except asyncio.CancelledError:
        await asyncio.wait([task])
        raise
