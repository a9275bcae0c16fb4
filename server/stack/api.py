"""An API process as a part: `python -m server api` on a unix socket of its own."""

import os
import signal
import socket
import sys
from pathlib import Path
from typing import Final

from server.settings import Settings, variable
from server.stack.account import Account
from server.stack.envoy import ROOT
from server.stack.part import Part

DECIDED: Final = (
    *("database_url", "tenant_database_url", "nats_url", "redis_url"),
    *("admin_key", "master_key", "functions_dir", "storage_dir", "engine_cache_dir", "state_dir"),
    *("api_socket", "worker_socket", "metrics_dir"),
)

GRPC: Final = {"GRPC_EXPERIMENTS": "-event_engine_listener"}
"""gRPC's newer listener hands every read and write to threads of its own: a quarter of what a call costs in Python."""


def part(name: str, settings: Settings, log: Path, front: Account | None) -> Part:
    """The process serves on `settings.api_socket`, which `front` (who runs Envoy) may connect to."""
    path = settings.api_socket
    assert path is not None

    def admit() -> None:
        if front:
            os.chown(path, front.uid, front.gid)

    return Part(
        name=name,
        argv=(sys.executable, "-m", "server", "api"),
        cwd=ROOT,
        env=environment(settings),
        log=log,
        sockets=(path,),
        probe=lambda: accepts(path),
        after=admit,
        ready_s=60.0,
        stop_signal=signal.SIGINT,  # Envoy is gone by then, and the clients with it
        stop_s=6.0,
        death_signal=signal.SIGKILL,
    )


def environment(settings: Settings) -> dict[str, str]:
    """Our own environment, with what `up` has decided, empty where that is nothing. gRPC's own variables go first."""
    values = {variable(name): getattr(settings, name) for name in DECIDED}
    decided = {name: "" if value is None else str(value) for name, value in values.items()}
    paths = (str(ROOT), str(ROOT / "gen"), os.environ.get("PYTHONPATH", ""))
    return {**GRPC, **os.environ, **decided, "PYTHONPATH": os.pathsep.join(filter(None, paths))}


def accepts(path: Path) -> bool:
    """Whether somebody listens on the socket."""
    try:
        with socket.socket(socket.AF_UNIX) as connection:
            connection.settimeout(1.0)
            connection.connect(str(path))
    except OSError:
        return False
    return True
