"""A zygote whose children are coroutines: they speak whatever frames a test's script tells them to."""

import asyncio
import contextlib
import json
import signal
import socket
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

from engines.frames import HEADER, LENGTH, Frame, Reader, Type, encode
from engines.kind import Kind
from engines.quickjs.engine import QuickJS
from engines.supervisor import Supervisor
from engines.zygote import Exit, SpawnFailed, Worker

META = {"wall_us": 1, "cpu_us": 1, "memory_bytes": 1, "kind": "json", "logs": [], "truncated": False}


class Wire:
    """The child's end of the socket."""

    def __init__(self, sock: socket.socket) -> None:
        self._sock = sock
        self._reader = Reader()
        self._frames: list[Frame] = []

    async def receive(self) -> Frame:
        """The next frame; ConnectionError when the supervisor hung up."""
        while not self._frames:
            data = await asyncio.get_running_loop().sock_recv(self._sock, 1 << 18)
            if not data:
                raise ConnectionResetError
            self._frames += self._reader.feed(data)
        return self._frames.pop(0)

    async def until(self, kind: Type) -> Frame:
        while (frame := await self.receive())[0] is not kind:
            pass
        return frame

    async def raw(self, data: bytes) -> None:
        await asyncio.get_running_loop().sock_sendall(self._sock, data)

    async def ready(self) -> None:
        await self.until(Type.BIND)
        await self.raw(encode(Type.READY, 0, 0, b'{"memory_bytes":1,"boot_us":1}'))

    async def invoked(self) -> int:
        """Bound, ready and invoked: the number of the invocation."""
        await self.ready()
        return (await self.until(Type.INVOKE))[1]

    def hang_up(self) -> None:
        self._sock.shutdown(socket.SHUT_RDWR)


def result(inv: int, value: bytes = b"1", **meta: object) -> bytes:
    head = json.dumps({**META, **meta}).encode()
    return encode(Type.RESULT, inv, 0, LENGTH.pack(len(head)) + head + value)


def error(inv: int, outcome: str, **meta: object) -> bytes:
    told = {**META, "outcome": outcome, "error": {"name": "E", "message": "m"}, **meta}
    return encode(Type.ERROR, inv, 0, json.dumps(told).encode())


def calls(inv: int, *numbers: int) -> bytes:
    return encode(Type.HOSTCALL, inv, 0, json.dumps([[n, "kv.get", '["x"]'] for n in numbers]).encode())


def header(length: int, kind: int, zero: int, inv: int, call: int) -> bytes:
    return HEADER.pack(length, kind, zero, inv, call)


class Death(Exception):
    """Raised by a script: the child ends like this."""

    def __init__(self, status: int, *, maxrss_bytes: int = 0, cpu_ms: float = 0.0) -> None:
        super().__init__(status)
        self.exit = Exit(status, signal.Signals(-status) if status < 0 else None, cpu_ms, maxrss_bytes)


Script = Callable[[Wire], Awaitable[None]]


async def honest(wire: Wire) -> None:
    """Answers every invocation with 1."""
    inv = await wire.invoked()
    while True:
        await wire.raw(result(inv))
        inv = (await wire.until(Type.INVOKE))[1]


class FakeWorker(Worker):
    __slots__ = ("probe", "task")
    probe: bool
    task: "asyncio.Task[None]"

    def kill(self) -> None:
        self.task.cancel()


class FakeZygote:
    """Children run `scripts` in turn, then are honest. One that returns stays silent until it is killed."""

    def __init__(self, *scripts: Script) -> None:
        self._scripts = list(scripts)
        self.workers: list[FakeWorker] = []
        self.layers = {"seccomp": "on"}
        self.permitted: frozenset[str] = frozenset()
        self.rehearses = False
        self.died: asyncio.Future[str] = asyncio.get_running_loop().create_future()
        self.failing = False
        self.stuck = False
        self.leaks = False
        self.closed = False

    async def launch(self, module: str, *, unsafe: bool = False) -> "FakeZygote":
        return self

    async def spawn(self, sock: socket.socket, *, role: str = "program", memory_bytes: int = 0) -> Worker:
        if self.failing:
            sock.close()
            raise SpawnFailed("Resource temporarily unavailable")
        if self.stuck:
            with sock:
                await asyncio.Event().wait()
        sock.setblocking(False)
        exited: asyncio.Future[Exit] = asyncio.get_running_loop().create_future()
        worker = FakeWorker(len(self.workers) + 1, 0, -1, exited)
        worker.probe = probe = role != "program"
        held = _escaped if self.leaks else _held
        script = held if probe else self._scripts.pop(0) if self._scripts else honest
        worker.task = asyncio.create_task(self._live(worker, sock, script, ends=probe))
        self.workers.append(worker)
        return worker

    async def _live(self, worker: Worker, sock: socket.socket, script: Script, *, ends: bool) -> None:
        exit_ = Exit(0, None, 0.0, 0)
        try:
            with contextlib.suppress(ConnectionError):
                await script(Wire(sock))
            if not ends:
                await asyncio.Event().wait()
        except asyncio.CancelledError:
            exit_ = Exit(-signal.SIGKILL, signal.SIGKILL, 0.0, 0)
        except Death as death:
            exit_ = death.exit
        sock.close()
        worker.exited.set_result(exit_)

    def stderr(self) -> str:
        return ""

    async def close(self) -> None:
        self.closed = True
        for worker in self.workers:
            worker.kill()
        await asyncio.gather(*(worker.exited for worker in self.workers))


async def _held(wire: Wire) -> None:
    await asyncio.get_running_loop().sock_recv(wire._sock, 64)
    await wire.raw(b"held")


async def _escaped(wire: Wire) -> None:
    await asyncio.get_running_loop().sock_recv(wire._sock, 64)
    await wire.raw(b"escaped")


@asynccontextmanager
async def engine_of(
    *scripts: Script, spares: int = 0, kind: Kind | None = None, cores: int | None = None
) -> AsyncIterator[tuple[Supervisor, FakeZygote]]:
    """A QuickJS, or a supervisor of children of that kind."""
    zygote = FakeZygote(*scripts)
    launch: Any = zygote.launch
    bounds: dict[str, Any] = {"spares": spares, "max_children": 4, "max_children_per_project": 4, "queue_ms": 1000}
    engine = (
        QuickJS(launch=launch, cores=cores, **bounds)
        if kind is None
        else Supervisor("fake", launch=launch, kind=kind, cores=cores, **bounds)
    )
    await engine.start()
    try:
        yield engine, zygote
    finally:
        await engine.close()
