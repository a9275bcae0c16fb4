"""Messages of the stream that are no events: kept for operators, with the reason, so that they block nothing."""

from collections.abc import Sequence
from typing import Final

from server.dispatch.consumer import Message
from server.fields import storable
from server.log import logger
from server.postgres.control import Connection

log = logger("dispatch")

KEPT_BYTES: Final = 64 * 1024
MAX_REASON_CHARS: Final = 1_000


async def park(conn: Connection, strange: Sequence[tuple[Message, str]]) -> None:
    """Store them, each with why it is no event, as of when it came: one that comes again is there already."""
    async with conn.pipeline():
        for message, reason in strange:
            await conn.execute(
                "INSERT INTO parked_messages (sequence, subject, reason, body, body_bytes, parked_at)"
                " VALUES (%s, %s, %s, %s, %s, %s) ON CONFLICT DO NOTHING",
                [
                    message.sequence,
                    storable(message.subject),
                    storable(reason[:MAX_REASON_CHARS]),
                    message.body[:KEPT_BYTES],
                    len(message.body),
                    message.stored_at,
                ],
            )
    first, why = strange[0]
    log.warning(
        "dispatch.parked",
        f"{len(strange)} messages of the stream are no events and are parked; the first: {why}",
        sequence=first.sequence,
        parked=len(strange),
    )
