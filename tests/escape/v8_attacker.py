"""A supervisor of its own that weakens itself as told, then lets every V8 attack loose in its jail.

python v8_attacker.py SETUP ENGINE    prints JSON {"layers", "escaped": [self-test], "outcomes", "left_behind"}
"""

import asyncio
import contextlib
import json
import signal
import socket
import sys
from pathlib import Path

from engines import selftest
from engines.deno.engine import program as deno
from engines.node.engine import program as node
from engines.zygote import Exit, Zygote
from tests.escape.attacker import weaken

TIMEOUT_S = 20
ENGINES = {"node": node, "deno": deno}


async def order(zygote: Zygote, what: str) -> tuple[bytes, Exit]:
    """What a worker answers until it ends, and how it ended."""
    ours, theirs = socket.socketpair()
    loop, answer = asyncio.get_running_loop(), b""
    with ours:
        ours.setblocking(False)
        worker = await zygote.spawn(theirs)
        async with asyncio.timeout(TIMEOUT_S):
            await loop.sock_sendall(ours, what.encode())
            with contextlib.suppress(ConnectionResetError):
                while data := await loop.sock_recv(ours, 65536):
                    answer += data
            return answer, await asyncio.shield(worker.exited)


async def lethal(zygote: Zygote, name: str) -> str:
    answer, ended = await order(zygote, name)
    if answer:
        return str(json.loads(answer)["outcomes"][name])
    deadly = (signal.SIGSYS, signal.SIGABRT)  # killed by the filter; Node aborts when it cannot become another program
    return f"held: {ended.signal.name}" if ended.signal in deadly else f"no proof: {ended}"


async def main(engine: str, *, unsafe: bool) -> dict[str, object]:
    zygote = await Zygote.launch("tests.escape.v8_bare", argument=ENGINES[engine](), unsafe=unsafe)
    try:
        answer, ended = await order(zygote, "all")
        assert answer, (ended, zygote.stderr())
        told = json.loads(answer)
        outcomes = told["outcomes"] | {name: await lethal(zygote, name) for name in told["lethal"]}
    finally:
        await zygote.close()
    real = await Zygote.launch(f"engines.{engine}.program", argument=ENGINES[engine](), unsafe=unsafe)
    try:
        escaped = await selftest.probe(real)
    finally:
        await real.close()
    return {"layers": real.layers, "escaped": escaped, "outcomes": outcomes}


if __name__ == "__main__":
    SETUP, ENGINE = sys.argv[1:3]
    weaken(SETUP)
    REPORT = asyncio.run(main(ENGINE, unsafe="unsafe" in SETUP))
    print(json.dumps({**REPORT, "left_behind": [path.name for path in Path("/tmp").glob("atlas-v8*")]}))
