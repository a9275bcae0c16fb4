"""Messages of the stream that are no events, for operators: what came, and why it was put aside."""

from dataclasses import dataclass
from datetime import datetime
from typing import Final
from uuid import UUID

from psycopg.rows import class_row

from server.paging import Page, Place, at, request
from server.postgres.control import Pool, transaction

_COLUMNS: Final = "sequence, subject, reason, body, body_bytes, parked_at"


@dataclass(frozen=True, slots=True, kw_only=True)
class ParkedMessage:
    """`body` is its beginning, `body_bytes` the length of the whole."""

    sequence: int
    subject: str
    reason: str
    body: bytes
    body_bytes: int
    parked_at: datetime

    @property
    def text(self) -> str | None:
        """The body when it is text, without a last character that was cut; else None."""
        try:
            return self.body.decode()
        except UnicodeDecodeError as why:
            cut = self.body_bytes > len(self.body) and why.reason == "unexpected end of data"
            return self.body[: why.start].decode() if cut else None


class ParkedMessages:
    def __init__(self, pool: Pool) -> None:
        self._pool = pool

    async def list(self, page_size: int = 0, page_token: str = "") -> Page[ParkedMessage]:
        """Newest first."""
        asked = request("parked messages", page_size, page_token)
        async with transaction(self._pool) as conn:
            cursor = await conn.cursor(row_factory=class_row(ParkedMessage), binary=True).execute(
                f"SELECT {_COLUMNS} FROM parked_messages WHERE (parked_at, sequence) < (%s, %s)"
                " ORDER BY parked_at DESC, sequence DESC LIMIT %s".encode(),
                [asked.after.moment, min(UUID(asked.after.id).int, 2**63 - 1), asked.size + 1],
            )
            found = await cursor.fetchall()
        return asked.page(found, _place, weigh=lambda message: len(message.body))


def _place(message: ParkedMessage) -> Place:
    return at(message.parked_at, str(UUID(int=message.sequence)))
