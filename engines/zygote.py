"""The supervisor's end of a zygote: launch it, have it fork jailed workers, learn how each one ended.

    zygote = await Zygote.launch("engines.quickjs.child")     the module with preload() and serve(fd)
    ours, theirs = socket.socketpair()
    worker = await zygote.spawn(theirs)                       theirs is closed here in any case
    worker.kill(); exit = await asyncio.shield(worker.exited)
    await zygote.close()

The protocol and the processes are described in engines/zygote_main.py.
"""

import asyncio
import contextlib
import errno
import json
import os
import signal
import socket
import subprocess
import sys
import threading
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

READY_TIMEOUT_S = 15.0
CLOSE_TIMEOUT_S = 5.0
_SPAWNS_IN_FLIGHT = 32  # far below what the socket's buffer holds, so that a send never has to wait
_MESSAGE_BYTES = 64 * 1024

_BOOT = """
import sys
sys.path.extend(sys.argv[5:])
from engines import zygote_main
zygote_main.main(int(sys.argv[1]), int(sys.argv[2]), sys.argv[3], sys.argv[4])
"""


Role = Literal["program", "probe", "rehearsal"]


class ZygoteError(Exception):
    """The zygote cannot be had: it did not start, the mandatory layer is missing, or it is gone."""


class SpawnFailed(Exception):
    """This worker could not be made (no memory, no processes); the zygote itself is well. Shed load and retry later."""


@dataclass(frozen=True, slots=True)
class Exit:
    """How a worker ended. `signal` is set if one killed it, and then `status` is its negative.

    SIGSYS means that it made a forbidden system call. The figures are 0 when the zygote died before it could tell.
    """

    status: int
    signal: signal.Signals | None
    cpu_ms: float
    maxrss_bytes: int


@dataclass(slots=True, eq=False)
class Worker:
    """One jailed process. Made by `Zygote.spawn` only."""

    id: int
    pid: int  # as this process sees it, for /proc; never to be signalled by
    pidfd: int  # -1 once it was reaped
    exited: "asyncio.Future[Exit]" = field(repr=False)  # never fails; shield it when awaiting

    def kill(self) -> None:
        """SIGKILL now. Does nothing if it is dead already; `exited` says when it is reaped."""
        if self.pidfd >= 0:
            with contextlib.suppress(ProcessLookupError):
                signal.pidfd_send_signal(self.pidfd, signal.SIGKILL)


class Zygote:
    """A running zygote. `died` resolves with the reason when it is gone, and then every `Worker.exited` does too."""

    def __init__(self, process: "subprocess.Popen[bytes]", control: socket.socket, stderr: int) -> None:
        self._loop = asyncio.get_running_loop()
        self._process = process
        self._pidfd = os.pidfd_open(process.pid)
        self._control = control
        self._stderr = stderr
        self._last_id = 0
        self._may_send = asyncio.Semaphore(_SPAWNS_IN_FLIGHT)
        self._spawning: dict[int, asyncio.Future[Worker]] = {}
        self._workers: dict[int, Worker] = {}
        self._ready: asyncio.Future[dict[str, Any]] = self._loop.create_future()
        self.layers: dict[str, str] = {}
        self.permitted: frozenset[str] = frozenset()
        self.rehearses = False
        self.idle_data_bytes = 0  # see spawn
        self.died: asyncio.Future[str] = self._loop.create_future()
        self._all_dead = asyncio.Event()
        self._loop.add_reader(self._control, self._on_message)
        self._loop.add_reader(self._pidfd, self._on_death)

    @classmethod
    async def launch(cls, module: str, *, unsafe: bool = False, argument: str = "") -> "Zygote":
        """Start the zygote of `module` and wait until it is jailed. Call from the main thread: it dies with its caller.

        `argument`, unless it is empty, is handed to the module's `preload`.

        Raises ZygoteError saying what is wrong, e.g. without seccomp unless `unsafe`. Cancelling ends the process.
        """
        if threading.current_thread() is not threading.main_thread():
            raise ZygoteError("a zygote dies with the thread that launched it: launch it from the main thread")
        process, control, stderr = _start(module, argument)
        zygote = cls(process, control, stderr)
        try:
            async with asyncio.timeout(READY_TIMEOUT_S):
                await asyncio.wait((zygote._ready, zygote.died), return_when=asyncio.FIRST_COMPLETED)
            if not zygote._ready.done():
                raise ZygoteError(f"the zygote of {module} did not start: {zygote.died.result()}")
            told = zygote._ready.result()
            zygote.layers, zygote.rehearses = told["layers"], told["rehearses"]
            zygote.permitted = frozenset(told["permitted"])
            if zygote.layers["seccomp"] != "on" and not unsafe:
                raise ZygoteError(f"no system call filter, seccomp is {zygote.layers['seccomp']}")
        except TimeoutError:
            await zygote.close()
            raise ZygoteError(f"the zygote of {module} was not ready after {READY_TIMEOUT_S} s") from None
        except BaseException:
            await zygote.close()
            raise
        return zygote

    async def spawn(self, sock: socket.socket, *, role: Role = "program", memory_bytes: int = 0) -> Worker:
        """Fork a jailed worker that serves `sock`, which is closed here in any case. About 2 ms of its CPU time.

        It may use `memory_bytes` beside the `idle_data_bytes` that it has from the start; 0 does not limit it from
        outside. For the roles but "program" see engines/selftest.py. Raises SpawnFailed, or ZygoteError if the zygote
        is gone. Cancelling kills the worker.
        """
        with sock:
            async with self._may_send:
                if self.died.done():
                    raise ZygoteError(f"the zygote is gone: {self.died.result()}")
                self._last_id += 1
                worker_id = self._last_id
                order: dict[str, object] = {"op": "spawn", "id": worker_id, "role": role, "memory_bytes": memory_bytes}
                order["data_bytes"] = self.idle_data_bytes + memory_bytes if memory_bytes else 0
                message = json.dumps(order).encode()
                spawned: asyncio.Future[Worker] = self._loop.create_future()
                self._spawning[worker_id] = spawned
                try:
                    socket.send_fds(self._control, [message], [sock.fileno()])
                except OSError as why:
                    del self._spawning[worker_id]
                    raise ZygoteError(f"the zygote is gone: {why.strerror}") from why
                sock.close()
                return await spawned

    def stderr(self) -> str:
        """What zygote and workers wrote to stderr since last asked, at most 64 KiB; more was dropped. Hostile text."""
        with contextlib.suppress(BlockingIOError):
            return os.read(self._stderr, 64 * 1024).decode(errors="replace")
        return ""

    async def close(self) -> None:
        """End zygote and workers, and wait until all are dead. May be called again."""
        with contextlib.suppress(OSError):
            self._control.shutdown(socket.SHUT_WR)
        try:
            async with asyncio.timeout(CLOSE_TIMEOUT_S):
                await self._all_dead.wait()
        except TimeoutError:
            self._process.kill()
            await self._all_dead.wait()

    @property
    def pid(self) -> int:
        """The process we launched: the zygote, or the stub in front of it."""
        return self._process.pid

    def __repr__(self) -> str:
        state = "gone" if self.died.done() else "ready" if self.layers else "starting"
        return f"<Zygote pid={self._process.pid} {state} workers={len(self._workers)} spawning={len(self._spawning)}>"

    def _on_message(self) -> None:
        while True:
            try:
                data, descriptors, _, _ = socket.recv_fds(self._control, _MESSAGE_BYTES, 1)
            except BlockingIOError:
                return
            except OSError:
                data = b""
            if not data:
                self._loop.remove_reader(self._control)  # it is ending; _on_death follows
                return
            message = json.loads(data)
            match message.pop("op"):
                case "ready":
                    self._ready.set_result(message)
                case "spawned":
                    if descriptors:
                        self._on_spawned(message["id"], message["pid"], descriptors[0])
                    else:  # lost for want of a free descriptor here; the worker ends when its socket closes
                        self._on_failed(message["id"], os.strerror(errno.EMFILE))
                case "failed":
                    self._on_failed(message["id"], message["why"])
                case "exit":
                    if worker := self._workers.get(message["id"]):
                        self._on_exit(worker, message)

    def _on_spawned(self, worker_id: int, inner_pid: int, pidfd: int) -> None:
        worker = Worker(worker_id, _pid_of(pidfd) or inner_pid, pidfd, self._loop.create_future())
        self._workers[worker_id] = worker
        waiter = self._spawning.pop(worker_id)
        if waiter.done():
            worker.kill()
        else:
            waiter.set_result(worker)

    def _on_failed(self, worker_id: int, why: str) -> None:
        waiter = self._spawning.pop(worker_id)
        if not waiter.done():
            waiter.set_exception(SpawnFailed(why))

    def _on_exit(self, worker: Worker, message: dict[str, float]) -> None:
        del self._workers[worker.id]
        os.close(worker.pidfd)
        worker.pidfd = -1
        status = int(message["status"])
        reason = signal.Signals(-status) if status < 0 else None
        if not worker.exited.done():
            worker.exited.set_result(Exit(status, reason, message["cpu_ms"], int(message["maxrss_bytes"])))

    def _on_death(self) -> None:
        """The zygote, or its stub, has ended: nothing more will be told, so see for ourselves that the workers die."""
        self._on_message()
        self._loop.remove_reader(self._control)
        self._loop.remove_reader(self._pidfd)
        status = self._process.wait()
        self._control.close()
        os.close(self._pidfd)
        reason = f"ended with status {status}" if status >= 0 else f"killed by {signal.Signals(-status).name}"
        text = self.stderr().strip()
        os.close(self._stderr)
        reason = f"{reason}: {text}" if text else reason
        self.died.set_result(reason)
        for waiter in self._spawning.values():
            if not waiter.done():
                waiter.set_exception(ZygoteError(f"the zygote is gone: {reason}"))
        self._spawning.clear()
        for worker in self._workers.values():
            worker.kill()
            self._loop.add_reader(worker.pidfd, self._on_orphan_death, worker)
        if not self._workers:
            self._all_dead.set()

    def _on_orphan_death(self, worker: Worker) -> None:
        self._loop.remove_reader(worker.pidfd)
        self._on_exit(worker, {"status": -signal.SIGKILL, "cpu_ms": 0.0, "maxrss_bytes": 0})
        if not self._workers:
            self._all_dead.set()


def _start(module: str, argument: str) -> "tuple[subprocess.Popen[bytes], socket.socket, int]":
    control, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    control.setblocking(False)
    stderr, their_stderr = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
    checkout = str(Path(__file__).parents[1])
    paths = [checkout, *(path for path in sys.path if path and Path(path).is_dir() and path != checkout)]
    try:
        process = subprocess.Popen(
            [sys.executable, "-I", "-S", "-c", _BOOT, str(theirs.fileno()), str(os.getpid()), module, argument, *paths],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=their_stderr,
            pass_fds=[theirs.fileno()],
            cwd="/",
            env={},
            start_new_session=True,  # Ctrl-C is for the supervisor
        )
    except OSError as why:
        control.close()
        os.close(stderr)
        raise ZygoteError(f"cannot start {sys.executable}: {why}") from why
    finally:
        theirs.close()
        os.close(their_stderr)
    return process, control, stderr


def _pid_of(pidfd: int) -> int | None:
    """The process's number in our own pid namespace; None if it is dead or /proc is not mounted."""
    with contextlib.suppress(OSError, ValueError):
        for line in Path(f"/proc/self/fdinfo/{pidfd}").read_text().splitlines():
            if line.startswith("Pid:"):
                pid = int(line.split()[1])
                return pid if pid > 0 else None
    return None
