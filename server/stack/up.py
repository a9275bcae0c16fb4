"""`python -m server up`: the whole stack in the foreground, until Ctrl-C.

    lock → Postgres, NATS, Valkey → databases, migrations, default project → API and worker processes → Envoy → ready
    (a server whose variable points elsewhere is not started)               ╰→ the Wasm engine, the first time

It ends with 0 when it was asked to, else with 1 and the reason. Nothing it started is left behind.
"""

import asyncio
import os
import signal
import sys
import time
from dataclasses import replace
from typing import Final

import psycopg

from server.errors import AtlasError
from server.postgres.migrate import MigrationError
from server.settings import Settings
from server.stack import bootstrap, orphans
from server.stack.account import AccountError
from server.stack.address import PortTaken, require_free, shown_url, wait_healthy
from server.stack.credentials import CredentialsError, credentials
from server.stack.engine import building
from server.stack.launch import start_own, start_servers
from server.stack.lock import AlreadyRunning, locked
from server.stack.logfiles import Warnings, rotate
from server.stack.part import PartFailed
from server.stack.places import PlaceError, Places, places
from server.stack.progress import banner, ready, say
from server.stack.supervisor import Supervisor

WATCH_EVERY_S: Final = 0.5

EXPECTED = (
    AccountError,
    AlreadyRunning,
    AtlasError,
    CredentialsError,
    MigrationError,
    PartFailed,
    PlaceError,
    PortTaken,
    psycopg.Error,
    OSError,
)
"""What may go wrong for reasons outside of this program: said in a sentence, without a traceback."""


def up(settings: Settings) -> int:
    """Run until asked to stop; the exit status."""
    os.umask(0o022)
    home = places(settings)
    try:
        home.make()
        with locked(home.state):
            if count := orphans.end(home.mark, home.data / "postgres"):
                say(f"· ended {count} processes that an earlier run had left")
            require_free(settings)
            return asyncio.run(_run(settings, home))
    except EXPECTED as why:
        print(f"\nThe stack failed: {why}", file=sys.stderr, flush=True)
        return 1


async def _run(settings: Settings, home: Places) -> int:
    stop = asyncio.Event()
    supervisor = Supervisor(home.mark, say)

    def asked() -> None:
        if stop.is_set():
            say("Killing.")
            supervisor.kill()
        stop.set()

    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        asyncio.get_running_loop().add_signal_handler(number, asked)
    life = asyncio.create_task(_live(settings, home, supervisor), name="live")
    wish = asyncio.create_task(stop.wait(), name="stop")
    try:
        await asyncio.wait((life, wish), return_when=asyncio.FIRST_COMPLETED)
        if life.done():
            raise life.exception() or AssertionError("it lives until it fails")
        say("\nStopping.")
        return 0
    finally:
        began_s = time.monotonic()
        for task in (life, wish):
            task.cancel()
        await asyncio.gather(life, wish, return_exceptions=True)
        await supervisor.stop()
        say(f"Stopped in {time.monotonic() - began_s:.1f} s. The state is kept in {home.state}.")


async def _live(settings: Settings, home: Places, supervisor: Supervisor) -> None:
    """Start everything, then watch for ever. Raises what keeps the stack from being started."""
    began_s = time.monotonic()
    secrets = credentials(home.state, settings)
    settings = replace(
        settings,
        admin_key=secrets.admin_key,
        master_key=secrets.master_key,
        functions_dir=settings.functions_dir.absolute(),
        storage_dir=settings.storage_dir.absolute(),
        engine_cache_dir=settings.engine_cache_dir.absolute(),
        state_dir=home.state,
    )
    settings = await start_servers(settings, home, secrets, supervisor)
    first_s = time.monotonic()
    env, applied = await bootstrap.prepare(
        control_url=settings.database_url,
        tenants_url=settings.tenant_database_url,
        credentials=secrets,
        kept=bootstrap.read_env(home.env_file),
        url=shown_url(settings),
    )
    bootstrap.write_env(home.env_file, env)
    ready("databases", time.monotonic() - first_s, f"{len(applied)} migrations applied" if applied else "")
    async with building(settings.engine_cache_dir):
        logs = await start_own(settings, home, supervisor)
        await wait_healthy(settings)
        banner(home, env, time.monotonic() - began_s)
        await _watch(home, Warnings(logs, say))


async def _watch(home: Places, warnings: Warnings) -> None:
    while True:
        await asyncio.sleep(WATCH_EVERY_S)
        warnings.read()
        rotate(home.logs)
