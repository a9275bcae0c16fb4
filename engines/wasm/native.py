"""From a Program to what a sandbox loads: native code from memory, disk or a compiler, for each program once.

A module of ours that was linked to another engine image is made anew from the program's script, which takes
milliseconds and is remembered.
"""

import asyncio
import hashlib
import json
from collections import OrderedDict
from dataclasses import replace
from pathlib import Path
from typing import Final

from engines.contract import Program
from engines.frames import LENGTH
from engines.wasm import artifact, javy
from engines.wasm.cache import Cache, Compiled
from engines.wasm.compiler import Refused
from engines.wasm.startup import Running

LOADABLE_BYTES: Final = 128 * 1024 * 1024


class Native:
    """Of one engine. `secret` keys what only we may foretell."""

    def __init__(self, cache: Cache, secret: bytes) -> None:
        self._cache = cache
        self._key = hashlib.blake2b(b"wasm chance", key=secret[:64]).digest()
        self._ready: OrderedDict[tuple[str, str, int], Program] = OrderedDict()
        self._ready_bytes = 0
        self._compiling: dict[Path, asyncio.Task[Compiled]] = {}

    async def loadable(self, program: Program, running: Running, *, check_fuel: int = 0) -> Program:
        """The program with code as engines/wasm/child.py reads it. Raises Refused and Busy.

        `check_fuel`: for one that runs its top level when it is loaded, within so much, and is not called.
        """
        if not check_fuel and (found := self._ready.get(program.key)) is not None:
            self._ready.move_to_end(program.key)
            return found
        module = await module_of(program, running)
        compiled = await self._compiled(program.project_id, module, running)
        form = "javy" if javy.made(module) else compiled.form
        project_key = hashlib.blake2b(program.project_id.encode(), key=self._key, digest_size=32).hexdigest()
        identity = hashlib.sha256(program.code).hexdigest()
        head = json.dumps({"form": form, "check": check_fuel, "identity": identity, "key": project_key}).encode()
        found = replace(program, code=LENGTH.pack(len(head)) + head + compiled.code, script=b"")
        if not check_fuel:
            self._remember(found)
        return found

    def forget(self, project_id: str, function_id: str | None) -> None:
        for key in [key for key in self._ready if key[0] == project_id and function_id in (None, key[1])]:
            self._ready_bytes -= len(self._ready.pop(key).code)

    async def close(self) -> None:
        for task in list(self._compiling.values()):
            task.cancel()
        await asyncio.gather(*self._compiling.values(), return_exceptions=True)

    def _remember(self, program: Program) -> None:
        if program.key in self._ready:
            return
        self._ready[program.key] = program
        self._ready_bytes += len(program.code)
        while self._ready_bytes > LOADABLE_BYTES and len(self._ready) > 1:
            self._ready_bytes -= len(self._ready.popitem(last=False)[1].code)

    async def _compiled(self, project_id: str, module: bytes, running: Running) -> Compiled:
        """Compiled at most once at a time, whoever asks, and to the end, whoever gives up."""
        path = self._cache.path(project_id, hashlib.sha256(module).hexdigest())
        if (found := await self._cache.get(path)) is not None:
            return found
        if (task := self._compiling.get(path)) is None:
            task = asyncio.get_running_loop().create_task(self._compile(project_id, module, path, running))
            self._compiling[path] = task
            task.add_done_callback(lambda _: self._compiling.pop(path))
        return await asyncio.shield(task)

    async def _compile(self, project_id: str, module: bytes, path: Path, running: Running) -> Compiled:
        compiled = await running.compiler.module(project_id, module)
        await self._cache.put(path, compiled)
        return compiled


async def module_of(program: Program, running: Running) -> bytes:
    """The program's module, linked to the image that runs. Raises Refused and Busy."""
    if artifact.engine_of(program.code) in (None, running.image.sha256):
        return program.code
    if not program.script:
        raise Refused("It was made for another build of the engine, and its source is not there; deploy it again")
    bytecode = await running.compiler.bytecode(program.project_id, program.script)
    return artifact.module_of(bytecode, running.image, source=program.script)
