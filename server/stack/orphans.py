"""Processes that an earlier run may have left: found by their mark or working directory, ended with certainty.

The kernel ends our children when we die, but that takes a moment (Postgres finishes its transactions first), and a new
run must not begin beside them.
"""

import os
import signal
import time
from collections.abc import Callable
from pathlib import Path

from server.stack.part import MARK

GRACE_S = 5.0
POLL_S = 0.05


def marked(mark: str) -> set[int]:
    """Processes that carry the mark in the environment they were started with."""
    wanted = f"{MARK}={mark}".encode()
    return {pid for pid in _processes() if wanted in _read(pid, "environ").split(b"\0")}


def working_in(directory: Path) -> set[int]:
    """Processes whose working directory is `directory` or below it, as of Postgres' and all its backends."""
    place = directory.resolve()
    found = set()
    for pid in _processes():
        try:
            if Path(f"/proc/{pid}/cwd").readlink().is_relative_to(place):
                found.add(pid)
        except OSError:
            continue
    return found


def end(mark: str, cluster: Path) -> int:
    """Wait for what is left of an earlier run and kill what stays; the number of processes there were. Blocks.

    `cluster` is the directory of Postgres' data. Its backends overwrite their environment and are known by where they
    work; nobody else works there but perhaps a person's shell, which is told by its program.
    """

    def left() -> set[int]:
        backends = {pid for pid in working_in(cluster) if _program(pid) == "postgres"}
        return (marked(mark) | backends) - {os.getpid()}

    first = pids = left()
    deadline_s = time.monotonic() + GRACE_S
    while pids:
        if time.monotonic() > deadline_s:
            for pid in pids:
                _kill(pid, left)
        time.sleep(POLL_S)
        pids = left()
    return len(first)


def _kill(pid: int, left: Callable[[], set[int]]) -> None:
    """Kill it if it is still the one meant: the number may have gone to another process since it was looked up."""
    try:
        handle = os.pidfd_open(pid)
    except ProcessLookupError:
        return
    try:
        if pid in left():
            signal.pidfd_send_signal(handle, signal.SIGKILL)
    except ProcessLookupError:
        pass
    finally:
        os.close(handle)


def _program(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/exe").readlink().name.removesuffix(" (deleted)")
    except OSError:
        return ""


def _processes() -> list[int]:
    return [int(entry.name) for entry in Path("/proc").iterdir() if entry.name.isdecimal()]


def _read(pid: int, name: str) -> bytes:
    try:
        return Path(f"/proc/{pid}/{name}").read_bytes()
    except OSError:
        return b""
