"""One server of the stack as a child process: start it, see it become ready, stop it.

No child outlives us: the kernel sends each its stop signal when we die, `kill -9` included. Each carries the mark of
its stack in its environment, by which a later run recognises what an earlier one may still have left behind.
"""

import ctypes
import os
import signal
import subprocess
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from server.stack.account import Account

MARK = "ATLAS_STACK_MARK"
POLL_S = 0.02
PR_SET_PDEATHSIG = 1

_prctl = ctypes.CDLL(None, use_errno=True).prctl


class PartFailed(Exception):
    """A part ended or did not become ready; the message names it and shows the tail of its log."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Part:
    """How to run one server.

    `probe` says whether it serves now: local, without side effects, at most a few milliseconds when it does.
    `stop_signal` asks for a quick, orderly end. `secrets` never appear in `argv`, which every user of the machine sees.
    """

    name: str
    argv: tuple[str, ...]
    cwd: Path
    log: Path
    probe: Callable[[], bool]
    env: Mapping[str, str] = field(default_factory=dict)
    account: Account | None = None
    stop_signal: signal.Signals = signal.SIGTERM
    ready_s: float = 20.0
    stop_s: float = 5.0


class Running:
    """A started part. `pidfd` becomes readable when it ends."""

    def __init__(self, part: Part, process: subprocess.Popen[bytes]) -> None:
        self.part = part
        self.process = process
        self.pidfd = os.pidfd_open(process.pid)
        self.started_s = time.monotonic()

    def __repr__(self) -> str:
        state = "running" if self.alive else f"ended with {self.process.returncode}"
        return f"<Running {self.part.name} pid={self.process.pid} {state}>"

    @property
    def alive(self) -> bool:
        return self.process.poll() is None

    def wait_ready(self) -> None:
        """Block until the probe succeeds; PartFailed if the part ends or `ready_s` pass."""
        deadline_s = self.started_s + self.part.ready_s
        while not self.check_ready(deadline_s):
            time.sleep(POLL_S)

    def check_ready(self, deadline_s: float) -> bool:
        """Whether it serves; PartFailed if it ended or the deadline (monotonic) has passed."""
        if not self.alive:
            raise PartFailed(ended(self.part, self.process.returncode))
        if self.part.probe():
            return True
        if time.monotonic() > deadline_s:
            raise PartFailed(f"{self.part.name} was not ready within {self.part.ready_s:g} s\n{tail(self.part.log)}")
        return False

    def ask_to_stop(self) -> None:
        if self.alive:
            self.process.send_signal(self.part.stop_signal)

    def kill(self) -> None:
        if self.alive:
            self.process.kill()

    def stop(self) -> None:
        """Ask, wait `stop_s`, kill, and reap."""
        self.ask_to_stop()
        try:
            self.process.wait(self.part.stop_s)
        except subprocess.TimeoutExpired:
            self.kill()
        self.close()

    def close(self) -> None:
        """Reap it, which must have been told to end, and free what we hold of it."""
        self.process.wait()
        if self.pidfd >= 0:
            os.close(self.pidfd)
            self.pidfd = -1


def start(part: Part, mark: str) -> Running:
    """Start the part, its output appended to its log. Call it from the main thread: the kernel ties the child's
    death signal to the thread that forked it."""
    us = os.getpid()
    stop_signal = int(part.stop_signal)

    def tie_to_parent() -> None:  # runs in the child, after the change of user (which clears the death signal)
        _prctl(PR_SET_PDEATHSIG, stop_signal, 0, 0, 0)
        if os.getppid() != us:
            os._exit(1)

    identity: dict[str, object] = {}
    if part.account:
        identity = {"user": part.account.uid, "group": part.account.gid, "extra_groups": []}
    with part.log.open("ab") as log:
        process = subprocess.Popen(
            part.argv,
            cwd=part.cwd,
            env={**part.env, MARK: mark},
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,  # Ctrl-C reaches us alone; we stop the parts in order
            preexec_fn=tie_to_parent,
            **identity,  # type: ignore[call-overload]
        )
    return Running(part, process)


def ended(part: Part, returncode: int) -> str:
    how = f"was killed by {signal.Signals(-returncode).name}" if returncode < 0 else f"ended with status {returncode}"
    return f"{part.name} {how}\n{tail(part.log)}"


def tail(log: Path, lines: int = 15, chunk_bytes: int = 16_384) -> str:
    """The last lines of a log, indented."""
    try:
        with log.open("rb") as file:
            file.seek(max(0, log.stat().st_size - chunk_bytes))
            text = file.read().decode(errors="replace")
    except FileNotFoundError:
        return "    (no log)"
    return "\n".join(f"    {line}" for line in text.splitlines()[-lines:]) or "    (its log is empty)"
