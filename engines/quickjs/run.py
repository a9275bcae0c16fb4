"""One run of a realm, from its first status to the one frame that answers it: turns, waiting, limits, errors."""

import json
from binascii import a2b_base64, b2a_base64
from time import perf_counter_ns

from engines.frames import LENGTH, MAX_PAYLOAD_BYTES, Type
from engines.quickjs import digests
from engines.quickjs.memory import MemoryLimit, page_faults
from engines.quickjs.realm import CpuBudget, Exhausted, OutOfBudget, Realm
from engines.quickjs.wire import Wire

_NO_LOGS = '[],"truncated":false'
_TOO_LARGE = '{"code":"too_large","message":"The arguments of a host call are too large"}'


class Failure(Exception):
    """A run ends with this ERROR. `broken`: its realm is of no further use. `used` is in the unit of the limit."""

    def __init__(self, outcome: str, error_json: str, *, used: float | None = None, broken: bool = False) -> None:
        super().__init__(outcome)
        self.outcome = outcome
        self.error_json = error_json
        self.used = used
        self.broken = broken

    @classmethod
    def told(
        cls, outcome: str, name: str, message: str, *, used: float | None = None, broken: bool = False
    ) -> "Failure":
        text = json.dumps({"name": name, "message": message, "stack": ""})
        return cls(outcome, text, used=used, broken=broken)


class Run:
    """Drives `realm` for invocation `inv`, or for its load when `inv` is 0, within `budget`."""

    def __init__(self, wire: Wire, inv: int, budget: CpuBudget, *, memory: MemoryLimit, result_bytes: int) -> None:
        self._wire = wire
        self._inv = inv
        self._budget = budget
        self._memory = memory
        self._result_bytes = result_bytes
        self._faults = page_faults()
        self._start_ns = perf_counter_ns()

    def load(self, realm: Realm, code: str, log_bytes: int) -> None:
        """Load the program into a blank realm. Raises Failure."""
        try:
            broken_syntax = realm.load(
                code,
                self._budget,
                memory_bytes=self._memory.limit_bytes,
                log_bytes=log_bytes,
                result_bytes=self._result_bytes,
            )
            if broken_syntax is not None:
                name, _, message = broken_syntax.partition("\n")[0].partition(": ")
                raise Failure.told("load_failed", name, message, broken=True)
            self._settle(realm, realm.report())
        except Failure as failure:
            failure.broken = True
            raise
        except (OutOfBudget, Exhausted, MemoryError) as error:
            raise self._limit(error) from error

    def invoke(self, realm: Realm, kind: str, context: bytes, body: bytes) -> None:
        """Call the function and answer RESULT. Raises Failure when it must be answered with an ERROR."""
        try:
            status = realm.start(kind, context.decode(), _as_json(kind, body), self._budget)
            status = self._settle(realm, status)
            self._answer(realm, status)
        except (OutOfBudget, Exhausted, MemoryError) as error:
            raise self._limit(error) from error

    def ready(self, realm: Realm) -> None:
        boot_us = (perf_counter_ns() - self._start_ns) // 1000
        meta = f'{{"memory_bytes":{realm.memory_bytes()},"boot_us":{boot_us}}}'
        self._wire.send(Type.READY, 0, meta.encode())

    def fail(self, failure: Failure, realm: Realm | None) -> None:
        """Answer ERROR."""
        logs = _NO_LOGS if realm is None else realm.last_logs()
        memory = 0 if realm is None or failure.broken else realm.memory_bytes()
        used = "" if failure.used is None else f',"used":{failure.used}'
        end = f',"outcome":"{failure.outcome}","error":{failure.error_json}{used}}}'
        self._wire.send(Type.ERROR, self._inv, (self._meta('"json"', logs, memory) + end).encode())

    def _settle(self, realm: Realm, status: str) -> str:
        """Run turns until there is a status that is not pending."""
        while True:
            if realm.drain():
                status = realm.report()
            if status[0] != "P":
                return self._checked(status, realm)
            if status[2] == "d":
                realm.settle(digests.answers(realm.take("Digests")))
            elif status[1] == "c":
                self._send_calls(realm)
            elif status[3] == "w" or len(status) > 4:
                self._wait(realm, float(status[4:]) if len(status) > 4 else None)
            elif self._was_full(realm):  # the engine drops a job that it has no memory to queue
                raise Exhausted
            else:
                raise self._never_settles()
            status = realm.report()

    def _wait(self, realm: Realm, timer_ms: float | None) -> None:
        """Sleep until the host answers or a timer is due, and hand on what came."""
        if self._inv == 0:
            self._wire.pause(timer_ms or 0)
            return realm.tick()
        frame = self._wire.receive() if timer_ms is None else self._wire.receive_within(timer_ms)
        if frame is None:
            return realm.tick()
        kind, inv, call, payload = frame
        if kind is Type.INVOKE:
            self._wire.put_off(frame)
        if inv != self._inv:
            return None
        if kind is Type.HOSTRES:
            realm.settle([f"[{call},{payload[0]},{payload[1:].decode()}]"])
        elif kind is Type.CANCEL:
            raise Failure.told("cancelled", "Cancelled", "The caller went away", broken=True)
        return None

    def _send_calls(self, realm: Realm) -> None:
        calls = realm.take("Calls").encode()
        if len(calls) <= MAX_PAYLOAD_BYTES:
            return self._wire.send(Type.HOSTCALL, self._inv, calls)
        for call in json.loads(calls):
            frame = json.dumps([call], ensure_ascii=False).encode()
            if len(frame) <= MAX_PAYLOAD_BYTES:
                self._wire.send(Type.HOSTCALL, self._inv, frame)
            else:
                realm.settle([f"[{call[0]},0,{_TOO_LARGE}]"])
        return None

    def _was_full(self, realm: Realm) -> bool:
        return self._memory.was_full(self._faults) or self._memory.is_full(realm.count_memory())

    def _checked(self, status: str, realm: Realm) -> str:
        kind, rest = status[0], status[2:]
        if kind == "N" and self._was_full(realm):
            raise Exhausted
        if kind in ("E", "N"):
            raise Failure("exception", rest)
        if kind == "L":
            raise Failure("load_failed", rest)
        if kind == "M":
            raise Exhausted
        if kind == "R":
            raise self._result_limit(int(rest))
        return status

    def _answer(self, realm: Realm, status: str) -> None:
        if status[0] == "V":
            value, kind = status[2:].encode(), '"json"'
        else:
            body = realm.take("Body")
            value = body[1:].encode() if body[:1] == "t" else a2b_base64(body[1:])
            kind = f'"response",{status[3:-1]}'  # the inside of {"status":…,"headers":…}
        logs = realm.take("Logs") if status[1] == "l" else _NO_LOGS
        meta = (self._meta(kind, logs, realm.memory_bytes()) + "}").encode()
        payload = LENGTH.pack(len(meta)) + meta + value
        if len(value) > self._result_bytes or len(payload) > MAX_PAYLOAD_BYTES:
            raise self._result_limit(len(value))
        self._wire.send(Type.RESULT, self._inv, payload)

    def _meta(self, kind: str, logs: str, memory_bytes: int) -> str:
        wall_us = (perf_counter_ns() - self._start_ns) // 1000
        return (
            f'{{"wall_us":{wall_us},"cpu_us":{self._budget.used_us()},"memory_bytes":{memory_bytes},'
            f'"kind":{kind},"logs":{logs}'
        )

    def _limit(self, error: BaseException) -> Failure:
        if isinstance(error, OutOfBudget):
            used_ms = self._budget.used_us() / 1000
            message = f"CPU time limit of {self._budget.limit_ms:g} ms exceeded"
            return Failure.told("cpu_limit", "CpuLimit", message, used=used_ms, broken=True)
        message = f"Memory limit of {self._memory.limit_bytes} bytes exceeded"
        return Failure.told("memory_limit", "MemoryLimit", message, used=self._memory.limit_bytes, broken=True)

    def _result_limit(self, used_bytes: int) -> Failure:
        message = f"The result is larger than {self._result_bytes} bytes"
        return Failure.told("result_limit", "ResultLimit", message, used=used_bytes)

    def _never_settles(self) -> Failure:
        if self._inv == 0:
            return Failure.told(
                "load_failed", "NeverSettles", "A top-level await waits for something that cannot happen"
            )
        message = "The function's promise is pending and nothing is in flight that could settle it"
        return Failure.told("never_settles", "NeverSettles", message)


def _as_json(kind: str, body: bytes) -> str:
    if kind == "json":
        return body.decode("utf-8", "replace")
    if kind == "text":
        return json.dumps(body.decode("utf-8", "replace"), ensure_ascii=False)
    return f'"{b2a_base64(body, newline=False).decode()}"'
