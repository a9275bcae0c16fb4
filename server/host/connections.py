"""Connections of all projects under one roof: a few for each project, a bound for all, the idle ones given up first.

`_claim` decides, without waiting, what a project that asks gets:

    1  its own idle connection, the most recently used
    2  a new one, when both the project and the roof have room
    3  a new one in the place of the connection that has been idle longest, whosever it is
    4  nothing yet: it waits, first come first served among those who can be served
"""

import asyncio
from collections import Counter, deque
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Final, Generic, Protocol, TypeVar

TOTAL: Final = 24
"""In one process. Times the processes of an installation this must stay below Postgres' max_connections."""

PER_PROJECT: Final = 4
IDLE_S: Final = 60.0
WAIT_S: Final = 5.0


class Closable(Protocol):
    @property
    def alive(self) -> bool: ...

    def close(self) -> None: ...

    async def wait_closed(self) -> None: ...

    async def abandon(self) -> None: ...


C = TypeVar("C", bound=Closable)


class NoConnection(Exception):
    """None was free within the waiting time."""


@dataclass(eq=False, slots=True)
class Place(Generic[C]):
    """Room for one connection of a project; `connection` is None until it is made."""

    project_id: str
    connection: C | None = None
    idle_since: float = 0.0


class Connections(Generic[C]):
    """`connect(project_id)` makes one. Connections in use survive `forget` until they are returned."""

    def __init__(
        self,
        connect: Callable[[str], Awaitable[C]],
        *,
        total: int = TOTAL,
        per_project: int = PER_PROJECT,
        idle_s: float = IDLE_S,
        wait_s: float = WAIT_S,
    ) -> None:
        self._connect = connect
        self._total, self._per_project, self._idle_s, self._wait_s = total, per_project, idle_s, wait_s
        self._taken: Counter[str] = Counter()  # places by project, idle ones included
        self._idle: dict[Place[C], None] = {}  # in the order of becoming idle
        self._waiting: deque[tuple[str, asyncio.Future[Place[C]]]] = deque()
        self._closing: set[asyncio.Task[None]] = set()
        self._timer: asyncio.TimerHandle | None = None

    def __repr__(self) -> str:
        taken = self._taken.total()
        return f"<Connections {taken - len(self._idle)} in use, {len(self._idle)} idle, {len(self._waiting)} waiting>"

    @asynccontextmanager
    async def lease(self, project_id: str) -> AsyncIterator[C]:
        """A connection for the block. After any exception it is abandoned: the server stops, nothing is committed.

        NoConnection when none is free in time; whatever `connect` raises.
        """
        place = await self._take(project_id)
        try:
            if place.connection is None:
                place.connection = await self._connect(project_id)
            yield place.connection
        except BaseException:
            ending = asyncio.create_task(self._abandon(place))
            self._closing.add(ending)
            ending.add_done_callback(self._closing.discard)
            await asyncio.shield(ending)  # the statement has ended before its invocation does
            raise
        self._give_back(place)

    async def forget(self, project_id: str) -> None:
        """Close the project's idle connections."""
        for place in [place for place in self._idle if place.project_id == project_id]:
            self._drop(place)

    async def close(self) -> None:
        if self._timer:
            self._timer.cancel()
        closing = [place.connection for place in self._idle if place.connection]
        for place in list(self._idle):
            self._drop(place)
        for _, waiter in self._waiting:
            waiter.cancel()
        await asyncio.gather(*self._closing, *(each.wait_closed() for each in closing), return_exceptions=True)

    async def _take(self, project_id: str) -> Place[C]:
        place = self._claim(project_id)
        if place:
            return place
        waiter: asyncio.Future[Place[C]] = asyncio.get_running_loop().create_future()
        entry = (project_id, waiter)
        self._waiting.append(entry)
        try:
            async with asyncio.timeout(self._wait_s):
                return await waiter
        except BaseException as why:
            if entry in self._waiting:
                self._waiting.remove(entry)
            elif waiter.done() and not waiter.cancelled():
                self._give_back(waiter.result())
            if isinstance(why, TimeoutError):
                raise NoConnection from None
            raise

    def _claim(self, project_id: str) -> Place[C] | None:
        for place in reversed(self._idle):
            if place.project_id == project_id:
                del self._idle[place]
                if place.connection and not place.connection.alive:
                    place.connection.close()
                    place.connection = None
                return place
        if self._taken[project_id] >= self._per_project:
            return None
        if self._taken.total() >= self._total:
            oldest = next(iter(self._idle), None)
            if oldest is None:
                return None
            self._drop(oldest)
        self._taken[project_id] += 1
        return Place(project_id)

    def _give_back(self, place: Place[C]) -> None:
        if place.connection is None or not place.connection.alive:
            self._vacate(place.project_id)
            if place.connection:
                place.connection.close()
        else:
            place.idle_since = asyncio.get_running_loop().time()
            self._idle[place] = None
            self._schedule()
        self._serve()

    async def _abandon(self, place: Place[C]) -> None:
        try:
            if place.connection:
                await place.connection.abandon()
        finally:
            self._vacate(place.project_id)
            self._serve()

    def _serve(self) -> None:
        for entry in list(self._waiting):
            project_id, waiter = entry
            if not waiter.done() and (place := self._claim(project_id)):
                self._waiting.remove(entry)
                waiter.set_result(place)

    def _vacate(self, project_id: str) -> None:
        self._taken[project_id] -= 1
        if not self._taken[project_id]:
            del self._taken[project_id]

    def _drop(self, place: Place[C]) -> None:
        del self._idle[place]
        self._vacate(place.project_id)
        if place.connection:
            place.connection.close()

    def _schedule(self) -> None:
        if self._timer is None and self._idle:
            due = next(iter(self._idle)).idle_since + self._idle_s
            self._timer = asyncio.get_running_loop().call_at(due, self._expire)

    def _expire(self) -> None:
        self._timer = None
        limit = asyncio.get_running_loop().time() - self._idle_s
        for place in [place for place in self._idle if place.idle_since <= limit]:
            self._drop(place)
        self._schedule()
