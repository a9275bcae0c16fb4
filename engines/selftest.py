"""The proof before the service opens: every attempt to break out, each by a worker of its own, must be held.

probe        one attempt of engines/probe.py, in the jail as it is before anything was executed in it
rehearsal    where workers become another program: that program, told to try all it can and to trust no check of its
             own; it answers with JSON {attempt: outcome}
"""

import asyncio
import json
import signal
import socket

from engines.probe import ATTEMPTS
from engines.zygote import Exit, Role, Zygote

_ATTEMPT_TIMEOUT_S = 5.0
_ANSWER_BYTES = 64 * 1024


async def probe(zygote: Zygote) -> list[str]:
    """Names of the attempts that escaped, with what happened; empty is good. Raises ZygoteError or SpawnFailed.

    An attempt is held if it was refused, or if the system call filter killed it. Everything else counts against the
    jail, a crash or silence too: they prove nothing.
    """
    names = [name for name in ATTEMPTS if name not in zygote.permitted]
    outcomes = await asyncio.gather(*(_attempt(zygote, name) for name in names))
    escaped = [f"{name}: {outcome}" for name, outcome in zip(names, outcomes, strict=True) if outcome]
    return escaped + (await _rehearse(zygote) if zygote.rehearses else [])


async def _attempt(zygote: Zygote, name: str) -> str | None:
    answer, ended = await _talk(zygote, "probe", name.encode())
    if ended is None:
        return "no answer"
    if answer.startswith(b"held") or (not answer and ended.signal is signal.SIGSYS):
        return None
    return "escaped" if answer == b"escaped" else f"no proof, the worker ended with {ended.status}"


async def _rehearse(zygote: Zygote) -> list[str]:
    answer, ended = await _talk(zygote, "rehearsal", b"")
    if ended is None:
        return ["rehearsal: no answer"]
    try:
        outcomes = json.loads(answer)
    except ValueError:
        return [f"rehearsal: no proof, the worker ended with {ended.status}: {zygote.stderr()[-1000:]}"]
    return [f"{name}: {outcome}" for name, outcome in outcomes.items() if not outcome.startswith("held")]


async def _talk(zygote: Zygote, role: Role, order: bytes) -> tuple[bytes, Exit | None]:
    """All that a worker answers to one order until it hangs up, and how it ended; None if it does not end in time."""
    loop = asyncio.get_running_loop()
    ours, theirs = socket.socketpair()
    answer = b""
    with ours:
        ours.setblocking(False)
        worker = await zygote.spawn(theirs, role=role)
        try:
            async with asyncio.timeout(_ATTEMPT_TIMEOUT_S):
                await loop.sock_sendall(ours, order)
                while len(answer) < _ANSWER_BYTES and (more := await _receive(ours)):
                    answer += more
                return answer, await asyncio.shield(worker.exited)
        except TimeoutError:
            return answer, None
        finally:
            worker.kill()
            await asyncio.shield(worker.exited)


async def _receive(ours: socket.socket) -> bytes:
    try:
        return await asyncio.get_running_loop().sock_recv(ours, 4096)
    except ConnectionResetError:
        return b""
