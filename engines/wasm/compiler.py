"""Compiles what tenants deploy, each job in a jailed process of its own that is thrown away, whatever became of it."""

import json
from functools import partial
from itertools import count
from typing import Final

from engines.contract import Invocation, Limits, Outcome, Program, Result
from engines.frames import LENGTH, MAX_PAYLOAD_BYTES
from engines.keeper import Launch
from engines.kind import MIB, Kind
from engines.runtimes import EngineNotReady, ModuleRefused
from engines.supervisor import Supervisor
from engines.wasm.cache import Compiled

BYTECODE: Final = Limits(
    wall_ms=10_000, cpu_ms=10_000, memory_bytes=512 * 1024 * 1024, fetch_calls=0, result_bytes=MAX_PAYLOAD_BYTES
)
MODULE: Final = Limits(
    wall_ms=30_000, cpu_ms=12_000, memory_bytes=1024 * 1024 * 1024, fetch_calls=0, result_bytes=MAX_PAYLOAD_BYTES
)
_CAUSES: Final = {
    Outcome.WALL_LIMIT: "it takes too long",
    Outcome.CPU_LIMIT: "it takes too long",
    Outcome.FUEL_LIMIT: "it takes too long",
    Outcome.MEMORY_LIMIT: "it takes too much memory",
    Outcome.STACK_LIMIT: "it is nested too deeply",
    Outcome.RESULT_LIMIT: "what comes out is too large",
    Outcome.CRASHED: "the compiler crashed on it",
}


class Refused(ModuleRefused):
    """`name` is the error's as the compiler has it; its stack says where."""

    def __init__(self, message: str, *, name: str = "", stack: str = "") -> None:
        super().__init__(message)
        self.name, self.stack = name, stack


class Busy(EngineNotReady):
    """No compiler was free for too long."""


class Compiler:
    """`image` is what its zygote preloads (engines.wasm.child); empty: it can compile modules only."""

    def __init__(self, *, launch: Launch, image: str = "", unsafe: bool = False) -> None:
        self._jobs = count(1)
        self._supervisor = Supervisor(
            "engines.wasm.compiler_child",
            spares=0,
            max_children=4,
            max_children_per_project=2,
            queue_ms=30_000,
            unsafe=unsafe,
            kind=Kind(base_bytes=48 * MIB, is_apart=True, is_metered=True, keeps_cpu_limit=False),
            launch=partial(launch, argument=image),
        )

    async def start(self) -> None:
        await self._supervisor.start()

    async def close(self) -> None:
        await self._supervisor.close()

    async def bytecode(self, project_id: str, script: bytes) -> bytes:
        """Of one ES module. Raises Refused."""
        return (await self._run(project_id, "bytecode", script, BYTECODE)).code

    async def module(self, project_id: str, wasm: bytes) -> Compiled:
        """Native code, and what runs it. Raises Refused, with a message for who made the module."""
        return await self._run(project_id, "module", wasm, MODULE)

    async def image(self, wasm: bytes) -> Compiled:
        """The engine image's."""
        return await self._run("engine", "image", wasm, MODULE)

    async def _run(self, project_id: str, job: str, source: bytes, limits: Limits) -> Compiled:
        head = json.dumps({"job": job}).encode()
        name = f"{job} {next(self._jobs)}"
        code = LENGTH.pack(len(head)) + head + source
        program = Program(project_id=project_id, function_id=name, version=0, code=code)
        try:
            result = await self._supervisor.invoke(program, Invocation(id=name, input=b""), limits, _Nobody())
        finally:
            self._supervisor.retire(project_id, name)
        return _product(result, job)


class _Nobody:
    async def call(self, op: str, args: bytes) -> bytes:
        raise RuntimeError("a compiler asks for nothing")


def _product(result: Result, job: str) -> Compiled:
    if result.outcome is Outcome.OVERLOADED:
        raise Busy("every compiler is busy")
    if result.outcome is Outcome.OK and result.response is not None:
        return Compiled(dict(result.response.headers).get("form", ""), result.response.body)
    error = result.error
    if result.outcome is Outcome.LOAD_FAILED and error is not None:
        raise Refused(error.message, name=error.name, stack=error.stack)
    raise Refused(f"It cannot be compiled: {_CAUSES.get(result.outcome, result.outcome.value)}")
