"""The program: `python -m server up | api | worker | migrate | reset`."""

import signal

signal.signal(signal.SIGINT, signal.SIG_DFL)  # Ctrl-C ends it without a traceback, until there is something to stop

import argparse  # noqa: E402
import asyncio  # noqa: E402
import sys  # noqa: E402
from collections.abc import Callable, Mapping  # noqa: E402
from typing import Final  # noqa: E402

from server import log  # noqa: E402
from server.settings import Settings, SettingsError, load  # noqa: E402


def _up(settings: Settings) -> int:
    """start the whole stack in the foreground: Postgres, NATS, Valkey, Envoy API and worker processes"""
    from server.stack.up import up

    return up(settings)


def _api(settings: Settings) -> int:
    """run one API process on the unix socket ATLAS_API_SOCKET (`up` starts these)"""
    from server.app import run_api

    run_api(settings)
    return 0


def _worker(settings: Settings) -> int:
    """run one worker process (`up` starts these)"""
    from server.worker import run_worker

    run_worker(settings)
    return 0


def _migrate(settings: Settings) -> int:
    """bring the schema of the control database in ATLAS_DATABASE_URL up to date (`up` does this, too)"""
    from server.postgres.migrate import MigrationError, migrate

    if not settings.database_url:
        print("ATLAS_DATABASE_URL is not set; the embedded database is migrated by `up`", file=sys.stderr)
        return 1
    try:
        applied = asyncio.run(migrate(settings.database_url))
    except MigrationError as why:
        print(why, file=sys.stderr)
        return 1
    print("\n".join(applied) or "Nothing to apply.")
    return 0


def _reset(settings: Settings) -> int:
    """delete the state of the embedded stack: databases, streams, keys, deployed functions"""
    from server.stack.reset import reset

    return reset(settings)


# Each imports what it needs when it runs: `up` forks, which gRPC's threads would not survive.
COMMANDS: Final[Mapping[str, Callable[[Settings], int]]] = {
    "up": _up,
    "api": _api,
    "worker": _worker,
    "migrate": _migrate,
    "reset": _reset,
}


def main() -> int:
    parser = argparse.ArgumentParser(
        prog="python -m server", description="Serverless functions and triggers. Configured by ATLAS_* variables."
    )
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for name, command in COMMANDS.items():
        commands.add_parser(name, help=command.__doc__, description=command.__doc__)
    chosen = parser.parse_args().command
    try:
        settings = load()
    except SettingsError as why:
        print(f"Bad settings:\n{why}", file=sys.stderr)
        return 2
    log.configure(settings.log_level)
    return COMMANDS[chosen](settings)


if __name__ == "__main__":
    sys.exit(main())
