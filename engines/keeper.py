"""Keeps a zygote alive: proves its jail before first use, and launches another when it dies."""

import asyncio
import contextlib
import logging
from collections.abc import Awaitable, Callable
from typing import Final

from engines import selftest
from engines.zygote import Zygote

log = logging.getLogger(__name__)

BACKOFF_S: Final = (0.05, 5.0)

Launch = Callable[..., Awaitable[Zygote]]


class JailLeaks(Exception):
    """The self-test broke out of the jail. Serving untrusted code would not be safe here."""


class Keeper:
    """`died` and `returned` are called when the zygote goes and when another is ready. All on the main thread."""

    def __init__(
        self, module: str, launch: Launch, *, unsafe: bool, died: Callable[[], None], returned: Callable[[], None]
    ) -> None:
        self.module = module
        self.zygote: Zygote
        self.restarts = 0
        self._launch = launch
        self._unsafe = unsafe
        self._died, self._returned = died, returned
        self._relaunching: asyncio.Task[None] | None = None
        self._closing = False

    async def start(self) -> None:
        """Launch the zygote and try to break out of it. Raises ZygoteError, SpawnFailed or JailLeaks."""
        self.zygote = await self._launch(self.module, unsafe=self._unsafe)
        try:
            await self._prove()
        except BaseException:
            await self.zygote.close()
            raise
        self.zygote.died.add_done_callback(self._on_death)

    async def close(self) -> None:
        """End the zygote and every child of it."""
        self._closing = True
        if self._relaunching is not None:
            self._relaunching.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._relaunching
        await self.zygote.close()

    async def _prove(self) -> None:
        escaped = await selftest.probe(self.zygote)
        if escaped and not self._unsafe:
            raise JailLeaks(f"the jail does not hold: {', '.join(escaped)}")
        for what in escaped:
            log.error("The jail does not hold: %s", what, extra={"action": "jail_leaks"})

    def _on_death(self, died: "asyncio.Future[str]") -> None:
        if self._closing:
            return
        log.error("The zygote is gone: %s", died.result(), extra={"action": "zygote_died"})
        self._died()
        self._relaunching = asyncio.get_running_loop().create_task(self._relaunch())

    async def _relaunch(self) -> None:
        pause_s, longest_s = BACKOFF_S
        await self.zygote.close()
        while True:
            try:
                zygote = await self._launch(self.module, unsafe=self._unsafe)
                break
            except Exception as why:  # whatever it is, without a zygote nothing new can start: go on trying
                log.error("No zygote: %s", why, extra={"action": "zygote_died"})
                await asyncio.sleep(pause_s)
                pause_s = min(pause_s * 2, longest_s)
        self.zygote = zygote
        self.restarts += 1
        zygote.died.add_done_callback(self._on_death)
        self._returned()
