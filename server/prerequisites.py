"""The servers that a process of ours cannot start without, awaited before anything of it starts.

A process that begins while Postgres or NATS is being restarted waits for it, and does not fail: else those who keep
processes running would see it end again and again, and give it up for the fault of another.
"""

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from typing import Final

import nats
import psycopg
from nats.errors import Error as NatsError

from server.log import logger
from server.settings import Settings

log = logger("parts")

PATIENCE_S: Final = 45.0
"""Less than `up` gives a process to be ready."""

AGAIN_S: Final = 0.2
ATTEMPT_S: Final = 3
ABSENT: Final = (psycopg.OperationalError, NatsError, OSError, TimeoutError)

Probe = Callable[[], Awaitable[None]]


async def present(settings: Settings, patience_s: float = PATIENCE_S) -> None:
    """Return when all answer; after `patience_s` raise what the absent one raised last, one of ABSENT."""
    deadline_s = asyncio.get_running_loop().time() + patience_s
    for name, probe in _probes(settings).items():
        await _answers(name, probe, deadline_s)


async def _answers(name: str, probe: Probe, deadline_s: float) -> None:
    told = False
    while True:
        try:
            async with asyncio.timeout(ATTEMPT_S):
                await probe()
        except ABSENT as why:
            if asyncio.get_running_loop().time() > deadline_s:
                raise
            if not told:
                log.warning("parts.absent", f"Waiting for {name}: {why!r}")
            told = True
            await asyncio.sleep(AGAIN_S)
        else:
            return


def _probes(settings: Settings) -> Mapping[str, Probe]:
    return {
        "the control database": lambda: _ask_postgres(settings.database_url),
        "the tenants database": lambda: _ask_postgres(settings.tenant_database_url),
        "NATS": lambda: _ask_nats(settings.nats_url),
    }


async def _ask_postgres(url: str) -> None:
    async with await psycopg.AsyncConnection.connect(url, connect_timeout=ATTEMPT_S):
        pass


async def _ask_nats(url: str) -> None:
    async def ignored(_: Exception) -> None:
        """It is raised as well."""

    client = await nats.connect(url, connect_timeout=ATTEMPT_S, allow_reconnect=False, error_cb=ignored)
    await client.close()
