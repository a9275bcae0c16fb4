"""The zygote: a small process that has everything ready and forks jailed workers on demand.

    supervisor ── stub ── zygote (pid 1 of its pid namespace) ── workers        where there is a pid namespace
    supervisor ── zygote ── workers                                             where there is none

It talks to its supervisor over a SOCK_SEQPACKET socket, one JSON object a message:

    supervisor → zygote   {"op": "spawn", "id", "role", "memory_bytes", "data_bytes"}  + the worker's socket
    zygote → supervisor   {"op": "ready", "layers", "permitted", "rehearses"}          first of all
                          {"op": "spawned", "id", "pid"}  + a pidfd
                          {"op": "failed", "id", "why"}
                          {"op": "exit", "id", "status", "cpu_ms", "maxrss_bytes"}   status as os.waitstatus_to_exitcode

A worker has the socket as fd 3 and runs `serve(3)` of the program's module, of which `preload()` ran before the jail
closed. The module may have a `PROFILE`, the system calls its workers may make (engines/seccomp.py). Or its `preload`
returns a whole Confinement (engines/confinement.py); where that has an execution, a worker becomes that program.

A worker dies with the zygote, and the zygote with its supervisor, whichever way that ends: by the parent-death signal,
by the end of the pid namespace and by end-of-file on the control socket.

Whatever is imported here is mapped into every worker: no asyncio, logging, random, typing or dataclasses.
"""

from __future__ import annotations

import errno
import gc
import importlib
import json
import os
import select
import signal
import socket
import sys
from collections.abc import Callable
from heapq import heapify, heappop, heappush

from engines import linux, probe, seccomp
from engines.confinement import Confinement
from engines.jail import WORKER_SLOTS, Jail

TYPE_CHECKING = False  # `typing` is not worth its memory here
if TYPE_CHECKING:
    import typing

WORKER_SOCKET = 3
BROKEN = 70  # exit status of a worker that could not be locked or whose program raised; the traceback is on stderr
_CLOSE_RANGE = 436

Serve = Callable[[int], object]
Task = tuple[tuple[int, ...], Serve]
"""Where a worker finds its socket, and what it does with it."""


def main(control_fd: int, supervisor_pid: int, module: str, argument: str) -> None:
    """Become the zygote of `module`; returns when the supervisor has gone and every worker is reaped."""
    _die_with(supervisor_pid)
    os.environ.clear()  # Python has put LC_CTYPE there
    control = socket.socket(fileno=control_fd)
    program = importlib.import_module(module)
    told = program.preload(*(argument,) if argument else ())
    confinement = told or Confinement(getattr(program, "PROFILE", seccomp.SCRIPT))
    probe.preload()
    jail = Jail.enter(supervisor_pid, confinement)
    if jail.layers["pidns"] == "on":
        _become_first_process(control)
    jail.close()
    Zygote(control, jail, confinement, getattr(program, "serve", None)).run()


def _die_with(parent_pid: int) -> None:
    linux.prctl(linux.PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent_pid:
        os._exit(BROKEN)


def _become_first_process(control: socket.socket) -> None:
    """Go on in a child, pid 1 of the new namespace; the stub that stays behind only waits for it."""
    stub_lives, held_by_stub = os.pipe()
    zygote = os.fork()
    if zygote:
        control.close()
        os.close(stub_lives)
        status = os.waitstatus_to_exitcode(os.waitpid(zygote, 0)[1])
        os._exit(status if status >= 0 else 128 - status)
    os.close(held_by_stub)
    linux.prctl(linux.PR_SET_PDEATHSIG, signal.SIGKILL)
    if select.select([stub_lives], [], [], 0)[0]:  # end of file: it died before the signal was armed
        os._exit(BROKEN)
    os.close(stub_lives)


class Zygote:
    """The loop. Single-threaded; its only state is which worker sits in which slot."""

    def __init__(self, control: socket.socket, jail: Jail, confinement: Confinement, serve: Serve | None) -> None:
        self._control = control
        self._jail = jail
        self._confinement = confinement
        self._serve = serve
        self._workers: dict[int, tuple[int, int]] = {}  # pid: (id, slot)
        self._free_slots = list(range(WORKER_SLOTS))
        heapify(self._free_slots)
        self._child_ended, wake = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        signal.set_wakeup_fd(wake, warn_on_full_buffer=False)
        signal.signal(signal.SIGCHLD, lambda *_: None)
        gc.collect()
        gc.freeze()

    def run(self) -> None:
        """Serve until the supervisor closes the control socket, then end and reap every worker."""
        ready = select.poll()
        ready.register(self._control, select.POLLIN)
        ready.register(self._child_ended, select.POLLIN)
        try:
            self._send(
                {
                    "op": "ready",
                    "layers": self._jail.layers,
                    "permitted": self._confinement.permitted,
                    "rehearses": self._confinement.execution is not None,
                }
            )
            while True:
                for descriptor, _ in ready.poll():
                    if descriptor == self._child_ended:
                        os.read(self._child_ended, 4096)
                        self._reap()
                    elif not self._receive():
                        return
        except (BrokenPipeError, ConnectionResetError):
            return
        finally:
            self._end_all()

    def _receive(self) -> bool:
        data, descriptors, _, _ = socket.recv_fds(self._control, 4096, 1)
        if not data:
            return False
        message = json.loads(data)
        try:
            if not descriptors:
                raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))
            task = self._task(message["role"], message["memory_bytes"])
            self._spawn(message["id"], descriptors[0], task, message["data_bytes"])
        except OSError as why:
            self._send({"op": "failed", "id": message["id"], "why": why.strerror})
        finally:
            for descriptor in descriptors:
                os.close(descriptor)
        return True

    def _task(self, role: str, memory_bytes: int) -> Task:
        execution = self._confinement.execution
        if role == "probe":
            return (WORKER_SOCKET,), probe.serve
        if execution is None:
            assert self._serve is not None
            return (WORKER_SOCKET,), self._serve
        command = execution.command(memory_bytes) if role == "program" else execution.rehearsal
        return execution.sockets, lambda _: os.execve(command[0], command, execution.environment)  # noqa: S606

    def _spawn(self, worker_id: int, descriptor: int, task: Task, data_bytes: int) -> None:
        if not self._free_slots:
            raise OSError(errno.EAGAIN, "every worker slot is taken")
        slot = heappop(self._free_slots)
        try:
            pid = os.fork()
        except OSError:
            heappush(self._free_slots, slot)
            raise
        if pid == 0:
            run_worker(self._jail, slot, descriptor, task, data_bytes)
        self._workers[pid] = (worker_id, slot)
        try:
            pidfd = os.pidfd_open(pid)
        except OSError:
            os.kill(pid, signal.SIGKILL)
            raise
        try:
            self._send({"op": "spawned", "id": worker_id, "pid": pid}, pidfd)
        finally:
            os.close(pidfd)

    def _reap(self, flags: int = os.WNOHANG) -> None:
        while self._workers:
            pid, status, usage = os.wait4(-1, flags)
            if pid == 0:
                return
            if pid not in self._workers:  # an orphan that a pid namespace gave to its pid 1
                continue
            worker_id, slot = self._workers.pop(pid)
            heappush(self._free_slots, slot)
            self._send(
                {
                    "op": "exit",
                    "id": worker_id,
                    "status": os.waitstatus_to_exitcode(status),
                    "cpu_ms": round((usage.ru_utime + usage.ru_stime) * 1000, 3),
                    "maxrss_bytes": usage.ru_maxrss * 1024,
                }
            )

    def _end_all(self) -> None:
        for pid in self._workers:
            os.kill(pid, signal.SIGKILL)
        while self._workers:
            try:
                self._reap(0)
            except (BrokenPipeError, ConnectionResetError):
                continue  # nobody is left to be told

    def _send(self, message: dict[str, object], *descriptors: int) -> None:
        data = json.dumps(message).encode()
        if descriptors:
            socket.send_fds(self._control, [data], descriptors)
        else:
            self._control.send(data)


def run_worker(jail: Jail, slot: int, descriptor: int, task: Task, data_bytes: int) -> typing.NoReturn:
    """The child's life after the fork; never returns."""
    status = BROKEN
    sockets, serve = task
    try:
        signal.set_wakeup_fd(-1)
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        for place in sockets:
            os.dup2(descriptor, place)
            os.set_inheritable(place, True)  # dup2 leaves it as it is where both are the same
        _close_from(max(*sockets, 2) + 1)
        jail.lock_worker(slot, data_bytes)
        serve(sockets[0])
        status = 0
    except BaseException:
        sys.excepthook(*sys.exc_info())
    finally:
        os._exit(status)


def _close_from(first: int) -> None:
    try:
        linux.syscall(_CLOSE_RANGE, first, 0x7FFFFFFF, 0)
    except OSError:  # before Linux 5.9
        os.closerange(first, 1024)
