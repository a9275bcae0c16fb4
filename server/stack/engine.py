"""The Wasm engine, which is built once, while everything else serves already."""

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator
from pathlib import Path

from engines.wasm import image
from server.stack.progress import say


@contextlib.asynccontextmanager
async def building(cache_dir: Path) -> AsyncIterator[None]:
    """Build it during the block where it is not there yet, and tell of it; what is unfinished at its end is killed.

    API and worker processes ask for the same image: they wait for this build, or take over when it is killed.
    """
    task = asyncio.create_task(_build(cache_dir), name="wasm engine")
    try:
        yield
    finally:
        task.cancel()
        await asyncio.wait((task,))


async def _build(cache_dir: Path) -> None:
    try:
        if await asyncio.to_thread(image.peek, cache_dir) is not None:
            return
        say("· building the Wasm engine (once, about 40 s)")
        began_s = time.monotonic()
        await image.ensure(cache_dir)
        say(f"· Wasm engine ready in {time.monotonic() - began_s:.1f} s")
    except (image.Distrusted, image.ImageFault, OSError) as why:
        say(f"! no functions of runtime wasm for now: {why} (ATLAS_ENGINE_CACHE_DIR chooses the directory)")
