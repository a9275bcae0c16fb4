"""A function as one WASI preview 1 command, compiled on the author's machine by the engine of this checkout.

atlas build --standalone -o sum.wasm
echo '{"a": 1}' | wasmtime sum.wasm
"""

import asyncio
from collections.abc import Callable
from pathlib import Path
from typing import Final, Literal, cast

from wasmtime import Module

from engines import build as scripts
from engines.build import BuildFault, CompileError
from engines.wasm import alarm, artifact, image
from engines.wasm.linked import compile_source
from engines.wasm.machine import make_engine
from engines.wasm.meter import Failure, Meter
from server.cli.bundle import Source
from server.cli.problems import REFUSED, USAGE, Problem

FUEL: Final = 10_000_000_000
MEMORY_BYTES: Final = 256 * 1024 * 1024
TIME_MS: Final = 30_000


def standalone(source: Source, filename: str, *, cache_dir: Path, say: Callable[[str], None]) -> bytes:
    """The module. `cache_dir` keeps the engine, whose build takes about a minute once, told line by line to `say`.

    Raises Problem for a source that does not compile, and for an engine that cannot be built.
    """
    try:
        return asyncio.run(_compiled(source, filename, cache_dir, say))
    except CompileError as why:
        told = "; ".join(f"{item.line}:{item.column}: {item.message}" for item in why.diagnostics)
        message = f"Compilation failed: {told}"
        raise Problem(message, REFUSED, reason="COMPILATION_FAILED", source=(filename, source.text)) from why
    except Failure as why:
        raise Problem(f"Compilation failed: {why}", REFUSED, reason="COMPILATION_FAILED") from why
    except (BuildFault, image.ImageFault, image.Distrusted) as why:
        raise Problem(str(why), USAGE, hint="run `make setup` in the checkout") from why


async def _compiled(source: Source, filename: str, cache_dir: Path, say: Callable[[str], None]) -> bytes:
    language = cast(Literal["javascript", "typescript"], source.language)
    built = await scripts.build(source.text, language, filename=filename)
    made = await image.ensure(cache_dir, say=say)
    engine = make_engine()
    alarm.prepare(engine)
    meter = Meter(engine, fuel=FUEL, memory_bytes=MEMORY_BYTES, wall_ms=TIME_MS, cpu_ms=TIME_MS)
    return artifact.standalone(made, compile_source(engine, Module(engine, made.wasm), meter, built.code))
