"""Changes into the stream of events, each once and in their order, whatever ends in between.

    window ─▶ atomic batch, or one by one, expected to follow the last change ─▶ stored ─▶ next window
                  │ away, refused, or no answer
                  ╰──▶ read the last change of the stream ─▶ leave out what it has ─▶ the rest again

All of a batch is stored or nothing, of a few changes those before the first that is not, so that no failure leaves a
hole; and only if the stream's last change is the one we know, so that a relay that slept through its successor's work
cannot add to it. Needs no deduplication window.
"""

import asyncio
from collections.abc import Mapping, Sequence
from typing import Final

from nats.js.errors import NotFoundError

from server.cdc.changes import Outgoing
from server.cdc.position import HEADER, Position, parse_position
from server.events import batches, stream
from server.events.batches import DUPLICATE, FEW, Entry, Refused
from server.events.bus import EventBus
from server.log import logger
from server.settings import Settings

log = logger("cdc")

MAX_BATCH: Final = batches.MOST

TRY_S: Final = 5.0
PAUSE_S: Final = 0.1
FULL_PAUSE_S: Final = 1.0
HEADERS_BYTES: Final = 1_400
LEAST_PAYLOAD_BYTES: Final = 1024 * 1024
"""That NATS has to take: the names of a table's columns alone may need most of it."""

SUBJECTS: Final = f"{stream.PREFIX}cdc.>"

_FULL: Final = (10077, 10047, 10023)
"""Maximum bytes exceeded; no resources left: of the account, of the server."""

_EXPECTED: Final = (10071, 10176)
"""Another change came last; a batch that lacks a message, after a reconnection."""


class TooSmall(Exception):
    """NATS takes too small messages only; the message says what to do."""


class Outlet:
    """For one relay, which stores one window at a time."""

    def __init__(self, bus: EventBus, settings: Settings) -> None:
        self._bus = bus
        self._settings = settings
        self._sequence = 0
        self._waits = False

    @property
    def most_bytes(self) -> int:
        """Of an event. TooSmall."""
        if (allowed := self._bus.client.max_payload) < LEAST_PAYLOAD_BYTES:
            raise TooSmall(f"max_payload of NATS is {allowed}; change data capture needs {LEAST_PAYLOAD_BYTES}")
        return LEAST_PAYLOAD_BYTES - HEADERS_BYTES

    async def last(self) -> Position | None:
        """Of the last change in the stream; None when there is none. One of `stream.AWAY`."""
        try:
            found = await self._bus.jetstream.get_last_msg(stream.NAME, SUBJECTS, direct=False)
        except NotFoundError as why:
            if why.err_code == _NO_STREAM:
                await stream.ensure(self._bus, self._settings)
            self._sequence = 0
            return None
        self._sequence = found.seq or 0
        return parse_position((found.headers or {}).get(HEADER, ""))

    async def store(self, window: Sequence[Outgoing]) -> None:
        """All of them are stored; not before. Waits for as long as it takes."""
        left = window
        while left:
            try:
                await self._store(left)
                self._say_waits("")
                return
            except Refused as why:
                refused = why.code
                await self._wait_out(why)
            except stream.AWAY as why:
                refused = 0
                await self._wait(f"for NATS: {why!r}", PAUSE_S)
            before = len(left)
            left = await self._missing(left)
            if refused == DUPLICATE and len(left) == before and await self._store_each(left):
                return

    async def _wait_out(self, why: Refused) -> None:
        if why.code in _FULL:
            await self._wait("for room: the stream is full of events that are not run yet", FULL_PAUSE_S)
        elif why.code not in (*_EXPECTED, DUPLICATE):
            await self._wait(f"because NATS refuses them, which must be 2.12 or newer: {why}", FULL_PAUSE_S)

    async def _missing(self, window: Sequence[Outgoing]) -> Sequence[Outgoing]:
        """Those that are not in the stream, once NATS can tell."""
        while True:
            try:
                if self._bus.connected:
                    last = await self.last()
                    return [item for item in window if not item.position.reached(last)]
            except (*stream.AWAY, stream.StreamUnusable) as why:
                self._say_waits(f"for NATS: {why!r}")
            await asyncio.sleep(PAUSE_S)

    async def _wait(self, why: str, pause_s: float) -> None:
        self._say_waits(why)
        await asyncio.sleep(pause_s)

    def _say_waits(self, why: str) -> None:
        """Once, until they wait no more."""
        if why and not self._waits:
            log.warning("cdc.waiting", f"Changes wait {why}")
        elif self._waits and not why:
            log.info("cdc.stored", "Changes are stored again")
        self._waits = bool(why)

    async def _store_each(self, window: Sequence[Outgoing]) -> bool:
        """One by one, when the stream knows some of them though its last change is another's. False: try again."""
        for item in window:
            try:
                await self._store([item])
            except Refused as why:
                if why.code != DUPLICATE:
                    return False
            except stream.AWAY:
                return False
        return True

    async def _store(self, window: Sequence[Outgoing]) -> None:
        """In one batch, or few of them one after the other: then the first ones may be stored without the rest.
        Refused; one of `stream.AWAY`, and then what was sent may be stored or not."""
        client = self._bus.client
        if not self._bus.connected:
            raise ConnectionError("not connected to NATS")
        if len(window) > FEW:
            first, *rest = window
            entries = [self._following(first), *map(_entry, rest)]
            self._sequence = await batches.store(client, entries, TRY_S)
            return
        for item in window:
            self._sequence = await batches.store_one(client, self._following(item), TRY_S)

    def _following(self, item: Outgoing) -> Entry:
        """Stored only if the stream's last change is the one we know."""
        expected = {
            "Nats-Expected-Last-Subject-Sequence": str(self._sequence),
            "Nats-Expected-Last-Subject-Sequence-Subject": SUBJECTS,
        }
        return _entry(item, expected)


def _entry(item: Outgoing, expected: Mapping[str, str] | None = None) -> Entry:
    headers = {"Nats-Msg-Id": f"{item.project_id}:{item.id}", HEADER: str(item.position), **(expected or {})}
    return Entry(stream.subject_of(item.event_type), item.body, headers)


_NO_STREAM: Final = 10059
