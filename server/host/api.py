"""What functions can reach: `atlas.*` of one invocation, one table of operations.

    op          arguments                                      answer
    db.query    [sql, params?]                                 rows: an array of objects
    fetch       [url, {method, headers, body_base64,           {status, status_text, url, redirected, headers,
                       timeout_ms, redirect}?]                  body_base64}
    kv.get      [key]                                          the value or null
    kv.set      [key, value, {ttl_s}?]                         null
    kv.delete   [key]                                          whether there was one

A call of atlas.fetch counts once, its redirects do not.
"""

import asyncio
import time
from collections.abc import Awaitable, Callable
from typing import Final

import orjson

from engines.contract import HostError, Limits
from server.host import arguments
from server.host.database import Database
from server.host.fetch import Fetcher
from server.host.keyvalue import KeyValue
from server.host.statement import MAX_SQL_BYTES
from server.telemetry.metrics import Metrics
from server.telemetry.tracing import UNTRACED, Span

CALLS_AT_ONCE: Final = {"db": 4, "fetch": 6, "kv": 16}
"""Of one invocation and kind; more wait for their turn."""


class HostApi:
    """Makes the capabilities of invocations. Owns nothing: whoever made the parts closes them."""

    def __init__(
        self, database: Database, keyvalue: KeyValue, fetcher: Fetcher, metrics: Metrics | None = None
    ) -> None:
        self.database = database
        self.keyvalue = keyvalue
        self.fetcher = fetcher
        self.metrics = metrics or Metrics()

    def for_invocation(self, project_id: str, limits: Limits, span: Span = UNTRACED) -> "InvocationHost":
        """`span` is the run's; its calls become steps of it."""
        return InvocationHost(self, project_id, limits, span)


class InvocationHost:
    """`engines.contract.Host`: one project's capabilities, for as long as one invocation may run."""

    def __init__(self, api: HostApi, project_id: str, limits: Limits, span: Span) -> None:
        self._api = api
        self._span = span
        self._project_id = project_id
        self._limits = limits
        self._ends = time.monotonic() + limits.wall_ms / 1000
        self._turns: dict[str, asyncio.Semaphore] = {}  # made when needed: most invocations call nothing
        self.calls = 0
        self.fetch_calls = 0  # made or refused; past `limits.fetch_calls` they are refused

    async def call(self, op: str, args: bytes) -> bytes:
        self.calls += 1
        handler = OPERATIONS.get(op)
        if handler is None:
            raise HostError("unknown_op", f"there is no host operation {op[:40]!r}")
        if op == "fetch":
            self._count_fetch()
        metrics, began_s, ok = self._api.metrics, time.perf_counter(), "false"
        try:
            with self._span.step(op) as span:
                async with self._turn(op.partition(".")[0]):
                    answer = await handler(self, args, span)
            ok = "true"
            return answer
        finally:
            metrics.host_calls(op, ok).add()
            metrics.host_call_s(op).observe(time.perf_counter() - began_s)

    def _turn(self, kind: str) -> asyncio.Semaphore:
        turn = self._turns.get(kind)
        if turn is None:
            turn = self._turns[kind] = asyncio.Semaphore(CALLS_AT_ONCE[kind])
        return turn

    async def _query(self, args: bytes, span: Span) -> bytes:
        name = "atlas.db.query"
        sql, params = arguments.read(name, args, least=1, most=2)
        text = arguments.string(name, "sql", sql)
        if "\0" in text:
            raise arguments.invalid(name, "sql contains the character U+0000")
        if not text.strip():
            raise arguments.invalid(name, "sql is empty")
        if len(text.encode()) > MAX_SQL_BYTES:
            raise arguments.invalid(name, f"sql is longer than {MAX_SQL_BYTES} bytes; pass data as params")
        values = [] if params is None else arguments.array(name, "params", params)
        return await self._api.database.query(self._project_id, text, values, timeout_ms=self._left_ms())

    async def _fetch(self, args: bytes, span: Span) -> bytes:
        url, options = arguments.read("atlas.fetch", args, least=1, most=2)
        return await self._api.fetcher.fetch(self._project_id, url, options, timeout_ms=self._left_ms(), span=span)

    async def _kv_get(self, args: bytes, span: Span) -> bytes:
        (key,) = arguments.read("atlas.kv.get", args, least=1, most=1)
        return await self._api.keyvalue.get(self._project_id, key)

    async def _kv_set(self, args: bytes, span: Span) -> bytes:
        name = "atlas.kv.set"
        key, value, options = arguments.read(name, args, least=2, most=3)
        ttl = arguments.options(name, "options", options, frozenset(("ttl_s",))).get("ttl_s")
        ttl_s = None if ttl is None else arguments.number(name, "ttl_s", ttl)
        await self._api.keyvalue.set(self._project_id, key, value, ttl_s)
        return b"null"

    async def _kv_delete(self, args: bytes, span: Span) -> bytes:
        (key,) = arguments.read("atlas.kv.delete", args, least=1, most=1)
        return orjson.dumps(await self._api.keyvalue.delete(self._project_id, key))

    def _count_fetch(self) -> None:
        allowed = self._limits.fetch_calls
        self.fetch_calls += 1
        if self.fetch_calls > allowed:
            raise HostError(
                "fetch_limit", f"atlas.fetch: call {self.fetch_calls} of {allowed} allowed for this invocation"
            )

    def _left_ms(self) -> int:
        return max(1, int((self._ends - time.monotonic()) * 1000))


Handler = Callable[[InvocationHost, bytes, Span], Awaitable[bytes]]

OPERATIONS: Final[dict[str, Handler]] = {
    "db.query": InvocationHost._query,
    "fetch": InvocationHost._fetch,
    "kv.get": InvocationHost._kv_get,
    "kv.set": InvocationHost._kv_set,
    "kv.delete": InvocationHost._kv_delete,
}
