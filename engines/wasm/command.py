"""Runs a WASI command made elsewhere: input on stdin, one JSON value on stdout, what it says on stderr is its log."""

import json

from wasmtime import Engine, Func, Linker, Memory, Module

from engines.wasm import wasi
from engines.wasm.call import Answer, Call
from engines.wasm.exported import Window, exported
from engines.wasm.meter import Failure, Meter
from engines.wasm.wasi import Exit, OutputTooLong, World

TAIL_CHARS = 2_000
MAX_LOG_LINES = 1_000


class Command:
    """`enveloped`: stdout is {"status", "value" | "error"} as engines/wasm/javy.py makes it."""

    def __init__(self, engine: Engine, module: Module, *, enveloped: bool) -> None:
        linker = Linker(engine)
        wasi.link(linker, module, lambda: self._world)
        self._module = linker.instantiate_pre(module)
        self._enveloped = enveloped
        self._world: World

    def run(self, meter: Meter, call: Call) -> Answer:
        """Run `_start` to its end. Raises Failure."""
        world = self._world = World(
            _stdin(call) if self._enveloped else call.body,
            now_ns=call.now_ns,
            seed=call.secret_seed,
            stdout_bytes=call.result_bytes,
            stderr_bytes=call.log_bytes,
            charge=meter.charge,
        )
        try:
            code = meter.run(lambda: self._start(meter, world))
            if code:
                raise Failure("exception", "ExitCode", f"The module ended with exit code {code}")
            return self._answer(world)
        except OutputTooLong as output:
            used = int(output.args[0])
            raise Failure(
                "result_limit", "ResultLimit", "The result is too large", used=used, logs=_logs(world)
            ) from None
        except Failure as failure:
            raise _with_stderr(failure, world, meter) from failure

    def check(self, meter: Meter, call: Call) -> None:
        """Instantiate it; nothing of it runs but a start function. Raises Failure."""
        self._world = World(
            b"", now_ns=call.now_ns, seed=call.secret_seed, stdout_bytes=0, stderr_bytes=0, charge=meter.charge
        )
        meter.run(lambda: self._module.instantiate(meter.store))

    def _start(self, meter: Meter, world: World) -> int:
        exports = self._module.instantiate(meter.store).exports(meter.store)
        meter.memory = exported(exports, "memory", Memory)
        world.memory = Window(meter.memory, meter.store)
        try:
            exported(exports, "_start", Func)(meter.store)
        except Exit as ended:
            return ended.code
        return 0

    def _answer(self, world: World) -> Answer:
        value = bytes(world.stdout).strip()
        try:
            told = json.loads(value.decode(), parse_constant=_no_such_constant)
        except (ValueError, RecursionError):
            start = value[:100].decode("utf-8", "replace")
            what = f"It begins with {start!r}" if value else "It is empty"
            raise Failure("exception", "OutputError", f"The module's stdout is no JSON text. {what}") from None
        if self._enveloped:
            value = _opened(told)
        return Answer(value, logs=_logs(world))


def _stdin(call: Call) -> bytes:
    return b'{"kind":"%s","context":%s}\n' % (call.kind.encode(), call.context) + call.body


def _no_such_constant(name: str) -> object:
    raise ValueError(name)


def _opened(told: object) -> bytes:
    match told:
        case {"status": 0, "value": value}:
            return json.dumps(value, ensure_ascii=False, separators=(",", ":")).encode("utf-8", "replace")
        case {"status": _, "error": {"name": str(name), "message": str(message), "stack": str(stack)}}:
            raise Failure("exception", name, message, stack)
    raise Failure("exception", "OutputError", "The module's stdout is not what its compiler makes it write")


def _with_stderr(failure: Failure, world: World, meter: Meter) -> Failure:
    failure.logs = _logs(world)
    if failure.outcome != "exception":
        return failure
    if failure.error["name"] in ("Trap", "ExitCode"):
        if meter.is_full:
            full = meter.out_of_memory()
            full.logs = failure.logs
            return full
        tail = bytes(world.stderr).decode("utf-8", "replace")[-TAIL_CHARS:].strip()
        if tail:
            failure.error["message"] += f"; it said: {tail}"
    return failure


def _logs(world: World) -> str:
    """Each line of stderr as one of the log."""
    lines = bytes(world.stderr).decode("utf-8", "replace").splitlines()
    kept = [["error", line, 0] for line in lines[:MAX_LOG_LINES]]
    truncated = world.stderr_truncated or len(lines) > MAX_LOG_LINES
    return f'{json.dumps(kept)},"truncated":{"true" if truncated else "false"}'
