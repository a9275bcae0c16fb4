"""The connection on which a walsender streams: frames to us, confirmations to it."""

import struct
import time
from collections.abc import Callable
from typing import Final

from server.cdc.frames import Frame, Frames
from server.postgres import publication, wire
from server.postgres.channel import Channel, ConnectionLost, Reader, SqlError
from server.postgres.tenants import Tenants
from server.postgres.values import FORMATS

READ_BYTES: Final = 256 * 1024
MAX_MESSAGE_BYTES: Final = 64 * 1024
"""Of what comes before the stream."""

SILENCE_S: Final = 10
"""Without a word of ours for which the walsender ends, so that another relay may have the slot."""

CLOSE_S: Final = 1.0

_SETTINGS: Final = {
    **FORMATS,
    "application_name": "atlas-cdc",
    "wal_sender_timeout": f"{SILENCE_S}s",
    "statement_timeout": "0",
}
_EPOCH_S: Final = 946_684_800
"""2000-01-01 UTC."""


class Link:
    def __init__(self, channel: Channel, reader: Reader, write: Callable[[bytes], None]) -> None:
        self._channel = channel
        self._reader = reader
        self._write = write
        self._frames = Frames()
        self._ended: SqlError | ConnectionLost | None = None

    @classmethod
    async def open(cls, tenants: Tenants, slot: str) -> "Link":
        """Streaming from where the slot is. SqlError when the slot is in use (55006), lost or gone; ConnectionLost."""
        login = tenants.replication_login(_SETTINGS)
        channel = await Channel.connect(tenants.address, login, max_message_bytes=MAX_MESSAGE_BYTES)
        try:
            reader, writer = await channel.copy_both(
                f"START_REPLICATION SLOT {slot} LOGICAL 0/0"
                f" (proto_version '4', publication_names '{publication.PUBLICATION}', messages 'true')"
            )
        except BaseException:
            channel.close()
            raise
        return cls(channel, reader, writer.write)

    async def read(self) -> list[Frame]:
        """The next frames, maybe none yet. Once there are no more: SqlError when the walsender gives up;
        ConnectionLost; ProtocolError."""
        if self._ended:
            raise self._ended
        try:
            data = await self._reader.read(READ_BYTES)
            found = self._frames.feed(data)
        except (OSError, wire.WireError) as why:
            raise ConnectionLost(f"the replication connection ended: {why}") from why
        if not data:
            raise ConnectionLost("the walsender closed the connection")
        for number, frame in enumerate(found):
            if isinstance(frame, wire.Message) and frame.type in (b"E", b"c"):
                failed = frame.type == b"E"
                self._ended = (
                    SqlError(wire.fields(frame.body)) if failed else ConnectionLost("the walsender ended the stream")
                )
                return found[:number]  # they came before the end, and may be whole transactions
        return found

    def confirm(self, lsn: int) -> None:
        """Everything before `lsn` is stored; the server may forget it."""
        now_us = int((time.time() - _EPOCH_S) * 1e6)
        self._write(wire.copy_data(_STATUS.pack(b"r", lsn, lsn, lsn, now_us, 0)))

    async def close(self) -> None:
        """At once, or after CLOSE_S when nobody answers any more."""
        self._channel.close()
        await self._channel.wait_closed(CLOSE_S)


_STATUS: Final = struct.Struct(">cQQQqB")
