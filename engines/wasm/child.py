"""The program inside a Wasm sandbox: one compiled module, a new instance of it for every invocation.

    blank ─BIND─▶ loads the module, seals itself ─READY─▶ idle ─INVOKE─▶ running ─▶ RESULT or ERROR ─▶ idle

The code in a BIND is `u32 n, JSON[n] {"form", "check", "identity", "key"}` and a module as Wasmtime serialized it, made
by our compiler alone. `form` says what runs it: "linked" to the engine image, a WASI "command", or a command that
"javy" made. `check` is the fuel to load it with as a deploy does, 0 for a program that will be called. `identity` (hex)
names the module wherever it runs, `key` (hex) is secret: chance comes from both.
"""

import json
import os
import resource
import time
from _blake2 import blake2b  # type: ignore[import-not-found, unused-ignore]

from wasmtime import Engine, Module, WasmtimeError

from engines.frames import LENGTH, MAX_PAYLOAD_BYTES, Type
from engines.quickjs.wire import Wire
from engines.told import MAX_TOLD_BYTES
from engines.wasm import profile
from engines.wasm.call import NO_LOGS, Answer, Call
from engines.wasm.command import Command
from engines.wasm.linked import Linked
from engines.wasm.machine import make_engine
from engines.wasm.meter import Failure, Meter

PROFILE = profile.LOADING
HEADROOM_BYTES = 64 * 1024 * 1024  # of data beside the linear memory: one frame in, one out, and their texts

LOAD_MS = 2_000

_engine: Engine
_image: Module | None = None
_seal = b""
_blank_bytes = 0


def preload(argument: str = "") -> None:
    """Make the engine and read the image: JSON {"path", "skip", "digest"}, where and what."""
    global _engine, _image, _seal, _blank_bytes
    _engine = make_engine()
    _seal = profile.compile_seal()
    if argument:
        _image = read_image(_engine, argument)
    _blank_bytes = data_bytes()


def read_image(engine: Engine, argument: str) -> Module:
    """The serialized module `skip` bytes into a file, if its BLAKE2b is `digest`. Raises ValueError if it is not."""
    told = json.loads(argument)
    with open(told["path"], "rb") as file:  # noqa: PTH123
        compiled = file.read()[told["skip"] :]
    if blake2b(compiled).hexdigest() != told["digest"]:
        raise ValueError("the compiled engine is not the one that was checked")
    return Module.deserialize(engine, compiled)


def data_bytes() -> int:
    """Writable memory of this process. Needs /proc, so call it before the jail closes."""
    with open("/proc/self/statm", "rb") as statm:  # noqa: PTH123
        return int(statm.read().split()[5]) * resource.getpagesize()


def serve(fd: int) -> None:
    """Serve a supervisor on `fd`, a connected stream socket, until it closes it."""
    try:
        _Worker(Wire(fd)).run()
    except (EOFError, OSError):
        return


class _Worker:
    def __init__(self, wire: Wire) -> None:
        self._wire = wire

    def run(self) -> None:
        """BIND once, then one INVOKE after another. Whatever else arrives between them is stale."""
        while True:
            kind, inv, _, payload = self._wire.receive()
            if kind is Type.BIND:
                self._bind(payload)
            elif kind is Type.INVOKE:
                self._invoke(inv, payload)

    def _bind(self, payload: bytes) -> None:
        head, code = split(payload)
        bounds = json.loads(head)
        told, compiled = split(code)
        options = json.loads(told)
        self._memory_bytes, self._log_bytes = int(bounds["memory_bytes"]), int(bounds["log_bytes"])
        self._result_bytes = int(bounds["result_bytes"])
        self._identity, self._key = bytes.fromhex(options["identity"]), bytes.fromhex(options["key"])
        limit = _blank_bytes + 3 * len(compiled) + self._memory_bytes + HEADROOM_BYTES
        resource.setrlimit(resource.RLIMIT_DATA, (limit, limit))
        check_fuel = int(options["check"])
        meter = self._meter(check_fuel, LOAD_MS, LOAD_MS)
        try:
            self._program = self._load(options["form"], compiled)
            profile.seal(_seal)
            if check_fuel:
                self._program.check(meter, self._call("json", b"null", b"{}"))
        except Failure as failure:
            self._fail(0, failure, meter)
        else:
            ready = json.dumps({"memory_bytes": meter.memory_bytes, "boot_us": meter.wall_us})
            self._wire.send(Type.READY, 0, ready.encode())
        meter.close()

    def _load(self, form: str, compiled: bytes) -> "Linked | Command":
        try:
            module = Module.deserialize(_engine, compiled)
            if form != "linked":
                return Command(_engine, module, enveloped=form == "javy")
            assert _image is not None, "the zygote has no image"
            return Linked(_engine, _image, module)
        except (WasmtimeError, LookupError) as why:
            raise Failure("load_failed", "LinkError", str(why)[:500]) from why

    def _invoke(self, inv: int, payload: bytes) -> None:
        head, rest = split(payload)
        context, body = split(rest)
        options = json.loads(head)
        meter = self._meter(int(options["fuel"]), float(options["wall_ms"]), float(options["cpu_ms"]))
        try:
            self._answer(inv, self._program.run(meter, self._call(options["kind"], body, context)), meter)
        except Failure as failure:
            self._fail(inv, failure, meter)
        meter.close()

    def _meter(self, fuel: int, wall_ms: float, cpu_ms: float) -> Meter:
        return Meter(_engine, fuel=fuel, memory_bytes=self._memory_bytes, wall_ms=wall_ms, cpu_ms=cpu_ms)

    def _call(self, kind: str, body: bytes, context: bytes) -> Call:
        seed = blake2b(body, digest_size=8, key=self._identity).digest()
        return Call(
            kind=kind,
            body=body,
            context=context,
            now_ns=time.time_ns(),
            seed=int.from_bytes(seed, "little"),
            secret_seed=blake2b(self._identity + body, digest_size=32, key=self._key).digest(),
            entropy=os.urandom(32),
            log_bytes=self._log_bytes,
            result_bytes=self._result_bytes,
        )

    def _answer(self, inv: int, answer: Answer, meter: Meter) -> None:
        kind = f'"response",{answer.head[1:-1]}' if answer.head else '"json"'
        meta = (_meta(kind, answer.logs, meter) + "}").encode("utf-8", "replace")
        if len(meta) > MAX_TOLD_BYTES:
            raise Failure("exception", "InternalError", "The logs and headers are too large")
        payload = LENGTH.pack(len(meta)) + meta + answer.value
        if len(answer.value) > self._result_bytes or len(payload) > MAX_PAYLOAD_BYTES:
            used = len(answer.value)
            raise Failure("result_limit", "ResultLimit", "The result is too large", used=used, logs=answer.logs)
        self._wire.send(Type.RESULT, inv, payload)

    def _fail(self, inv: int, failure: Failure, meter: Meter) -> None:
        used = "" if failure.used is None else f',"used":{failure.used}'
        end = f',"outcome":"{failure.outcome}","error":{json.dumps(failure.error)}{used}}}'
        told = (_meta('"json"', failure.logs, meter) + end).encode("utf-8", "replace")
        if len(told) > MAX_TOLD_BYTES:
            return self._fail(inv, Failure("exception", "InternalError", "The logs and the error are too large"), meter)
        return self._wire.send(Type.ERROR, inv, told)


def _meta(kind: str, logs: str, meter: Meter) -> str:
    return (
        f'{{"wall_us":{meter.wall_us},"cpu_us":{meter.cpu_us},"memory_bytes":{meter.memory_bytes},'
        f'"fuel":{meter.fuel_used},"kind":{kind},"logs":{logs or NO_LOGS}'
    )


def split(payload: bytes) -> tuple[bytes, bytes]:
    """What `u32 n` in front of a payload announces, and the rest."""
    end = LENGTH.size + int(LENGTH.unpack_from(payload)[0])
    return payload[LENGTH.size : end], payload[end:]
