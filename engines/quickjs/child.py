"""The program inside a QuickJS sandbox: `preload` once before privileges drop, then `serve` one socket for ever.

    blank ─BIND─▶ idle ─INVOKE─▶ running ─▶ answers RESULT or ERROR ─▶ idle
                                 │   ▲
                       HOSTCALL ─┘   └─ HOSTRES, a due timer            CANCEL, a limit: ERROR, and a new realm

An INVOKE may come before the one before it is answered; it is run after that.

One realm serves all invocations of a program unless its isolation is `fresh`, which loads a new one for each. What an
invocation leaves behind ends with it: its timers are cleared, its queued microtasks run before it is answered, its host
calls are forgotten and late answers to them dropped by number. A realm that hit a limit or was cancelled is replaced.
The next realm is made after the answer is sent, so that nobody waits for it.
"""

import json

from engines.frames import LENGTH, Type
from engines.quickjs import prelude
from engines.quickjs.memory import MemoryLimit, address_space_bytes
from engines.quickjs.realm import CpuBudget, Realm
from engines.quickjs.run import Failure, Run
from engines.quickjs.wire import Wire

LOAD_CPU_MS = 2_000

_prelude: tuple[str, dict[str, str]] | None = None
_blank_bytes = 0


def preload() -> None:
    """Read everything a worker will need. Call in the zygote, while there is still a filesystem."""
    global _prelude, _blank_bytes
    _prelude = prelude.read()
    "".encode("utf-16-le")
    Realm(*_prelude)
    _blank_bytes = address_space_bytes()


def serve(fd: int) -> None:
    """Serve a supervisor on `fd`, a connected stream socket, until it closes it. Needs no file, only that socket."""
    assert _prelude is not None, "preload() comes first"
    worker = _Worker(Wire(fd), *_prelude)
    try:
        worker.run()
    except (EOFError, OSError):
        return


class _Worker:
    def __init__(self, wire: Wire, eager: str, units: dict[str, str]) -> None:
        self._wire = wire
        self._eager, self._units = eager, units
        self._realm: Realm | None = Realm(eager, units)
        self._load_failure: Failure | None = None

    def run(self) -> None:
        """BIND once, then one INVOKE after another. Whatever else arrives between them is stale."""
        while True:
            kind, inv, _, payload = self._wire.next()
            if kind is Type.BIND:
                self._bind(payload)
            elif kind is Type.INVOKE:
                self._invoke(inv, payload)

    def _bind(self, payload: bytes) -> None:
        head, code = _split(payload)
        options = json.loads(head)
        self._code = code.decode("utf-8", "replace")
        self._fresh = options["isolation"] == "fresh"
        self._log_bytes = int(options["log_bytes"])
        self._result_bytes = int(options["result_bytes"])
        self._memory = MemoryLimit(int(options["memory_bytes"]), _blank_bytes)
        run = self._load()
        if self._load_failure is not None:
            run.fail(self._load_failure, None)
        elif self._realm is not None:
            run.ready(self._realm)

    def _invoke(self, inv: int, payload: bytes) -> None:
        head, rest = _split(payload)
        context, body = _split(rest)
        options = json.loads(head)
        run = self._run(inv, float(options["cpu_ms"]))
        failure, realm = self._load_failure, self._realm
        if realm is not None and failure is None:
            try:
                run.invoke(realm, options["kind"], context, body)
            except Failure as raised:
                failure = raised
        if failure is not None:
            run.fail(failure, realm)
        if self._fresh or (failure is not None and failure.broken):
            del realm, failure, run
            self._realm = None
            self._realm = Realm(self._eager, self._units)
            self._load()

    def _load(self) -> Run:
        """Load the program into the blank realm, and keep why when it cannot be."""
        run = self._run(0, LOAD_CPU_MS)
        assert self._realm is not None
        self._load_failure = None
        try:
            run.load(self._realm, self._code, self._log_bytes)
        except Failure as failure:
            self._load_failure = failure
        return run

    def _run(self, inv: int, cpu_ms: float) -> Run:
        return Run(
            self._wire,
            inv,
            CpuBudget(cpu_ms),
            memory=self._memory,
            result_bytes=self._result_bytes,
        )


def _split(payload: bytes) -> tuple[bytes, bytes]:
    """What `u32 n` in front of a payload announces, and the rest."""
    end = LENGTH.size + int(LENGTH.unpack_from(payload)[0])
    return payload[LENGTH.size : end], payload[end:]
