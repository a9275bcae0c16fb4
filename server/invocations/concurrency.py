"""At most N invocations of a function at a time over all servers, for the functions that ask for it.

    hold ─▶ line of this process (FIFO) ─▶ head asks Valkey ─▶ lease ─▶ run ─▶ released

Valkey holds two sorted sets a function, by their end in its own milliseconds: the leases of what runs, and the heads of
the lines that wait, one a process. A head gets a lease when there are fewer leases and earlier heads than N, so the
processes take turns. Both end by themselves: a server that dies gives its slots back when its runs' time is over.

Without Valkey every process admits N of its own: more than was asked for, but bounded, and functions go on.
"""

import asyncio
import contextlib
from collections import deque
from collections.abc import AsyncIterator
from typing import Final
from uuid import uuid4
from weakref import WeakValueDictionary

from server.log import logger
from server.valkey import BlockingConnectionPool, NoBackoff, Redis, RedisError, Retry

log = logger("concurrency")

GRACE_MS: Final = 5_000
"""Of a lease, beyond the wait for a sandbox and the wall clock: for starting one and for killing it."""

ASK_EVERY_S: Final = 0.02
"""While all slots are taken elsewhere; a slot that is released in this process is asked for at once."""

LEAST_WAIT_MS: Final = 20
"""Whatever the queue's deadline is: a free slot, too, is a round trip away, and one asks after the other."""

CONNECTIONS: Final = 8
TIMEOUT_S: Final = 0.5
AWAY_S: Final = 1.0
"""After a failure Valkey is not asked for so long, so that nobody waits for it."""

MOST_OWED: Final = 10_000
"""Leases to give back when Valkey is there again; the rest ends by itself."""

_TAKE: Final = """
local running, waiting = KEYS[1], KEYS[2]
local id, limit, lease_ms, wait_ms = ARGV[1], tonumber(ARGV[2]), tonumber(ARGV[3]), tonumber(ARGV[4])
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
for _, key in ipairs(KEYS) do redis.call('ZREMRANGEBYSCORE', key, '-inf', now) end
local ahead = redis.call('ZRANK', waiting, id) or redis.call('ZCARD', waiting)
local into, until_ms = waiting, wait_ms
local taken = redis.call('ZCARD', running) + ahead < limit
if taken then
  redis.call('ZREM', waiting, id)
  into, until_ms = running, lease_ms
end
redis.call('ZADD', into, 'NX', now + until_ms, id)
if redis.call('PTTL', into) < until_ms then redis.call('PEXPIRE', into, until_ms) end
return taken and 1 or 0
"""


class NoSlot(Exception):
    """No slot became free within `waited_ms`."""

    def __init__(self, limit: int, waited_ms: float) -> None:
        super().__init__(f"{limit} invocations run already, and none ended within {waited_ms:g} ms")
        self.limit = limit
        self.waited_ms = waited_ms


class _Line:
    """Who waits in this process for one function, in order, and how many it runs."""

    def __init__(self) -> None:
        self.head = asyncio.Lock()
        self.released = asyncio.Event()
        self.running = 0


class Slots:
    def __init__(self, url: str, *, queue_ms: int) -> None:
        """`queue_ms` is how long an invocation may wait here, and once more for a sandbox afterwards."""
        pool = BlockingConnectionPool.from_url(
            url,
            max_connections=CONNECTIONS,
            timeout=TIMEOUT_S,
            socket_timeout=TIMEOUT_S,
            socket_connect_timeout=TIMEOUT_S,
            retry=Retry(NoBackoff(), retries=1),  # a connection may be from before a restart
        )
        self._redis = Redis.from_pool(pool)
        self._take = self._redis.register_script(_TAKE)
        self._queue_ms = queue_ms
        self._lines: WeakValueDictionary[str, _Line] = WeakValueDictionary()
        self._releasing: set[asyncio.Task[None]] = set()
        self._owed: deque[tuple[str, str]] = deque(maxlen=MOST_OWED)
        self._away_until_s = float("-inf")

    def __repr__(self) -> str:
        return f"<Slots {sum(line.running for line in self._lines.values())} held>"

    @contextlib.asynccontextmanager
    async def hold(self, function_id: str, limit: int, wall_ms: int) -> AsyncIterator[None]:
        """Hold one of the function's `limit` slots inside the block, which runs for at most `wall_ms` and its start.

        NoSlot when none becomes free in time. Cancelled while it waits, it holds nothing.
        """
        line = self._lines.get(function_id)
        if line is None:
            line = self._lines[function_id] = _Line()
        lease = uuid4().hex
        try:
            await self._wait(line, function_id, lease, limit, wall_ms)
        except BaseException:
            self._release(line, function_id, lease)
            raise
        line.running += 1
        try:
            yield
        finally:
            line.running -= 1
            self._release(line, function_id, lease)

    async def close(self) -> None:
        """Give back what is being given back, and disconnect."""
        if self._releasing:
            await asyncio.wait(self._releasing)
        await self._redis.aclose(close_connection_pool=True)

    async def _wait(self, line: _Line, function_id: str, lease: str, limit: int, wall_ms: int) -> None:
        deadline_s = _now_s() + max(self._queue_ms, LEAST_WAIT_MS) / 1000
        try:
            async with asyncio.timeout_at(deadline_s):
                await line.head.acquire()
        except TimeoutError:
            raise NoSlot(limit, self._queue_ms) from None
        try:
            while True:
                line.released.clear()
                left_s = deadline_s - _now_s()
                if await self._taken(line, function_id, lease, limit, wall_ms, left_s):
                    return
                if left_s <= 0:
                    raise NoSlot(limit, self._queue_ms)
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(min(ASK_EVERY_S, left_s)):
                        await line.released.wait()
        finally:
            line.head.release()

    async def _taken(self, line: _Line, function_id: str, lease: str, limit: int, wall_ms: int, left_s: float) -> bool:
        if _now_s() < self._away_until_s:
            return line.running < limit
        lease_ms = wall_ms + self._queue_ms + GRACE_MS
        asked = asyncio.create_task(
            self._ask(_keys(function_id), (lease, limit, lease_ms, max(1, int(left_s * 1000)))), name="slot"
        )
        try:
            return await asyncio.shield(asked)
        except RedisError as why:
            self._failed(why)
            return line.running < limit
        except asyncio.CancelledError:
            await asyncio.wait([asked])  # or the lease might be made after it was given back
            _ = asked.cancelled() or asked.exception()
            raise

    async def _ask(self, keys: tuple[str, str], arguments: tuple[str, int, int, int]) -> bool:
        await self._give_back_owed()
        return bool(await self._take(keys, arguments))

    def _release(self, line: _Line, function_id: str, lease: str) -> None:
        """Nobody waits for it: it is done even when the caller is cancelled meanwhile."""
        self._owed.append((function_id, lease))
        task = asyncio.create_task(self._released(line), name="slot release")
        self._releasing.add(task)
        task.add_done_callback(self._releasing.discard)

    async def _released(self, line: _Line) -> None:
        if _now_s() >= self._away_until_s:
            try:
                await self._give_back_owed()
            except RedisError as why:
                self._failed(why)
        line.released.set()

    async def _give_back_owed(self) -> None:
        """All that has been released, also while Valkey was away."""
        if not self._owed:
            return
        owed = [*self._owed]
        self._owed.clear()
        try:
            async with self._redis.pipeline(transaction=False) as pipeline:
                for function_id, lease in owed:
                    for key in _keys(function_id):
                        pipeline.zrem(key, lease)
                await pipeline.execute()
        except BaseException:
            self._owed.extend(owed)
            raise

    def _failed(self, why: RedisError) -> None:
        self._away_until_s = _now_s() + AWAY_S
        log.warning("concurrency.alone", "Concurrency is limited in this process alone for now", error=str(why))


def _now_s() -> float:
    return asyncio.get_running_loop().time()


def _keys(function_id: str) -> tuple[str, str]:
    """In one slot of a cluster."""
    return f"slots:{{{function_id}}}:running", f"slots:{{{function_id}}}:waiting"
