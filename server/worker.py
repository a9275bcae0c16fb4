"""A worker process: the work that no caller waits for, until SIGTERM or SIGINT.

Any number of workers share it; one that dies loses nothing, another takes over.
"""

import asyncio
from contextlib import AsyncExitStack
from typing import Final

from server import parts, process
from server.log import logger
from server.process import Stopping
from server.settings import Settings

log = logger("worker")

NEEDED: Final = ("worker_socket", *parts.NEEDED)

TIDY_S: Final = 3600.0


def run_worker(settings: Settings) -> None:
    """Work until SIGTERM or SIGINT, then finish what was begun and return.

    SettingsError names every variable a worker needs and lacks.
    """
    process.require(settings, NEEDED, "a worker process")

    async def main(stack: AsyncExitStack, stopping: Stopping) -> None:
        started = await parts.start(settings, stack, "worker")
        parts.repeat(started.projects.sweep, TIDY_S, "removing what deleted projects left", stack)
        parts.repeat(started.lifecycle.sweep, TIDY_S, "removing functions and files that are kept no more", stack)
        await _say_ready(settings, stack)
        await stopping
        log.info("worker.draining", "Finishing what runs, taking nothing new")

    process.run(main)


async def _say_ready(settings: Settings, stack: AsyncExitStack) -> None:
    """Who can connect to the socket knows that the worker works; it says nothing there."""
    path = settings.worker_socket
    assert path is not None
    await asyncio.to_thread(path.unlink, missing_ok=True)
    server = await asyncio.start_unix_server(lambda _, writer: writer.close(), path)
    stack.push_async_callback(asyncio.to_thread, path.unlink, missing_ok=True)
    stack.push_async_callback(server.wait_closed)
    stack.callback(server.close)
    log.info("worker.ready", "Working", socket=str(path))
