"""Runs a function's own small module together with the engine image it is linked to: see engines/wasm/abi.py.

Both are instantiated anew for every call. What the guest says is hostile: a program may have found a hole in QuickJS
and own all of its memory, and that memory is all it has.
"""

from wasmtime import Engine, Func, Global, Instance, InstancePre, Linker, Memory, Module

from engines.wasm import abi, testimony
from engines.wasm.abi import Result, Status
from engines.wasm.call import NO_LOGS, Answer, Call
from engines.wasm.exported import OutOfBounds, Window, exported
from engines.wasm.meter import Failure, Meter
from engines.wasm.testimony import Lie


class Linked:
    """A program over an image. Making one raises WasmtimeError when the module wants what the image does not have."""

    def __init__(self, engine: Engine, image: Module, module: Module) -> None:
        self._image: InstancePre = Linker(engine).instantiate_pre(image)
        self._module = module
        self._wanted = [imported.name or "" for imported in module.imports]

    def run(self, meter: Meter, call: Call) -> Answer:
        """Call the function. Raises Failure."""
        guest = meter.run(lambda: _Guest(meter, self._image, self._module, self._wanted))
        return guest.answer(meter.run(lambda: guest.ask("atlas_invoke", call)))

    def check(self, meter: Meter, call: Call) -> None:
        """Run the module's top level, and see that it has a function to call. Raises Failure."""
        guest = meter.run(lambda: _Guest(meter, self._image, self._module, self._wanted))
        guest.answer(meter.run(lambda: guest.ask("atlas_evaluate", call)))


def compile_source(engine: Engine, image: Module, meter: Meter, source: bytes) -> bytes:
    """The bytecode of a module, UTF-8. Raises Failure; a syntax error is a load_failed."""
    guest = meter.run(lambda: _Guest(meter, Linker(engine).instantiate_pre(image), None, []))
    return guest.answer(meter.run(lambda: guest.compile(source))).value


class _Guest:
    """An instance of the image, and of a program's module when there is one."""

    def __init__(self, meter: Meter, image: InstancePre, module: Module | None, wanted: list[str]) -> None:
        store = self._store = meter.store
        self._exports = image.instantiate(store).exports(store)
        meter.memory = exported(self._exports, "memory", Memory)
        self._memory = Window(meter.memory, store)
        self._meter = meter
        self._init: Func | None = None
        if module is not None:
            own = Instance(store, module, [self._exports[name] for name in wanted]).exports(store)
            self._init = exported(own, "atlas_init", Func)

    def ask(self, function: str, call: Call) -> Result:
        """Load the program and call `function` of the image. Raises Failure and Trap."""
        writes = abi.request_writes(
            exported(self._exports, "atlas_request", Global).value(self._store),
            input_kind=call.kind,
            input_bytes=call.body,
            context=call.context,
            now_ns=call.now_ns,
            seed=call.seed,
            entropy=call.entropy,
            log_bytes=call.log_bytes,
            result_bytes=call.result_bytes,
            alloc=self._alloc,
        )
        try:
            for address, data in writes:
                self._memory.write(address, data)
        except MemoryError:
            raise self._meter.out_of_memory() from None
        assert self._init is not None
        loaded = self._result(self._init(self._store))
        return loaded if loaded.status != Status.RETURNED else self._result(self._function(function)(self._store))

    def compile(self, source: bytes) -> Result:
        address = self._alloc(len(source) + 1)
        if not address:
            raise self._meter.out_of_memory()
        self._memory.write(address, source)
        return self._result(self._function("atlas_compile")(self._store, address, len(source)))

    def answer(self, result: Result) -> Answer:
        """What a result says. Raises Failure when it says that the run failed."""
        try:
            logs = testimony.logs(self._text(result.logs, result.logs_bytes)) if result.logs else NO_LOGS
            text = self._text(result.text, result.text_bytes)
            match result.status:
                case Status.RETURNED:
                    return Answer(text, logs=logs)
                case Status.RESPONDED:
                    body = testimony.body(self._text(result.body, result.body_bytes))
                    return Answer(body, logs=logs, head=testimony.head(text))
            failure = self._failure(result.status, text)
        except Lie:
            raise _lies() from None
        failure.logs = logs
        raise failure

    def _failure(self, status: int, text: bytes) -> Failure:
        match status:
            case Status.THREW | Status.BAD_INPUT:
                return Failure("exception", *testimony.error(text))
            case Status.LOAD_FAILED | Status.NOT_COMPILED:
                return Failure("load_failed", *testimony.error(text))
            case Status.NEVER_SETTLES:
                message = "The function's promise is pending and nothing is in flight that could settle it"
                return Failure("never_settles", "NeverSettles", message)
            case Status.OUT_OF_MEMORY:
                return self._meter.out_of_memory()
            case Status.TOO_LONG if text[:15].isdigit():
                return Failure("result_limit", "ResultLimit", "The result is too large", used=int(text[:15]))
        raise Lie

    def _function(self, name: str) -> Func:
        return exported(self._exports, name, Func)

    def _alloc(self, length: int) -> int:
        return int(self._function("atlas_alloc")(self._store, length)) & 0xFFFFFFFF

    def _result(self, address: int) -> Result:
        if not address:
            raise self._meter.out_of_memory()
        return Result.read(self._text(address & 0xFFFFFFFF, abi.RESULT.size))

    def _text(self, address: int, length: int) -> bytes:
        try:
            return self._memory.read(address, length)
        except OutOfBounds:
            raise _lies() from None


def _lies() -> Failure:
    return Failure("exception", "InternalError", "The engine's memory is corrupt")
