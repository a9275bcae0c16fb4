"""One server of the stack as a child process: start it, see it become ready, stop it.

No child outlives us: the kernel sends each its stop signal when we die, `kill -9` included. Each carries the mark of
its stack in its environment, by which a later run recognises what an earlier one may still have left behind.
"""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from server.stack.account import Account

MARK = "ATLAS_STACK_MARK"
POLL_S = 0.02
LAUNCHER = Path(__file__).with_name("launcher.py")


class PartFailed(Exception):
    """A part ended or did not become ready; the message names it and shows the tail of its log."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Part:
    """How to run one server.

    `probe` says whether it serves now: local, without side effects, at most a few milliseconds when it does.
    `sockets` are files that it makes; they are removed before it starts and after it ended.
    `before` runs before every start, `after` once the part is ready.
    `data_bytes` is the most private memory that each of its processes may have (default: as much as there is).
    `stop_signal` asks for a quick, orderly end; the kernel sends `death_signal` when we die (default: the same).
    No secret may be in `argv`, which every user of the machine sees.
    """

    name: str
    argv: tuple[str, ...]
    cwd: Path
    log: Path
    probe: Callable[[], bool]
    sockets: tuple[Path, ...] = ()
    env: Mapping[str, str] = field(default_factory=dict)
    account: Account | None = None
    data_bytes: int | None = None
    before: Callable[[], None] = lambda: None
    after: Callable[[], None] = lambda: None
    stop_signal: signal.Signals = signal.SIGTERM
    death_signal: signal.Signals | None = None
    ready_s: float = 20.0
    stop_s: float = 5.0


class Running:
    """A started part. `pidfd` becomes readable when it ends."""

    def __init__(self, part: Part, process: subprocess.Popen[bytes], log_start: int) -> None:
        self.part = part
        self._log_start = log_start
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
            raise PartFailed(self.obituary())
        if self.part.probe():
            self.part.after()
            return True
        if time.monotonic() > deadline_s:
            last_words = tail(self.part.log, self._log_start)
            raise PartFailed(f"{self.part.name} was not ready within {self.part.ready_s:g} s\n{last_words}")
        return False

    def obituary(self) -> str:
        """How it ended, with the last lines that it wrote."""
        status = self.process.returncode
        how = f"was killed by {signal.Signals(-status).name}" if status < 0 else f"ended with status {status}"
        return f"{self.part.name} {how}\n{tail(self.part.log, self._log_start)}"

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
        remove_sockets(self.part)
        if self.pidfd >= 0:
            os.close(self.pidfd)
            self.pidfd = -1


def start(part: Part, mark: str) -> Running:
    """Start the part, its output appended to its log. Call it from the main thread: the kernel ties the child's
    death signal to the thread that forked it."""
    remove_sockets(part)
    part.before()
    launch = launcher(part.death_signal or part.stop_signal, part.account, part.data_bytes)
    with part.log.open("ab") as log:
        log_start = log.tell()
        process = subprocess.Popen(
            (*launch, *part.argv),
            cwd=part.cwd,
            env={**part.env, MARK: mark},
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,  # Ctrl-C reaches us alone; we stop the parts in order
        )
    return Running(part, process, log_start)


def launcher(
    death_signal: signal.Signals, account: Account | None = None, data_bytes: int | None = None
) -> tuple[str, ...]:
    """What to put before a command so that it gets `death_signal` when this process dies; see launcher.py."""
    user = f"{account.uid}:{account.gid}" if account else "-"
    options = (str(int(death_signal)), str(os.getpid()), user, str(data_bytes or "-"))
    return (sys.executable, "-I", "-S", str(LAUNCHER), *options)


def remove_sockets(part: Part) -> None:
    for path in part.sockets:
        path.unlink(missing_ok=True)


def tail(log: Path, start: int = 0, lines: int = 15, chunk_bytes: int = 16_384) -> str:
    """The last lines of a log from the offset `start` on, indented."""
    with log.open("rb") as file:
        size = file.seek(0, os.SEEK_END)
        file.seek(max(start if start <= size else 0, size - chunk_bytes))
        text = file.read().decode(errors="replace")
    return "\n".join(f"    {line}" for line in text.splitlines()[-lines:]) or f"    (it wrote nothing to {log})"
