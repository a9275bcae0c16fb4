"""Brings the Wasm engine up, once, while nobody has to wait who does not need it.

begin()    the image is looked for, and built if this is the first time: 40 s of one core at low priority
running()  at first use: the image is compiled, and two zygotes are launched, of sandboxes and of compilers
"""

import asyncio
import contextlib
import hashlib
import json
import logging
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Final

from engines.keeper import JailLeaks, Launch
from engines.runtimes import EngineNotReady
from engines.supervisor import Supervisor
from engines.wasm import image
from engines.wasm.cache import HEAD_BYTES, Cache
from engines.wasm.compiler import Busy, Compiler, Refused
from engines.wasm.image import Image
from engines.zygote import SpawnFailed, ZygoteError

log = logging.getLogger(__name__)

RETRY_S: Final = 5.0
_CAUSES: Final = (
    image.ImageFault, image.Distrusted, ZygoteError, SpawnFailed, JailLeaks, Refused, Busy, OSError, ValueError,
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Running:
    image: Image
    compiler: Compiler
    supervisor: Supervisor

    async def close(self) -> None:
        await asyncio.gather(self.compiler.close(), self.supervisor.close())


class Startup:
    """`supervisor(launch=…)` makes the supervisor of sandboxes; it is started here."""

    def __init__(
        self,
        cache_dir: Path,
        cache: Cache,
        supervisor: Callable[..., Supervisor],
        *,
        launch: Launch,
        unsafe: bool,
        patience_s: float,
    ) -> None:
        self._cache_dir, self._cache, self._supervisor = cache_dir, cache, supervisor
        self._launch, self._unsafe, self._patience_s = launch, unsafe, patience_s
        self._image: asyncio.Task[Image] | None = None
        self._running: asyncio.Task[Running] | None = None
        self._failed_s = -RETRY_S
        self._progress = ""
        self._closed = False

    def begin(self) -> None:
        """Look for the image, and build it if it is not there."""
        if self._image is None or _failed(self._image):
            self._image = asyncio.get_running_loop().create_task(self._ensure())
            self._image.add_done_callback(_heard)

    @property
    def now(self) -> Running | None:
        """What runs, if it does already."""
        task = self._running
        return task.result() if task is not None and task.done() and not _failed(task) else None

    @property
    def state(self) -> str:
        if self.now is not None:
            return "running"
        if self._image is None or _failed(self._image):
            return "failed" if self._image else "not started"
        return "built" if self._image.done() else f"being built: {self._progress}"

    async def running(self) -> Running:
        """What runs, started first at first use. Raises EngineNotReady when that takes too long, or failed just now."""
        if (now := self.now) is not None:
            return now
        if self._closed:
            raise RuntimeError("the engine is closed")
        loop = asyncio.get_running_loop()
        if self._running is None or self._running.done():
            if loop.time() < self._failed_s + RETRY_S:
                raise EngineNotReady("The Wasm engine could not be started; that is tried again in a moment")
            self._running = loop.create_task(self._start())
            self._running.add_done_callback(_heard)
        try:
            async with asyncio.timeout(self._patience_s):
                return await asyncio.shield(self._running)
        except TimeoutError:
            raise EngineNotReady(f"The Wasm engine is being built, which is done once: {self._progress}") from None
        except _CAUSES as why:
            self._failed_s = loop.time()
            raise EngineNotReady(f"The Wasm engine could not be started: {why}") from why

    async def close(self) -> None:
        """End what runs, and stop what is being started."""
        self._closed = True
        for task in (self._running, self._image):
            if task is not None and not task.done():
                task.cancel()
                with contextlib.suppress(asyncio.CancelledError, *_CAUSES):
                    await task
        if (now := self.now) is not None:
            await now.close()

    async def _ensure(self) -> Image:
        try:
            return await image.ensure(self._cache_dir, say=self._say)
        except _CAUSES as why:
            log.error("The Wasm engine cannot be built: %s", why, extra={"action": "wasm_engine_failed"})
            raise

    def _say(self, line: str) -> None:
        self._progress = line
        log.info("The Wasm engine is being built, once: %s", line, extra={"action": "wasm_engine_build"})

    async def _start(self) -> Running:
        self.begin()
        assert self._image is not None
        built = await asyncio.shield(self._image)
        argument = await self._compiled(built)
        compiler = Compiler(launch=self._launch, image=argument, unsafe=self._unsafe)
        supervisor = self._supervisor(launch=partial(self._launch, argument=argument))
        running = Running(built, compiler, supervisor)
        try:
            await compiler.start()
            await supervisor.start()
        except BaseException:
            await running.close()
            raise
        return running

    async def _compiled(self, built: Image) -> str:
        """Where the zygotes find the image's native code."""
        path = self._cache.path("engine", built.sha256)
        compiled = await self._cache.get(path)
        if compiled is None:
            first = Compiler(launch=self._launch, unsafe=self._unsafe)
            try:
                await first.start()
                compiled = await first.image(built.wasm)
            finally:
                await first.close()
            await self._cache.put(path, compiled)
        digest = hashlib.blake2b(compiled.code).hexdigest()
        return json.dumps({"path": str(path.absolute()), "skip": HEAD_BYTES, "digest": digest})


def _failed(task: "asyncio.Task[Any]") -> bool:
    return task.done() and (task.cancelled() or task.exception() is not None)


def _heard(task: "asyncio.Task[Any]") -> None:
    """Whoever waited has been told."""
    if not task.cancelled():
        task.exception()
