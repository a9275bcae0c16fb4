"""How much memory an engine takes before it runs anything: its limit comes on top of that.

V8 reserves half a gigabyte for code at once, and the kernel counts that as data; so what RLIMIT_DATA has to be is a
measured figure and the limit. It then covers all memory there is: heaps, ArrayBuffers, WebAssembly, thread stacks.
"""

import asyncio
import socket
from pathlib import Path

from engines import messages
from engines.contract import Limits, Program
from engines.frames import Reader, Type
from engines.zygote import Worker, Zygote, ZygoteError

READY_TIMEOUT_S = 10.0

_PROGRAM = Program(project_id="", function_id="", version=0, code=b"export default () => null")
_LIMITS = Limits(wall_ms=10_000, cpu_ms=10_000, memory_bytes=64 * 1024 * 1024, fetch_calls=0)


async def idle_data_bytes(zygote: Zygote) -> int:
    """Writable private memory of a child, without a limit, that has loaded an empty program. Raises ZygoteError."""
    ours, theirs = socket.socketpair()
    with ours:
        ours.setblocking(False)
        worker = await zygote.spawn(theirs)
        try:
            async with asyncio.timeout(READY_TIMEOUT_S):
                await _load(ours)
            return _data_bytes(worker)
        except (OSError, TimeoutError) as why:
            raise ZygoteError(f"a child that loads an empty program did not answer: {why!r} {zygote.stderr()}") from why
        finally:
            worker.kill()
            await asyncio.shield(worker.exited)


async def _load(ours: socket.socket) -> None:
    loop, reader = asyncio.get_running_loop(), Reader()
    await loop.sock_sendall(ours, messages.bind(_PROGRAM, _LIMITS))
    while data := await loop.sock_recv(ours, 64 * 1024):
        for kind, _, _, payload in reader.feed(data):
            if kind is Type.READY:
                return
            raise ConnectionError(f"{kind.name} {payload[:1000]!r}")
    raise ConnectionError("it hung up")


def _data_bytes(worker: Worker) -> int:
    for line in Path(f"/proc/{worker.pid}/status").read_text().splitlines():
        if line.startswith("VmData:"):
            return int(line.split()[1]) * 1024
    raise ProcessLookupError("it ended")
