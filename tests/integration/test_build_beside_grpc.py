"""The compiler is started from a process that serves gRPC: it must not be forked, or gRPC's fork handlers kill it.

Found as one deploy in twenty that failed: libuv forks, gRPC's handlers run in the child between fork and exec, and
there abort. The standard library's subprocess uses vfork, which runs no handlers.
"""

import subprocess
import sys
from pathlib import Path

SCRIPT = """
import asyncio, grpc, uvloop
from engines.build import build

BUILDS = 150

async def compile(request, context):
    return (await build("export default () => 1", "javascript", filename="a.js")).code

async def main():
    server = grpc.aio.server()
    handler = grpc.unary_unary_rpc_method_handler(compile)
    server.add_generic_rpc_handlers([grpc.method_handlers_generic_handler("t.T", {"C": handler})])
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    turn = asyncio.Semaphore(4)
    async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
        call = channel.unary_unary("/t.T/C")
        async def one():
            async with turn:
                return await call(b"")
        answers = await asyncio.gather(*(one() for _ in range(BUILDS)), return_exceptions=True)
    await server.stop(0)
    print(sum(isinstance(answer, bytes) for answer in answers))

uvloop.run(main())
"""


def test_every_build_in_a_serving_process_ends_well() -> None:
    root = Path(__file__).parents[2]
    done = subprocess.run([sys.executable, "-c", SCRIPT], cwd=root, capture_output=True, text=True, timeout=120)
    assert done.stdout.strip() == "150", done.stderr[-2000:]
