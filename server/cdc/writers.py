"""Who wrote a stretch of the write-ahead log, told from samples of the log itself (`pg_walinspect`, of contrib).

A record names the file that it changes and its transaction, not the session. Whose relation the file is tells who
wrote it, whatever came of the transaction, and of changes that are no rows: indexes, VACUUM FULL, tables that are not
published. A file that is nobody's (the catalog's, or of a relation that was rolled back, dropped or rewritten) is
told by its transaction, if a session of a project had it open at one of the glances that are taken meanwhile.

Statistics would not do: those of a backend are gone with it, so that a session for each transaction leaves none.
"""

import secrets
from collections.abc import Mapping, Sequence
from typing import Final

from psycopg import AsyncConnection, sql
from psycopg.errors import InternalError_

from server.cdc.backlog import Stretch
from server.cdc.position import lsn_text
from server.postgres import publication

SAMPLE_BYTES: Final = 1024 * 1024
"""Of log, read in one piece: well above the largest common record, 256 KiB of an index that is built."""

SAMPLES: Final = 2
"""Of a stretch since the last look. One takes about 25 ms when its records are small."""

FIRST_SAMPLES: Final = 16
"""Of all that waits, at the first look."""

MOST_OPEN: Final = 10_000
"""Transactions that are looked at; each savepoint is one."""

NO_XID: Final = "0"
"""Of what the server does on its own account."""

_OPEN: Final = """
SELECT transactionid::text, usename FROM pg_locks JOIN pg_stat_activity USING (pid)
WHERE locktype = 'transactionid' AND mode = 'ExclusiveLock' AND granted AND usename ~ %s LIMIT %s
"""

_WRITTEN: Final = """
WITH written AS MATERIALIZED (
  SELECT reldatabase, reltablespace, relfilenode, xid::text AS xid, sum(record_length) AS bytes
  FROM unnest(%(since)s::pg_lsn[], %(until)s::pg_lsn[]) AS sample (since, until),
       LATERAL {schema}.pg_get_wal_block_info(since, until, false)
  WHERE block_id = 0 GROUP BY 1, 2, 3, 4
), here AS (
  SELECT oid FROM pg_database WHERE datname = current_database()
), files AS (
  SELECT reldatabase, file.reltablespace, file.relfilenode,
         CASE WHEN rolname ~ %(pattern)s THEN rolname WHEN nspname ~ %(pattern)s THEN nspname END AS role
  FROM (SELECT DISTINCT reldatabase, reltablespace, relfilenode FROM written JOIN here ON reldatabase = oid) AS file
  JOIN pg_class AS c ON c.oid = pg_filenode_relation(file.reltablespace, file.relfilenode)
  JOIN pg_roles AS r ON r.oid = relowner JOIN pg_namespace AS n ON n.oid = relnamespace
)
SELECT role, CASE WHEN role IS NULL AND reldatabase IN (0, (SELECT oid FROM here)) THEN xid END, sum(bytes)::bigint
FROM written LEFT JOIN files USING (reldatabase, reltablespace, relfilenode) GROUP BY 1, 2
"""
"""Bytes by role; by transaction where the role is not known; with neither those of other databases."""

EXTENSION: Final = "pg_walinspect"

Rows = Sequence[tuple[str | None, str | None, int]]


class Writers:
    """For one relay, which reads one stretch after the other."""

    def __init__(self) -> None:
        self._seen: dict[str, str] = {}
        self._schema: str | None = None

    async def glance(self, admin: AsyncConnection) -> None:
        """Note who has which transactions open. psycopg.Error."""
        if len(self._seen) > MOST_OPEN:
            self._seen.clear()
        self._seen |= await _open(admin)

    async def read(self, admin: AsyncConnection, since: int, until: int, *, first: bool) -> Stretch | None:
        """The stretch, all of which is on disk; None while no record is whole in a sample. psycopg.Error, also where
        the extension is missing."""
        self._schema = schema = self._schema or await _extension(admin)
        await self.glance(admin)
        samples = sampled(since, until, FIRST_SAMPLES if first else SAMPLES)
        values = {
            "since": [lsn_text(start) for start, _ in samples],
            "until": [lsn_text(end) for _, end in samples],
            "pattern": publication.SCHEMA_PATTERN,
        }
        try:
            cursor = await admin.execute(sql.SQL(_WRITTEN).format(schema=sql.Identifier(schema)), values)
        except InternalError_:  # could not find a valid record
            return None
        seen, self._seen = self._seen, await _open(admin)
        return told(since, until, await cursor.fetchall(), {**seen, **self._seen})


def sampled(since: int, until: int, count: int) -> list[tuple[int, int]]:
    """The whole stretch if it is short, else a piece at a random place of each of `count` equal parts."""
    if until - since <= count * SAMPLE_BYTES:
        return [(since, until)]
    part = (until - since) // count
    starts = [since + number * part + secrets.randbelow(part - SAMPLE_BYTES + 1) for number in range(count)]
    return [(start, start + SAMPLE_BYTES) for start in starts]


def told(since: int, until: int, rows: Rows, open_by: Mapping[str, str]) -> Stretch:
    """From rows of `_WRITTEN`, and the roles of transactions that were seen open."""
    by_role: dict[str, float] = {}
    by_session: dict[str, float] = {}
    unknown = 0.0
    total = sum(size for _, _, size in rows)
    for role, xid, size in rows:
        scaled = size * (until - since) / total
        if role is not None:
            by_role[role] = by_role.get(role, 0.0) + scaled
        elif xid is not None and xid in open_by:
            by_session[open_by[xid]] = by_session.get(open_by[xid], 0.0) + scaled
        elif xid is not None and xid != NO_XID:
            unknown += scaled
    return Stretch(since, until, by_role, by_session, unknown)


async def _open(admin: AsyncConnection) -> dict[str, str]:
    """Transactions with their roles."""
    cursor = await admin.execute(_OPEN, [publication.SCHEMA_PATTERN, MOST_OPEN])
    return dict(await cursor.fetchall())


async def _extension(admin: AsyncConnection) -> str:
    """The schema it is in; ours, where nobody had made it."""
    await admin.execute(f"CREATE EXTENSION IF NOT EXISTS {EXTENSION} SCHEMA atlas".encode())
    cursor = await admin.execute(
        "SELECT nspname FROM pg_extension JOIN pg_namespace AS n ON n.oid = extnamespace WHERE extname = %s",
        [EXTENSION],
    )
    row = await cursor.fetchone()
    assert row
    return str(row[0])
