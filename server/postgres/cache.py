"""Rows of the control database kept in memory for as long as Changes vouches for them.

    trusted, kept      → the kept value, at once
    trusted, not kept  → loaded once however many ask at the same time, then kept
    not trusted        → loaded every time

That something does not exist is kept too, briefly and in a ring of its own, so that whoever asks for random keys
evicts nothing but other random keys.
"""

import asyncio
from collections import OrderedDict
from collections.abc import Awaitable, Callable, Hashable
from typing import Final, Generic, TypeVar

from server.clock import Clock, SystemClock

K = TypeVar("K", bound=Hashable)
V = TypeVar("V")

ABSENT_S: Final = 2.0
ABSENT_CAPACITY: Final = 4096


class Cache(Generic[K, V]):
    def __init__(
        self,
        load: Callable[[K, V | None], Awaitable[V | None]],
        *,
        trusted: Callable[[], bool],
        capacity: int,
        weigh: Callable[[V], int] = lambda _: 1,
        clock: Clock | None = None,
    ) -> None:
        """`load(key, kept)` answers the value, or None when there is none; `kept` is the value that was kept, which may
        be out of date but can spare work. `capacity` is the sum of weights above which the least recently used go.
        """
        self._load = load
        self._trusted = trusted
        self._capacity = capacity
        self._weigh = weigh
        self._clock = clock or SystemClock()
        self._kept: OrderedDict[K, V] = OrderedDict()
        self._weight = 0
        self._absent_until_s: OrderedDict[K, float] = OrderedDict()
        self._loading: dict[K, asyncio.Task[V | None]] = {}
        self._epoch = 0

    def __repr__(self) -> str:
        return f"<Cache {len(self._kept)} kept, weight {self._weight} of {self._capacity}>"

    def kept(self, key: K) -> V | None:
        """The value if it is kept and trusted: what `get` would answer, without a coroutine. Else None."""
        value = self._kept.get(key) if self._trusted() else None
        if value is not None:
            self._kept.move_to_end(key)
        return value

    async def get(self, key: K) -> V | None:
        """The value, or None when there is none. Raises what `load` raises; that is never kept."""
        if (value := self.kept(key)) is not None:
            return value
        if not self._trusted():
            return await self._fetch(key)
        if self._absent_until_s.get(key, 0.0) > self._clock.monotonic_s():
            return None
        if (task := self._loading.get(key)) is None:
            task = self._loading[key] = asyncio.create_task(self._fetch(key), name="cache load")
            task.add_done_callback(lambda done: self._loaded(key, done))
        return await asyncio.shield(task)

    def forget(self, key: K) -> V | None:
        """The value that was kept. The next `get` loads; a load that has begun is not kept."""
        self._epoch += 1
        self._loading.pop(key, None)
        self._absent_until_s.pop(key, None)
        return self._drop(key)

    def forget_where(self, stale: Callable[[V], bool]) -> None:
        """Forget every kept value for which `stale(value)` is true."""
        self._epoch += 1
        self._loading.clear()
        for key in [key for key, value in self._kept.items() if stale(value)]:
            self._drop(key)

    def clear(self) -> None:
        """Forget everything."""
        self._epoch += 1
        self._loading.clear()
        self._absent_until_s.clear()
        self._kept.clear()
        self._weight = 0

    async def _fetch(self, key: K) -> V | None:
        epoch = self._epoch
        value = await self._load(key, self._kept.get(key))
        if epoch == self._epoch:
            self._keep(key, value)
        return value

    def _loaded(self, key: K, task: asyncio.Task[V | None]) -> None:
        if self._loading.get(key) is task:
            del self._loading[key]
        if not task.cancelled():
            task.exception()  # whoever waited has it; if all have left, nobody is to be warned

    def _keep(self, key: K, value: V | None) -> None:
        self._drop(key)
        self._absent_until_s.pop(key, None)
        if value is None:
            self._absent_until_s[key] = self._clock.monotonic_s() + ABSENT_S
            if len(self._absent_until_s) > ABSENT_CAPACITY:
                self._absent_until_s.popitem(last=False)
            return
        self._kept[key] = value
        self._weight += self._weigh(value)
        while self._weight > self._capacity:
            self._drop(next(iter(self._kept)))

    def _drop(self, key: K) -> V | None:
        if (value := self._kept.pop(key, None)) is not None:
            self._weight -= self._weigh(value)
        return value
