"""What streams in goes out in windows: read and decoded while the window before is being stored, in bounded memory."""

import asyncio
import time
from collections import deque
from collections.abc import Awaitable, Callable, Mapping
from typing import Final

from server.cdc.changes import Changes, End, Outgoing, TooManyTables
from server.cdc.frames import Frame, Keepalive, Logged
from server.cdc.link import Link
from server.cdc.outlet import MAX_BATCH, Outlet
from server.cdc.pgoutput import ProtocolError, Relation, decode
from server.postgres.channel import SqlError
from server.tasks import end_task, unheard
from server.telemetry.metrics import Metrics

WINDOW_BYTES: Final = 4 * 1024 * 1024
WAITING: Final = 4 * MAX_BATCH
"""Changes that are decoded and not stored; above, nothing more is read."""

WAITING_BYTES: Final = 4 * WINDOW_BYTES
CONFIRM_S: Final = 0.05
YIELD_AFTER: Final = 100
"""Frames, so that the process's other work gets its turn."""

LARGE_BYTES: Final = 64 * 1024
"""Of a frame after which it gets its turn in any case."""

FIRST_OWN_OID: Final = 16_384
"""Of what is not built in: a type from here on may be a domain."""

UNREADABLE: Final = (SqlError, ProtocolError, TooManyTables)
"""What ends a stream because of what is in it, at the same place the next time."""

BaseTypes = Callable[[list[int]], Awaitable[Mapping[int, int]]]


class Pump:
    def __init__(self, link: Link, outlet: Outlet, metrics: Metrics) -> None:
        self._link = link
        self._outlet = outlet
        self._metrics = metrics
        self._queue: deque[Outgoing | End] = deque()
        self._waiting_bytes = 0
        self._more, self._room = asyncio.Event(), asyncio.Event()
        self._stored = asyncio.Event()
        self._stored.set()
        self._confirmed_s = 0.0
        self.confirmed = 0
        """Everything before this LSN is stored; 0 at first, which says nothing."""

    async def run(self, changes: Changes, base_types: BaseTypes) -> None:
        """Until the first exception of the link, of the decoder or of the outlet. What was read before something that
        cannot be read (UNREADABLE) is stored first, however long that takes: it may be skipped next, and what comes
        before it with it."""
        reading = asyncio.create_task(self._read(changes, base_types))
        storing = asyncio.create_task(self._store())
        stored: asyncio.Task[bool] | None = None
        try:
            await asyncio.wait((reading, storing), return_when=asyncio.FIRST_COMPLETED)
            if reading.done() and isinstance(reading.exception(), UNREADABLE):
                stored = asyncio.create_task(self._stored.wait())
                await asyncio.wait((stored, storing), return_when=asyncio.FIRST_COMPLETED)
            for task in (storing, reading):
                if task.done():
                    task.result()
        finally:
            tasks = [task for task in (reading, storing, stored) if task is not None]
            for each in tasks:
                each.add_done_callback(unheard)
            await end_task(*tasks)

    async def _read(self, changes: Changes, base_types: BaseTypes) -> None:
        while True:
            for number, frame in enumerate(await self._link.read(), 1):
                await self._take(frame, changes, base_types)
                if number % YIELD_AFTER == 0 or (isinstance(frame, Logged) and len(frame.body) > LARGE_BYTES):
                    await asyncio.sleep(0)

    async def _take(self, frame: Frame, changes: Changes, base_types: BaseTypes) -> None:
        if isinstance(frame, Keepalive):
            if changes.open is None:  # all that was committed up to there has come
                self._add(End(frame.end_lsn))
            if frame.reply:
                self._link.confirm(self.confirmed)
            return
        if not isinstance(frame, Logged):
            return  # a notice
        message = decode(frame.body)
        bases: Mapping[int, int] = {}
        if isinstance(message, Relation):
            own = [column.type_oid for column in message.columns if column.type_oid >= FIRST_OWN_OID]
            bases = await base_types(own) if own else {}
        for item in changes.take(message, bases):
            self._add(item)
        while len(self._queue) >= WAITING or self._waiting_bytes >= WAITING_BYTES:
            self._room.clear()
            await self._room.wait()

    def _add(self, item: Outgoing | End) -> None:
        self._queue.append(item)
        if isinstance(item, Outgoing):
            self._waiting_bytes += len(item.body)
        self._more.set()
        self._stored.clear()

    async def _store(self) -> None:
        while True:
            await self._more.wait()
            window, end = self._window()
            if window:
                await self._outlet.store(window)
                for item in window:
                    self._metrics.cdc_changes(item.op).add()
            if end is not None and end.lsn > self.confirmed:
                self.confirmed = end.lsn
                self._confirm()
            if not self._queue:
                self._more.clear()
                self._stored.set()
            self._room.set()

    def _window(self) -> tuple[list[Outgoing], End | None]:
        """What is stored at once, and the last end of a transaction in it."""
        window: list[Outgoing] = []
        end: End | None = None
        size = 0
        while self._queue:
            item = self._queue[0]
            if isinstance(item, End):
                end = item
            elif len(window) < MAX_BATCH and (size := size + len(item.body)) <= WINDOW_BYTES:
                window.append(item)
                self._waiting_bytes -= len(item.body)
            else:
                break
            self._queue.popleft()
        return window, end

    def _confirm(self) -> None:
        """Not after each of many; the rest is confirmed with the next word to the server."""
        now_s = time.monotonic()
        if now_s - self._confirmed_s >= CONFIRM_S:
            self._confirmed_s = now_s
            self._link.confirm(self.confirmed)
