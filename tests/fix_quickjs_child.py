"""A QuickJS child without its jail: the real program in a process of its own, spoken to over a socketpair."""

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import pytest

from engines.frames import LENGTH, Frame, Reader, Type, encode

MIB = 1024 * 1024
_PROGRAM = """
import os
from engines.quickjs import child
child.preload()
worker = os.fork()  # as the zygote does; what a process measures of itself begins anew
if not worker:
    child.serve({fd})
    os._exit(0)
os.close({fd})
raise SystemExit(os.waitstatus_to_exitcode(os.waitpid(worker, 0)[1]))
"""
HostFunction = Callable[..., Any]


class Refused(Exception):
    """A host function raises this to answer a call with an error."""

    def __init__(self, code: str, message: str) -> None:
        super().__init__(message)
        self.code, self.message = code, message


@dataclass
class Answer:
    """A RESULT or ERROR, read."""

    outcome: str
    meta: dict[str, Any]
    body: bytes = b""
    turns: list[list[str]] = field(default_factory=list)  # the ops of each HOSTCALL frame

    @property
    def value(self) -> Any:
        assert self.outcome == "ok", self.meta
        return json.loads(self.body)

    @property
    def error(self) -> dict[str, Any]:
        assert self.outcome != "ok", self.body[:200]
        error = self.meta["error"]
        assert isinstance(error, dict)
        return error

    @property
    def logs(self) -> list[tuple[str, str]]:
        return [(level, text) for level, text, _ in self.meta["logs"]]


class Child:
    """One worker process. Every wait has a deadline; a test that meets it fails."""

    def __init__(self) -> None:
        ours, theirs = socket.socketpair()
        with theirs:
            self.process = subprocess.Popen(
                [sys.executable, "-I", "-c", _PROGRAM.format(fd=theirs.fileno())],
                pass_fds=[theirs.fileno()],
                start_new_session=True,
            )
        ours.settimeout(20)
        self.socket = ours
        self.inv = 0
        self.isolation = "warm"
        self._reader = Reader()
        self._frames: list[Frame] = []

    def close(self) -> None:
        self.socket.close()
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait(10)

    def send(self, kind: Type, inv: int = 0, call: int = 0, payload: bytes = b"") -> None:
        self.socket.sendall(encode(kind, inv, call, payload))

    def receive(self) -> Frame:
        while not self._frames:
            data = self.socket.recv(1 << 18)
            if not data:
                raise EOFError
            self._frames = self._reader.feed(data)
        return self._frames.pop(0)

    def bind(self, code: str, *, memory_mib: int = 64, isolation: str = "warm", **options: int) -> Answer:
        """BIND `code`, a module text; outcome "ok" when READY came."""
        limits = {"memory_bytes": memory_mib * MIB, "log_bytes": 65536, "result_bytes": 5 * MIB, **options}
        head = json.dumps({**limits, "isolation": isolation}).encode()
        self.send(Type.BIND, payload=LENGTH.pack(len(head)) + head + b"\n" + code.encode())
        kind, inv, _, payload = self.receive()
        assert inv == 0
        meta = json.loads(payload)
        if kind is Type.ERROR:
            return Answer(meta["outcome"], meta)
        assert kind is Type.READY
        return Answer("ok", meta)

    def start(self, body: Any = None, *, kind: str = "json", ctx: Any = None, cpu_ms: int = 5000) -> int:
        """Send one INVOKE and return its number."""
        self.inv += 1
        head = json.dumps({"cpu_ms": cpu_ms, "kind": kind}).encode()
        context = json.dumps(ctx or {}).encode()
        data = body if isinstance(body, bytes) else json.dumps(body, ensure_ascii=False).encode()
        payload = LENGTH.pack(len(head)) + head + LENGTH.pack(len(context)) + context + data
        self.send(Type.INVOKE, self.inv, payload=payload)
        return self.inv

    def invoke(self, body: Any = None, *, host: dict[str, HostFunction] | None = None, **options: Any) -> Answer:
        """One invocation to its end, host calls answered by `host[op](*args)`."""
        self.start(body, **options)
        return self.finish(host or {})

    def finish(self, host: dict[str, HostFunction]) -> Answer:
        turns: list[list[str]] = []
        while True:
            kind, inv, _, payload = self.receive()
            assert inv == self.inv
            if kind is Type.HOSTCALL:
                calls = json.loads(payload)
                turns.append([op for _, op, _ in calls])
                for call, op, args in calls:
                    self.answer(inv, call, host[op], json.loads(args))
            elif kind is Type.ERROR:
                meta = json.loads(payload)
                return Answer(meta["outcome"], meta, turns=turns)
            else:
                assert kind is Type.RESULT
                end = LENGTH.size + LENGTH.unpack_from(payload)[0]
                return Answer("ok", json.loads(payload[LENGTH.size : end]), payload[end:], turns)

    def answer(self, inv: int, call: int, function: HostFunction, args: list[Any]) -> None:
        try:
            payload = b"\x01" + json.dumps(function(*args)).encode()
        except Refused as refused:
            payload = b"\x00" + json.dumps({"code": refused.code, "message": refused.message}).encode()
        self.send(Type.HOSTRES, inv, call, payload)


@pytest.fixture
def child() -> Iterator[Child]:
    """A blank child."""
    started = Child()
    try:
        yield started
    finally:
        started.close()


Run = Callable[..., Answer]


@pytest.fixture
def run(child: Child) -> Run:
    """Bind a module text to the child once and invoke it: `run(code, input, **options)`."""
    bound: list[str] = []

    def call(code: str, body: Any = None, **options: Any) -> Answer:
        if not bound:
            answer = child.bind(code)
            if answer.outcome != "ok":
                return answer
            bound.append(code)
        assert bound == [code], "one program a child"
        return child.invoke(body, **options)

    return call
