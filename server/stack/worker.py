"""A worker process as a part: `python -m server worker`."""

import signal
import sys
from pathlib import Path

from server.settings import Settings
from server.stack.api import accepts, environment
from server.stack.envoy import ROOT
from server.stack.part import Part


def part(name: str, settings: Settings, log: Path) -> Part:
    """The process tells on `settings.worker_socket` that it works."""
    path = settings.worker_socket
    assert path is not None
    return Part(
        name=name,
        argv=(sys.executable, "-m", "server", "worker"),
        cwd=ROOT,
        env=environment(settings),
        log=log,
        sockets=(path,),
        probe=lambda: accepts(path),
        ready_s=60.0,
        stop_s=6.0,
        death_signal=signal.SIGKILL,
    )
