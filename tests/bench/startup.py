"""From `make run` to ready, as a person starts it: the first time on a new state, and again. Not with the set-up of
`.venv`, which depends on the network."""

import asyncio
import os
import shutil
import signal
import time
from pathlib import Path
from typing import Final

from server.stack.nats import free_port
from tests.bench.rows import Row
from tests.bench.stack import new_folder

TITLE: Final = "Start of the whole stack"
ROOT: Final = Path(__file__).parents[2]
READY: Final = b"Ready in "
READY_WITHIN_S: Final = 90.0
LATER: Final = 3


async def measure() -> list[Row]:
    """About 20 s."""
    folder = new_folder()
    try:
        variables = {
            **{name: value for name, value in os.environ.items() if not name.startswith(("ATLAS_", "MAKE"))},
            "ATLAS_STATE_DIR": str(folder / "state"),
            "ATLAS_RUN_DIR": str(folder / "run"),
            "ATLAS_FUNCTIONS_DIR": str(folder / "functions"),
            "ATLAS_PORT": str(free_port()),
        }
        first_s, stop_s = await start_and_stop(variables)
        later = [await start_and_stop(variables) for _ in range(LATER)]
    finally:
        shutil.rmtree(folder)
    return [
        Row("`make run` to ready, first, with a new database", first_s, "s"),
        Row("`make run` to ready, later", sorted(start_s for start_s, _ in later)[LATER // 2], "s"),
        Row("Ctrl-C to the end, longest", max(stop_s, *(stop_s for _, stop_s in later)), "s", "< 10"),
    ]


async def start_and_stop(variables: dict[str, str]) -> tuple[float, float]:
    """Seconds from the command to its banner, and from Ctrl-C to its end."""
    began_s = time.monotonic()
    process = await asyncio.create_subprocess_exec(
        *("make", "--no-print-directory", "run"),
        cwd=ROOT,
        env=variables,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
        start_new_session=True,
    )
    assert process.stdout
    said: list[bytes] = []
    try:
        async with asyncio.timeout(READY_WITHIN_S):
            async for line in process.stdout:
                said.append(line)
                if line.startswith(READY):
                    break
            else:
                raise RuntimeError(f"`make run` ended:\n{b''.join(said).decode()}")
        ready_s = time.monotonic() - began_s
    finally:
        asked_s = time.monotonic()
        if process.returncode is None:
            os.killpg(process.pid, signal.SIGINT)  # as a terminal does
        await process.communicate()
    return ready_s, time.monotonic() - asked_s
