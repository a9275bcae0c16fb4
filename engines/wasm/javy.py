"""Javy, where it is installed, as the compiler of JavaScript: its command line, and what its modules read and write.

Javy makes a self-contained WASI command. javy_wrapper.js stands around the author's script in it: stdin is one line of
JSON {"kind", "context"} and the input; stdout is {"status": 0, "value"} or {"status": 1, "error": {"name", "message",
"stack"}}; console lines go to stderr. A custom section of ours marks what was so wrapped.

Javy is a native program that reads the author's text and runs nothing of it; it has no jail here, only limits.
"""

import asyncio
import contextlib
import resource
import shutil
import tempfile
from pathlib import Path
from subprocess import DEVNULL, STDOUT, Popen
from typing import Final

from engines import build as scripts
from engines.build import BuildFault
from engines.wasm import binary
from engines.wasm.binary import Malformed
from engines.wasm.compiler import Refused

SECTION: Final = "atlas.javy"
TIME_LIMIT_S: Final = 30.0
MEMORY_LIMIT_BYTES: Final = 2 * 1024 * 1024 * 1024
OUTPUT_LIMIT_BYTES: Final = 8 * 1024 * 1024
OPTIONS: Final = (
    "-C", "source=omitted", "-C", "deterministic=y",
    "-J", "event-loop=y", "-J", "javy-stream-io=y", "-J", "text-encoding=y",
)  # fmt: skip
_WRAPPER: Final = Path(__file__).with_name("javy_wrapper.js")
_USER: Final = "__atlas_user"


def find(configured: str) -> str:
    """The javy to use: the configured one, or that on PATH; "" when there is none."""
    return configured or shutil.which("javy") or ""


def made(module: bytes) -> bool:
    """Whether a module speaks through the wrapper."""
    try:
        return binary.custom_section(module, SECTION) is not None
    except Malformed:
        return False


async def compile_script(javy: str, script: bytes) -> bytes:
    """A module of one ES module. Raises Refused, and BuildFault when Javy cannot run. Cancelling ends it first."""
    wrapped = await wrap(script)
    with tempfile.TemporaryDirectory(prefix="javy-") as folder:
        source, out, said = (Path(folder) / name for name in ("function.js", "function.wasm", "said"))
        source.write_bytes(wrapped)
        status = await _run([javy, "build", *OPTIONS, "-o", str(out), str(source)], said)
        if status != 0 or not out.is_file():
            what = said.read_bytes()[-2_000:].decode("utf-8", "replace").strip()
            raise Refused(f"javy: {what or f'it ended with status {status}'}")
        return out.read_bytes() + binary.custom(SECTION, b"1")


async def wrap(script: bytes) -> bytes:
    """The script Javy compiles."""
    user = await scripts.as_global(script, _USER)
    before, mark, after = _WRAPPER.read_bytes().partition(b"/* the author's script */")
    assert mark, "the wrapper has a place for the script"
    return before + user + after


async def _run(command: list[str], said: Path) -> int:
    process = _start(command, said)
    waiting = asyncio.ensure_future(asyncio.to_thread(process.wait))
    try:
        async with asyncio.timeout(TIME_LIMIT_S):
            return await asyncio.shield(waiting)
    except TimeoutError:
        raise Refused(f"javy takes longer than {TIME_LIMIT_S:g} s") from None
    finally:
        process.kill()
        await asyncio.shield(waiting)


def _start(command: list[str], said: Path) -> "Popen[bytes]":
    with said.open("wb") as output:
        try:
            process = Popen(command, stdin=DEVNULL, stdout=output, stderr=STDOUT, cwd=said.parent, env={})
        except OSError as why:
            raise BuildFault(f"javy cannot be started: {why.strerror}") from why
    with contextlib.suppress(ProcessLookupError):
        resource.prlimit(process.pid, resource.RLIMIT_DATA, (MEMORY_LIMIT_BYTES, MEMORY_LIMIT_BYTES))
        resource.prlimit(process.pid, resource.RLIMIT_FSIZE, (OUTPUT_LIMIT_BYTES, OUTPUT_LIMIT_BYTES))
    return process
