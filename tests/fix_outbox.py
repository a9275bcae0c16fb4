"""Events of the outbox, and who publishes them instead of NATS."""

from collections.abc import Awaitable, Callable, Sequence
from datetime import UTC, datetime
from uuid import uuid4

import pytest

from server.events.envelope import Event
from server.events.json_text import read
from server.events.outbox import Outbox
from server.postgres.changes import Changes
from server.postgres.control import Pool, transaction


class Told:
    """Publishes into a list; `before` runs first, and may fail or wait."""

    def __init__(self) -> None:
        self.events: list[Event] = []
        self.before: Callable[[Sequence[Event]], Awaitable[None]] | None = None

    async def publish_in_order(self, events: Sequence[Event]) -> None:
        if self.before is not None:
            await self.before(events)
        self.events += events

    @property
    def ids(self) -> list[str]:
        return [event.id for event in self.events]


def an_event(project_id: str, event_id: str = "", data: bytes = b"1") -> Event:
    return Event(
        id=event_id or str(uuid4()),
        type="storage.upload",
        project_id=project_id,
        time=datetime.now(UTC),
        source="test",
        data=read(data),
    )


async def add(pool: Pool, changes: Changes, *events: Event) -> None:
    async with transaction(pool) as conn:
        await Outbox(changes).add(conn, events)


async def left(pool: Pool) -> int:
    """How many wait."""
    async with transaction(pool) as conn:
        ((count,),) = await (await conn.execute("SELECT count(*) FROM event_outbox")).fetchall()
    return int(count)


@pytest.fixture
def told() -> Told:
    return Told()
