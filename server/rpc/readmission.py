"""A stream lasts no longer than its key: whoever opened it is admitted again every few seconds."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

from server.errors import AtlasError, Unavailable


@asynccontextmanager
async def kept_admitted(admit: Callable[[], Awaitable[None]], every_s: float) -> AsyncIterator[None]:
    """Cancel the block once `admit` refuses, and raise its refusal instead.

    That nobody can be asked is no refusal. A cancellation from elsewhere passes through.
    """
    task = asyncio.current_task()
    assert task is not None
    cancelling = task.cancelling()
    refusal: AtlasError | None = None

    async def ask_for_ever() -> None:
        nonlocal refusal
        while refusal is None:
            await asyncio.sleep(every_s)
            try:
                await admit()
            except Unavailable:
                continue
            except AtlasError as why:
                refusal = why
                task.cancel()

    asking = asyncio.create_task(ask_for_ever(), name="readmission")
    try:
        yield
    except asyncio.CancelledError:
        if refusal is None or task.uncancel() > cancelling:
            raise
        raise refusal from None
    finally:
        asking.cancel()
