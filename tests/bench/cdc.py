"""Change data capture: commit to event, changes per second, and a transaction of a million rows."""

import asyncio
import os
import shutil
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final
from uuid import uuid4

import psycopg
from psycopg import AsyncConnection

from server.events import stream
from server.events.bus import EventBus
from server.postgres.tenants import Tenants
from server.settings import Settings
from server.stack import nats, postgres
from server.stack.account import servant
from server.stack.part import Part, start
from tests.bench.rows import Row, percentile
from tests.bench.stack import new_folder
from tests.fault.cdc_relay import SECRET, peak_bytes
from tests.fix_cdc import streaming
from tests.fix_runs import eventually

TITLE = "Change data capture"
COMMITS: Final = 400
LOAD_S: Final = 5.0
ROWS_A_COMMIT: Final = 100
MILLION: Final = 1_000_000
TABLE: Final = "CREATE TABLE bench (id int, customer int, amount numeric, note text, at timestamptz DEFAULT now())"
INSERT: Final = (
    "INSERT INTO bench SELECT i, i % 1000, i * 1.01, 'order number ' || i FROM generate_series(1, {rows}) AS i"
)


@dataclass(frozen=True, slots=True)
class Site:
    tenants: Tenants
    tenants_url: str
    nats_url: str
    bus: EventBus


async def measure() -> list[Row]:
    """About a minute and a half."""
    async with running() as site:
        project = str(uuid4())
        await site.tenants.provision(project)
        url = site.tenants.psql_url(project)
        with relaying(site) as relay:
            await streaming(site.tenants)
            async with await AsyncConnection.connect(url, autocommit=True) as person:
                await person.execute(TABLE)
                latencies_ms = [await commit_to_event_ms(site, person) for _ in range(COMMITS)][COMMITS // 10 :]
            began_s, cpu_s = time.perf_counter(), used_s(relay.pid)
            rows = await asyncio.to_thread(load, url)
            await until_stored(site, COMMITS + rows)
            loaded_s, cpu_s = time.perf_counter() - began_s, used_s(relay.pid) - cpu_s
            quiet_bytes = peak_bytes(relay.pid)
            async with await AsyncConnection.connect(url, autocommit=True) as person:
                began_s = time.perf_counter()
                await person.execute(INSERT.format(rows=MILLION).encode())
                committed_s = time.perf_counter() - began_s
            await until_stored(site, COMMITS + rows + MILLION)
            million_s = time.perf_counter() - began_s
            peak = peak_bytes(relay.pid)
    return [
        Row("commit to event in the stream, p50", percentile(latencies_ms, 50), "ms"),
        Row("commit to event in the stream, p99", percentile(latencies_ms, 99), "ms"),
        Row(f"changes in transactions of {ROWS_A_COMMIT} rows", rows / loaded_s, "/s", "≥ 8000"),
        Row("  CPU of the relay's process, a change", cpu_s / rows * 1e6, "µs", "< 125"),
        Row("a transaction of a million rows, its INSERT", committed_s, "s"),
        Row("  until its last event is in the stream", million_s, "s"),
        Row("  peak memory of the relay's process", peak / 2**20, "MiB", "< 200", baseline=quiet_bytes / 2**20),
    ]


async def commit_to_event_ms(site: Site, person: AsyncConnection) -> float:
    """From the moment the client knows that it committed; a subscriber hears of what is being stored."""
    loop = asyncio.get_running_loop()
    heard: asyncio.Future[float] = loop.create_future()

    async def hear(_: object) -> None:
        if not heard.done():
            heard.set_result(time.perf_counter())

    subscription = await site.bus.client.subscribe(f"{stream.PREFIX}cdc.>", cb=hear)
    await site.bus.client.flush()
    await person.execute(INSERT.format(rows=1).encode())
    began_s = time.perf_counter()
    ended_s = await asyncio.wait_for(heard, 10)
    await subscription.unsubscribe()
    return max(0.0, ended_s - began_s) * 1000


def load(url: str) -> int:
    """Commit as fast as one client can, for LOAD_S: how many rows."""
    with psycopg.connect(url, autocommit=True) as person:
        ends_s, rows = time.perf_counter() + LOAD_S, 0
        while time.perf_counter() < ends_s:
            person.execute(INSERT.format(rows=ROWS_A_COMMIT).encode())
            rows += ROWS_A_COMMIT
        return rows


def used_s(pid: int) -> float:
    """CPU time of a process."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


async def until_stored(site: Site, messages: int) -> None:
    async def enough() -> bool:
        return (await site.bus.jetstream.stream_info(stream.NAME)).state.messages >= messages

    await eventually(enough, within_s=300)


@contextmanager
def relaying(site: Site) -> Iterator[subprocess.Popen[bytes]]:
    argv = [sys.executable, "-m", "tests.fault.cdc_relay", site.tenants_url, site.nats_url]
    with subprocess.Popen(argv) as process:
        try:
            yield process
        finally:
            process.kill()


@asynccontextmanager
async def running() -> AsyncIterator[Site]:
    """A Postgres and a NATS of its own, with the settings that everybody has."""
    folder, account = new_folder(), servant()
    port, sockets = nats.free_port(), folder / "pg"
    bin_dir = postgres.prepare(folder / "postgres", sockets, folder / "bin", account)
    parts: list[Part] = [
        postgres.part(folder / "postgres", sockets, bin_dir, folder / "postgres.log", account),
        nats.part(
            data=folder / "nats",
            port=port,
            config=folder / "nats.conf",
            programs=folder / "bin",
            log=folder / "nats.log",
            token="bench",
            account=account,
        ),
    ]
    servers = [start(part, str(folder)) for part in parts]
    bus = EventBus(nats.url(port, "bench"))
    try:
        for server in servers:
            await asyncio.to_thread(server.wait_ready)
        with psycopg.connect(postgres.url(sockets, "postgres"), autocommit=True) as admin:
            admin.execute("CREATE DATABASE tenants")
        url = postgres.url(sockets, "tenants")
        tenants = Tenants(url, secret=SECRET, other_databases=())
        await tenants.start()
        await bus.start()
        await stream.ensure(bus, Settings(events_keep_hours=1, events_keep_mb=2048))
        yield Site(tenants, url, nats.url(port, "bench"), bus)
    finally:
        await bus.close()
        for server in servers:
            server.kill()
            server.close()
        shutil.rmtree(folder)
