"""Tasks end, whatever becomes of a cancellation."""

import asyncio

from server.tasks import end_task


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
