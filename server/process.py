"""The life of one process of ours: a uvloop, parts on a stack, a signal to end it."""

import asyncio
import signal
from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack

import uvloop

from server.settings import Settings, SettingsError, variable

Stopping = asyncio.Future[signal.Signals]
"""Resolves with the first SIGTERM or SIGINT; later ones change nothing."""

Main = Callable[[AsyncExitStack, Stopping], Awaitable[None]]


def run(main: Main) -> None:
    """Run `main` to its end; whatever it put onto the stack is closed then, in reverse, whatever happened."""
    uvloop.run(_run(main))


async def _run(main: Main) -> None:
    loop = asyncio.get_running_loop()
    stopping: Stopping = loop.create_future()

    def asked(number: signal.Signals) -> None:
        if not stopping.done():
            stopping.set_result(number)

    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, asked, number)
    async with AsyncExitStack() as stack:
        await main(stack, stopping)


def require(settings: Settings, names: tuple[str, ...], who: str) -> None:
    """SettingsError that names every variable which `who` needs and lacks."""
    missing = [variable(name) for name in names if not getattr(settings, name)]
    if missing:
        raise SettingsError(f"{who} needs {', '.join(missing)}; `python -m server up` sets all of them")
