"""The Wasm engine: JavaScript as modules over one engine image, and WASI commands made elsewhere, under Wasmtime.

    Program.code ─▶ native code (engines/wasm/native.py) ─▶ a sandbox that keeps it loaded (child.py) ─▶ Result

Isolation is always a new instance: no state passes from one call to the next. Time is an input: it stands where it was
when the call began and moves only as the program waits. Chance is one too, it follows from module and input. So the
fuel that a call consumes is the same number wherever and however often it runs.
"""

import logging
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Final

from engines import build as scripts
from engines.build import Built, Language
from engines.contract import Host, Invocation, Limits, Outcome, Program, Result, ScriptError
from engines.keeper import Launch
from engines.kind import MIB, Kind
from engines.runtimes import ModuleRefused
from engines.supervisor import Supervisor
from engines.wasm import artifact, binary, javy
from engines.wasm.cache import Cache
from engines.wasm.compiler import Refused
from engines.wasm.diagnosis import compile_error
from engines.wasm.native import Native, module_of
from engines.wasm.startup import Startup
from engines.zygote import Zygote

log = logging.getLogger(__name__)

MAX_MODULE_BYTES: Final = 2 * 1024 * 1024
KIND: Final = Kind(base_bytes=48 * MIB, is_apart=True, is_metered=True)


class Wasm:
    """`cache_dir` holds the image and compiled modules, which `secret` proves to be ours.

    `javy`: the binary that compiles JavaScript in place of our own compiler, see engines.wasm.javy.find. Who needs the
    engine while its image is being built waits `patience_s` for it, and then gets EngineNotReady. The rest is as for
    any Supervisor; the first use starts it, from the main thread.
    """

    def __init__(
        self,
        *,
        cache_dir: Path,
        secret: bytes,
        javy: str = "",
        spares: int = 1,
        max_children: int = 128,
        max_children_per_project: int = 32,
        queue_ms: int = 5_000,
        patience_s: float = 90.0,
        unsafe: bool = False,
        launch: Launch = Zygote.launch,
    ) -> None:
        cache = Cache(cache_dir, secret)
        supervisor = partial(
            Supervisor,
            "engines.wasm.child",
            spares=spares,
            max_children=max_children,
            max_children_per_project=max_children_per_project,
            queue_ms=queue_ms,
            unsafe=unsafe,
            kind=KIND,
        )
        self._javy = javy
        self._compiler = f"javy: {javy}" if javy else "atlas; there is no javy"
        self._native = Native(cache, secret)
        self._startup = Startup(cache_dir, cache, supervisor, launch=launch, unsafe=unsafe, patience_s=patience_s)

    async def start(self) -> None:
        """Begin to build the image where it is not there yet. Returns at once."""
        log.info("JavaScript becomes Wasm by %s", self._compiler, extra={"action": "wasm_compiler"})
        self._startup.begin()

    async def invoke(self, program: Program, invocation: Invocation, limits: Limits, host: Host) -> Result:
        """See the contract; a module asks nothing of `host`. Raises EngineNotReady too."""
        running = self._startup.now or await self._startup.running()
        try:
            loadable = await self._native.loadable(program, running)
        except Refused as why:
            return _unloadable(why)
        return await running.supervisor.invoke(loadable, invocation, limits, host)

    async def check(self, program: Program, limits: Limits) -> Result:
        """See the contract. Raises EngineNotReady too."""
        running = await self._startup.running()
        try:
            loadable = await self._native.loadable(program, running, check_fuel=limits.fuel)
        except Refused as why:
            return _unloadable(why)
        return await running.supervisor.check(loadable, limits)

    async def build(self, source: str, language: Language, *, filename: str) -> Built:
        """The module of one ES module. Raises CompileError, BuildFault and EngineNotReady."""
        built = await scripts.build(source, language, filename=filename)
        try:
            if self._javy:
                return replace(built, code=await javy.compile_script(self._javy, built.code), script=b"")
            running = await self._startup.running()
            bytecode = await running.compiler.bytecode("build", built.code)
        except Refused as refused:
            raise compile_error(refused, source, built.source_map) from None
        module = artifact.module_of(bytecode, running.image, source=built.code)
        return replace(built, code=module, script=built.code)

    async def accept(self, module: bytes) -> Built:
        """A module made elsewhere, as it is. Raises ModuleRefused and EngineNotReady."""
        if not module.startswith(binary.PREAMBLE):
            raise ModuleRefused("It is no WebAssembly module: it does not begin with its magic number and version 1")
        if len(module) > MAX_MODULE_BYTES:
            raise ModuleRefused(f"It has {len(module)} bytes; at most {MAX_MODULE_BYTES} (2 MiB) are accepted")
        running = await self._startup.running()
        await running.compiler.module("accept", module)
        return Built(code=module, source_map=None)

    async def standalone(self, program: Program) -> bytes:
        """The program as one WASI preview 1 command. Raises EngineNotReady and ModuleRefused."""
        if artifact.engine_of(program.code) is None:
            return program.code
        running = await self._startup.running()
        module = await module_of(program, running)
        return artifact.standalone(running.image, artifact.bytecode_of(module))

    def retire(self, project_id: str, function_id: str | None = None) -> None:
        self._native.forget(project_id, function_id)
        if (running := self._startup.now) is not None:
            running.supervisor.retire(project_id, function_id)

    async def close(self) -> None:
        await self._native.close()
        await self._startup.close()

    def report(self) -> dict[str, object]:
        told: dict[str, object] = {"state": self._startup.state, "compiler": self._compiler}
        if (running := self._startup.now) is not None:
            told |= running.supervisor.report()
        return told

    def pids(self) -> list[int]:
        """Of the live sandboxes, as this process sees them, for /proc."""
        running = self._startup.now
        return running.supervisor.pids() if running is not None else []


def _unloadable(why: Refused) -> Result:
    return Result(outcome=Outcome.LOAD_FAILED, error=ScriptError(name="ModuleRefused", message=str(why)))
