"""The proof before the service opens: every attempt of engines/probe.py, each by a worker of its own, must be held."""

import asyncio
import signal
import socket

from engines.probe import ATTEMPTS
from engines.zygote import Zygote

_ATTEMPT_TIMEOUT_S = 5.0


async def probe(zygote: Zygote) -> list[str]:
    """Names of the attempts that escaped, with what happened; empty is good. Raises ZygoteError or SpawnFailed.

    An attempt is held if it was refused, or if the system call filter killed it. Everything else counts against the
    jail, a crash or silence too: they prove nothing.
    """
    outcomes = await asyncio.gather(*(_attempt(zygote, name) for name in ATTEMPTS))
    return [f"{name}: {outcome}" for name, outcome in zip(ATTEMPTS, outcomes, strict=True) if outcome]


async def _attempt(zygote: Zygote, name: str) -> str | None:
    loop = asyncio.get_running_loop()
    ours, theirs = socket.socketpair()
    with ours:
        ours.setblocking(False)
        worker = await zygote.spawn(theirs, probe=True)
        try:
            async with asyncio.timeout(_ATTEMPT_TIMEOUT_S):
                await loop.sock_sendall(ours, name.encode())
                answer = await _answer(ours)
                ended = await asyncio.shield(worker.exited)
        except TimeoutError:
            return "no answer"
        finally:
            worker.kill()
            await asyncio.shield(worker.exited)
    if answer.startswith(b"held") or (not answer and ended.signal is signal.SIGSYS):
        return None
    return "escaped" if answer == b"escaped" else f"no proof, the worker ended with {ended.status}"


async def _answer(ours: socket.socket) -> bytes:
    try:
        return await asyncio.get_running_loop().sock_recv(ours, 256)
    except ConnectionResetError:
        return b""
