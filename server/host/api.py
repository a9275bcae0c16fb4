"""What functions can reach: `atlas.*` of one invocation, one table of operations.

    op          arguments                                      answer
    db.query    [sql, params?]                                 rows: an array of objects
    fetch       [url, {method, headers, body_base64,           {status, status_text, url, redirected, headers,
                       timeout_ms, redirect}?]                  body_base64}
    kv.get      [key]                                          the value or null
    kv.set      [key, value, {ttl_s}?]                         null
    kv.delete   [key]                                          whether there was one

    tx.open     [number, {exactly_once}?]                      null, when the transaction is over
    tx.begin    [number]                                       null once it is open; {value} when it was done before
    tx.query    [number, sql, params?]                         rows
    tx.commit   [number, value?]                               null
    tx.rollback [number]                                       null

    events.publish  [type, data, {id, subject, transactional}?, number?]     {id, duplicate}

    storage.put     [bucket, path, body_base64, {content_type, metadata, overwrite}?]     the object
    storage.get     [bucket, path, {offset, length}?]          the object with body_base64, or null
    storage.list    [bucket, {prefix, limit, cursor}?]         {objects, cursor}
    storage.delete  [bucket, path]                             whether there was one

A call of atlas.fetch counts once, its redirects do not.
"""

import asyncio
import time
from collections.abc import Awaitable, Callable
from typing import Final

import orjson

from engines.contract import HostError, Limits
from server.events.envelope import Cause
from server.host import arguments
from server.host.database import Database
from server.host.database_calls import DatabaseCalls, causes_of
from server.host.fetch import Fetcher
from server.host.keyvalue import KeyValue
from server.host.objects import ObjectCalls
from server.host.origin import Origin
from server.host.publishing import Counted, Publishing
from server.host.run_transaction import RunTransaction
from server.storage.storage import Storage
from server.telemetry.metrics import Metrics
from server.telemetry.tracing import UNTRACED, Span

CALLS_AT_ONCE: Final = {"db": 4, "fetch": 6, "kv": 16, "tx": 64, "events": 8, "storage": 4}
"""Of one invocation and kind; more wait for their turn."""


class HostApi:
    """Makes the capabilities of invocations. Owns nothing: whoever made the parts closes them."""

    def __init__(
        self,
        database: Database,
        keyvalue: KeyValue,
        fetcher: Fetcher,
        metrics: Metrics | None = None,
        *,
        publishing: Publishing | None = None,
        storage: Storage | None = None,
    ) -> None:
        """Without `storage` its operations do not exist."""
        self.database = database
        self.keyvalue = keyvalue
        self.fetcher = fetcher
        self.metrics = metrics or Metrics()
        self.publishing = publishing
        self.objects = None if storage is None else ObjectCalls(storage)

    def run_transaction(self, project_id: str, origin: Origin, *, repeated: bool) -> RunTransaction:
        """For all that a run does in the database. `repeated`: there may be other attempts at it."""
        before, cause = causes_of(self.database.effects(project_id), origin)
        return RunTransaction(
            self.database,
            project_id,
            before=before,
            cause=cause,
            mark=origin.whole_mark if repeated else None,
            publishing=self.publishing,
        )

    def for_invocation(
        self,
        project_id: str,
        limits: Limits,
        span: Span = UNTRACED,
        origin: Origin | None = None,
        whole: RunTransaction | None = None,
    ) -> "InvocationHost":
        """`span` is the run's; its calls become steps of it. `origin`: None for one that nobody asked for. `whole`:
        what all of its statements are part of; None when each is a transaction of its own."""
        return InvocationHost(self, project_id, limits, span, origin, whole)


class InvocationHost:
    """`engines.contract.Host`: one project's capabilities, for as long as one invocation may run."""

    def __init__(
        self,
        api: HostApi,
        project_id: str,
        limits: Limits,
        span: Span,
        origin: Origin | None,
        whole: RunTransaction | None,
    ) -> None:
        self._api = api
        self._origin = origin
        self._database = DatabaseCalls(api.database, project_id, origin, whole, api.publishing)
        self._events = Counted(project_id, origin)
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
        if handler is None or (op.startswith("storage.") and self._api.objects is None):
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
        return await self._database.query(args, timeout_ms=self._left_ms())

    async def _tx_open(self, args: bytes, span: Span) -> bytes:
        return await self._database.open(args, timeout_ms=self._left_ms())

    async def _tx_begin(self, args: bytes, span: Span) -> bytes:
        return await self._database.begin(args)

    async def _tx_query(self, args: bytes, span: Span) -> bytes:
        return await self._database.query_within(args)

    async def _tx_commit(self, args: bytes, span: Span) -> bytes:
        return await self._database.commit(args)

    async def _tx_rollback(self, args: bytes, span: Span) -> bytes:
        return await self._database.rollback(args)

    async def _publish(self, args: bytes, span: Span) -> bytes:
        name = "atlas.events.publish"
        event_type, data, given, number = arguments.read(name, args, least=2, most=4)
        options = arguments.options(name, "options", given, frozenset(("id", "subject", "transactional")))
        event = self._events.event(
            name,
            arguments.string(name, "type", event_type),
            arguments.json_text(name, "data", data),
            arguments.string(name, "id", options.get("id") or ""),
            arguments.string(name, "subject", options.get("subject") or ""),
        )
        publishing = self._api.publishing
        if publishing is None:
            raise HostError("unavailable", f"{name}: this server has no event bus")
        if number is None and not options.get("transactional"):
            return await publishing.publish(name, event)
        await self._database.publish(name, number, publishing.encoded(name, event))
        return orjson.dumps({"id": event.id, "duplicate": False})

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

    async def _storage_put(self, args: bytes, span: Span) -> bytes:
        return await self._objects.put(self._project_id, args, self._cause)

    async def _storage_get(self, args: bytes, span: Span) -> bytes:
        return await self._objects.get(self._project_id, args)

    async def _storage_list(self, args: bytes, span: Span) -> bytes:
        return await self._objects.list(self._project_id, args)

    async def _storage_delete(self, args: bytes, span: Span) -> bytes:
        return await self._objects.delete(self._project_id, args, self._cause)

    @property
    def _cause(self) -> Cause | None:
        return None if self._origin is None else self._origin.cause

    @property
    def _objects(self) -> ObjectCalls:
        assert self._api.objects is not None, "`call` has looked"
        return self._api.objects

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
    "tx.open": InvocationHost._tx_open,
    "tx.begin": InvocationHost._tx_begin,
    "tx.query": InvocationHost._tx_query,
    "tx.commit": InvocationHost._tx_commit,
    "tx.rollback": InvocationHost._tx_rollback,
    "events.publish": InvocationHost._publish,
    "fetch": InvocationHost._fetch,
    "kv.get": InvocationHost._kv_get,
    "kv.set": InvocationHost._kv_set,
    "kv.delete": InvocationHost._kv_delete,
    "storage.put": InvocationHost._storage_put,
    "storage.get": InvocationHost._storage_get,
    "storage.list": InvocationHost._storage_list,
    "storage.delete": InvocationHost._storage_delete,
}
