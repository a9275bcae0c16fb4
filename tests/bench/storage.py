"""Stored objects over REST through Envoy, beside a no-op handler that takes the same bytes in the same API process.

One request at a time, put, get and no-op by turns; then as many puts as some clients at once get done. Each has an
object and a content of its own. A put is durable and its event committed when it is answered; no worker relays them.
"""

import asyncio
import os
import time
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from typing import Final

import httpx
import psycopg

from tests.bench import noop, stack
from tests.bench.rows import Row, percentile
from tests.bench.sandbox import one_core
from tests.bench.wire import CORES

TITLE: Final = "Storage, over REST"
SIZES: Final = {"4 KiB": 4 * 1024, "1 MiB": 1024 * 1024}
ROUNDS: Final = 120
COLD: Final = 20
CLIENTS: Final = 8
SECONDS: Final = 3.0


async def measure() -> list[Row]:
    """About 15 s."""
    with one_core():
        async with stack.running(CORES[0]) as site:
            headers = {"authorization": f"Bearer {site.service_key}", "content-type": "application/octet-stream"}
            host, port = site.front
            url = f"http://{host}:{port}"
            async with httpx.AsyncClient(base_url=url, headers=headers, trust_env=False, timeout=30) as client:
                asking = _Asking(client)
                rows = [row for name, size in SIZES.items() for row in _rows(name, await asking.by_turns(size))]
                puts, nothing = await asking.per_s(asking.put), await asking.per_s(asking.nothing)
            rows.append(Row(f"put 4 KiB, {CLIENTS} at a time", puts, "/s", baseline=nothing))
            rows.append(Row("events committed, a put", await events(site.control_url) / asking.puts, ""))
    return rows


def _rows(name: str, lags_ms: Mapping[str, list[float]]) -> list[Row]:
    return [
        Row(f"{what} {name}, p{part}", percentile(lags_ms[what], part), "ms", "", percentile(lags_ms["no-op"], part))
        for part in (50, 99)
        for what in ("put", "get")
    ]


@dataclass
class _Asking:
    client: httpx.AsyncClient
    puts: int = 0

    async def by_turns(self, size: int) -> Mapping[str, list[float]]:
        """Latencies in milliseconds."""
        lags_ms: dict[str, list[float]] = {"put": [], "get": [], "no-op": []}
        for _ in range(ROUNDS):
            content = os.urandom(size)
            path = f"o{self.puts}"
            for what, asked in (
                ("no-op", self.nothing(content)),
                ("put", self.put(content)),
                ("get", self.get(path)),
            ):
                began_s = time.perf_counter()
                await asked
                lags_ms[what].append((time.perf_counter() - began_s) * 1000)
        return {what: each[COLD:] for what, each in lags_ms.items()}

    async def put(self, content: bytes) -> None:
        number, self.puts = self.puts, self.puts + 1
        (await self.client.put(f"/storage/v1/object/bench/o{number}", content=content)).raise_for_status()

    async def get(self, path: str) -> None:
        (await self.client.get(f"/storage/v1/object/bench/{path}")).raise_for_status()

    async def nothing(self, content: bytes) -> None:
        (await self.client.post(noop.PATH + "bench", content=content)).raise_for_status()

    async def per_s(self, ask: Callable[[bytes], Awaitable[None]]) -> float:
        done = 0
        began_s = time.perf_counter()
        ends_s = began_s + SECONDS

        async def client() -> None:
            nonlocal done
            while time.perf_counter() < ends_s:
                await ask(os.urandom(SIZES["4 KiB"]))
                done += 1

        await asyncio.gather(*(client() for _ in range(CLIENTS)))
        return done / (time.perf_counter() - began_s)


async def events(control_url: str) -> int:
    """That wait for a worker."""
    async with await psycopg.AsyncConnection.connect(control_url) as conn:
        ((count,),) = await (await conn.execute("SELECT count(*) FROM event_outbox")).fetchall()
    return int(count)
