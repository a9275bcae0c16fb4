"""From what an author hands over to code that an engine has loaded once; nothing is stored here.

source ─▶ compile ─╮
                   ├─▶ load once (sandbox) ─▶ Built
module ─▶ accept ──╯
"""

import asyncio
from collections.abc import Mapping
from typing import Final
from uuid import uuid4

from engines.build import Built, CompileError
from engines.contract import Limits, Outcome, Program
from engines.runtimes import EngineNotReady, ModuleRefused, Runtime
from server.errors import Unavailable, Unimplemented
from server.functions.fields import Source
from server.functions.refusals import compilation_failed, load_failed, module_refused

CONCURRENCY: Final = 4
"""Compilations and loads at a time in one process; more wait."""

NOT_READY_RETRY_MS: Final = 5_000


class Compiler:
    def __init__(self, runtimes: Mapping[str, Runtime]) -> None:
        """`runtimes` by name: those that work here."""
        self._runtimes = runtimes
        self._turn = asyncio.Semaphore(CONCURRENCY)

    async def compile(self, project_id: str, runtime: str, source: Source, limits: Limits) -> Built:
        """What the engine loads. InvalidArgument when the source does not compile, or does not load within `limits`.

        Unimplemented for a runtime that does not work here, Unavailable for one that is not ready yet.
        """
        works = runtime_of(self._runtimes, runtime)
        async with self._turn:
            try:
                built = await _built(works, runtime, source)
                program = _program(project_id, built)
                loaded = await works.engine.check(program, limits)
            except EngineNotReady as why:
                raise not_ready(runtime, why) from None
        if loaded.outcome is not Outcome.OK:
            raise load_failed(source.field, source.filename, loaded, built.source_map)
        return built


def runtime_of(runtimes: Mapping[str, Runtime], name: str) -> Runtime:
    """Unimplemented when it does not work here."""
    if (works := runtimes.get(name)) is None:
        raise Unimplemented(
            f'The runtime "{name}" does not work on this server; use {" or ".join(runtimes)}',
            reason="RUNTIME_UNAVAILABLE",
            metadata={"runtime": name, "available": ", ".join(runtimes)},
            field="runtime",
        )
    return works


def not_ready(runtime: str, why: EngineNotReady) -> Unavailable:
    return Unavailable(
        str(why),
        reason="RUNTIME_NOT_READY",
        metadata={"runtime": runtime},
        retry_after_ms=NOT_READY_RETRY_MS,
    )


async def _built(works: Runtime, runtime: str, source: Source) -> Built:
    try:
        if source.language != "wasm":
            return await works.build(source.data.decode(), source.language, filename=source.filename)
        if works.accept is None:
            raise Unimplemented(
                f'The runtime "{runtime}" takes no modules on this server; deploy source instead',
                reason="MODULES_UNAVAILABLE",
                metadata={"runtime": runtime},
                field=source.field,
            )
        return await works.accept(source.data)
    except CompileError as why:
        raise compilation_failed(source.field, why) from None
    except ModuleRefused as why:
        raise module_refused(source.field, why) from None


def _program(project_id: str, built: Built) -> Program:
    """Under a key of its own, so that it meets nothing warm and leaves nothing warm."""
    return Program(
        project_id=project_id,
        function_id=str(uuid4()),
        version=0,
        code=built.code,
        script=built.script,
        isolation="fresh",
    )
