"""What the ledger forgets, and when, on a real Postgres."""

from datetime import datetime, timedelta
from typing import Any
from uuid import uuid4

import pytest

from server.dispatch.parked_messages import ParkedMessage, ParkedMessages
from server.dispatch.retention import MARGIN, PARKED_KEEP, LedgerRetention
from server.errors import InvalidArgument
from server.postgres.control import Pool
from tests.fix_functions import add_project
from tests.fix_ledger import NOW, count, put_delivery, put_parked

KEEP = timedelta(hours=72) + MARGIN
KEEP_DEAD = timedelta(days=30)


class At:
    def now(self) -> datetime:
        return NOW

    def monotonic_s(self) -> float:
        return 0.0


@pytest.fixture
def retention(pool: Pool) -> LedgerRetention:
    return LedgerRetention(pool, events_keep_hours=72, dead_letters_keep_days=30, clock=At(), batch=3, parked_most=8)


def aged(age: timedelta, **columns: Any) -> dict[str, Any]:
    """Columns of a delivery that was finished so long ago."""
    return {"finished_at": NOW - age, "created_at": NOW - age, **columns}


SECOND = timedelta(seconds=1)


@pytest.mark.parametrize(
    ("state", "keep"),
    [("done", KEEP), ("skipped", KEEP), ("cancelled", KEEP), ("dead", KEEP_DEAD)],
)
async def test_each_state_has_its_time(
    retention: LedgerRetention, pool: Pool, project_id: str, state: str, keep: timedelta
) -> None:
    trigger_id = str(uuid4())
    for _ in range(7):
        await put_delivery(pool, project_id, trigger_id, state=state, **aged(keep + SECOND))
    kept = await put_delivery(pool, project_id, trigger_id, state=state, **aged(keep - SECOND))
    assert await retention.sweep() == 7
    assert await count(pool, "deliveries", f"id = '{kept}'") == await count(pool, "deliveries") == 1
    assert await count(pool, "delivered_events") == 1
    assert await retention.sweep() == 0


@pytest.mark.parametrize("state", ["queued", "running", "held"])
async def test_what_is_not_finished_is_kept(
    retention: LedgerRetention, pool: Pool, project_id: str, state: str
) -> None:
    await put_delivery(pool, project_id, str(uuid4()), state=state, created_at=NOW - timedelta(days=365))
    assert await retention.sweep() == 0
    assert await count(pool, "delivered_events") == 1


async def test_dead_letters_are_never_forgotten_before_the_stream_drops_their_events(
    pool: Pool, project_id: str
) -> None:
    retention = LedgerRetention(pool, events_keep_hours=240, dead_letters_keep_days=1, clock=At())
    await put_delivery(pool, project_id, str(uuid4()), **aged(timedelta(days=9)))
    assert await retention.sweep() == 0


async def test_an_event_is_kept_as_long_as_one_of_its_deliveries(
    retention: LedgerRetention, pool: Pool, project_id: str
) -> None:
    await put_delivery(pool, project_id, str(uuid4()), event_id="e", state="done", **aged(KEEP + SECOND))
    await put_delivery(pool, project_id, str(uuid4()), event_id="e", state="dead", **aged(KEEP + SECOND))
    assert await retention.sweep() == 1
    assert await count(pool, "delivered_events") == 1


async def test_events_that_nobody_released_are_found(retention: LedgerRetention, pool: Pool, project_id: str) -> None:
    for number in range(7):  # as two deletions at once may leave them
        old = aged(KEEP + timedelta(minutes=number))
        await put_delivery(pool, project_id, str(uuid4()), event_id=f"e{number}", state="dead", **old)
    await put_delivery(pool, project_id, str(uuid4()), event_id="new", **aged(KEEP - SECOND))
    async with pool.connection() as conn:
        await conn.execute("DELETE FROM deliveries WHERE event_id NOT IN ('e0', 'e3')")
    for _ in range(3):
        await retention.sweep()
    assert await count(pool, "delivered_events", "event_id IN ('e0', 'e3', 'new')") == 3
    assert await count(pool, "delivered_events") == 3


async def test_parked_messages_have_their_time_and_their_number(retention: LedgerRetention, pool: Pool) -> None:
    for number in range(4):
        await put_parked(pool, number, b"x", parked_at=NOW - PARKED_KEEP - SECOND)
    for number in range(12):
        await put_parked(pool, 100 + number, b"x", parked_at=NOW - timedelta(minutes=number))
    assert await retention.sweep() == 8
    assert await count(pool, "parked_messages", "sequence BETWEEN 100 AND 107") == 8


async def test_nothing_of_a_deleted_project_is_left(retention: LedgerRetention, pool: Pool, project_id: str) -> None:
    other = await add_project(pool)
    for of in [project_id] * 8 + [other]:
        await put_delivery(pool, of, str(uuid4()), state="queued")
    for _ in range(2):
        await retention.remove_project(project_id)
        for table in ("deliveries", "delivered_events"):
            assert await count(pool, table, f"project_id = '{other}'") == await count(pool, table) == 1


async def test_parked_messages_are_listed_newest_first(pool: Pool) -> None:
    for number in range(5):
        await put_parked(pool, 2**62 + number, bytes([0xFF, number]), parked_at=NOW)
    await put_parked(pool, 1, "ümlaut".encode()[:1], body_bytes=9, parked_at=NOW + SECOND)
    await put_parked(pool, 2, "aü".encode(), parked_at=NOW + 2 * SECOND)
    messages = ParkedMessages(pool)
    seen: list[ParkedMessage] = []
    token = ""
    while token or not seen:
        page = await messages.list(2, token)
        seen += page.items
        token = page.next_page_token
    assert [item.sequence for item in seen] == [2, 1, *(2**62 + number for number in range(4, -1, -1))]
    assert [item.text for item in seen] == ["aü", "", *[None] * 5]
    with pytest.raises(InvalidArgument):
        await messages.list(201)
