"""Arrays that Postgres reads are the values that were written."""

from server.postgres.arrays import texts, words
from server.postgres.control import Pool, transaction
from server.uuids import random_uuid

STRINGS = [
    "",
    "null",
    "NULL",
    '"',
    "\\",
    '\\"',
    "{}",
    "{,}",
    "a,b",
    " a ",
    "\n\t\r\x01\x7f",
    "é€\U0001f600",
    "'; --",
    None,
]


async def test_what_is_read_is_what_was_written(pool: Pool) -> None:
    ids = [random_uuid(), None]
    numbers = [0, -1, 2**62, None]
    async with transaction(pool) as conn:
        cursor = await conn.cursor(binary=True).execute(
            "SELECT %t::text[], %t::uuid[]::text[], %t::bigint[], %t::float8[]",
            [texts(STRINGS), words(ids), words(numbers), words([0.1, 1e300, None])],
        )
        assert await cursor.fetchone() == (STRINGS, ids, numbers, [0.1, 1e300, None])
