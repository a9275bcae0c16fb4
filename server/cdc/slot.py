"""The replication slot: made, found again, replaced when it is lost, and what stands in `atlas.cdc` about it.

    none ─▶ made ─▶ in use ─── lost or gone ──▶ another made, gap noted ─▶ gap told ─▶ in use
                                             each │ may be the place of a crash

The slot keeps the write-ahead log from which changes are yet to be read. Postgres gives it up when that grows beyond
max_slot_wal_keep_size, so that tenants can write; what is lost then is told as `cdc.gap` events, never passed over.
"""

import secrets
from dataclasses import asdict, dataclass
from typing import Final

from psycopg import AsyncConnection
from psycopg.errors import ObjectInUse, ObjectNotInPrerequisiteState, UndefinedObject
from psycopg.types.json import Jsonb

from server.cdc.position import Position, lsn_text, parse_lsn, parse_position
from server.log import logger
from server.postgres import publication

log = logger("cdc")

LOCK_KEY: Final = 0x61746364
"""Of the advisory lock under which one process at a time makes and removes slots ("atcd")."""

FAILOVER_VERSION: Final = 170_000
"""From which on a slot can follow the server to its standby."""

IN_USE: Final = "55006"
"""SQLSTATE when another reader has the slot."""

PINNING_S: Final = 5
"""How old a transaction is at least that is ended."""

STALE_PART: Final = 8

STATES: Final = ("reserved", "extended", "unreserved", "lost")


@dataclass(frozen=True, slots=True)
class Gap:
    """Changes that are in no event, of one project or of all. `position`: of its first event, after what was lost."""

    reason: str
    since: str | None
    until: str
    position: str
    project_id: str | None = None


@dataclass(frozen=True, slots=True)
class Standing:
    active: bool
    state: str
    lag_bytes: int
    held_bytes: int
    safe_bytes: int | None
    """That can be written before Postgres may give the slot up; None: it never does."""
    confirmed_lsn: int
    flushed_lsn: int
    """Up to where the log can be read."""

    @property
    def allowed_bytes(self) -> int | None:
        """That the slot may hold; None: any number."""
        return None if self.safe_bytes is None else self.held_bytes + self.safe_bytes

    @property
    def pinned(self) -> bool:
        """Whether an open transaction holds half of what the slot may hold: nothing before its begin can go."""
        return self.safe_bytes is not None and self.held_bytes - self.lag_bytes > self.safe_bytes

    @property
    def stale(self) -> bool:
        """Whether more than a part of what the slot may hold is confirmed, and only held until the server next notes
        which transactions are open: every 15 s by itself, in which a quick tenant fills it."""
        allowed = self.allowed_bytes
        return allowed is not None and self.held_bytes - self.lag_bytes > allowed / STALE_PART


async def claim(admin: AsyncConnection) -> str:
    """The name of this database's slot, made or replaced if need be; others of ours that nobody uses are removed.

    Making one waits until every transaction has ended that writes now.
    """
    await admin.execute("SELECT pg_advisory_lock(%s)", [LOCK_KEY])
    try:
        noted, gap = await _noted(admin)
        found = await _found(admin)
        for name in found:
            if name != noted:
                await _remove(admin, name)
        if noted is not None and noted in found and found[noted].lost is None:
            return noted
        return await _replace(admin, noted, found.get(noted or ""), gap)
    finally:
        await admin.execute("SELECT pg_advisory_unlock(%s)", [LOCK_KEY])


async def noted_gap(admin: AsyncConnection) -> Gap | None:
    return (await _noted(admin))[1]


async def note_gap(admin: AsyncConnection, gap: Gap) -> None:
    await admin.execute("UPDATE atlas.cdc SET gap = %s", [Jsonb(asdict(gap))])


async def gap_told(admin: AsyncConnection) -> None:
    await admin.execute("UPDATE atlas.cdc SET gap = NULL")


async def take_gap_back(admin: AsyncConnection, gap: Gap, before: Gap | None) -> None:
    """As if it was not noted over `before`; nothing when it was told meanwhile."""
    noted = Jsonb(asdict(before)) if before else None
    await admin.execute("UPDATE atlas.cdc SET gap = %s WHERE gap = %s", [noted, Jsonb(asdict(gap))])


async def skip(admin: AsyncConnection, name: str, lsn: int) -> bool:
    """What was committed before `lsn` is not decoded again. False, and nothing is changed, when another reads from the
    slot, or it is lost or gone."""
    try:
        await admin.execute("SELECT pg_replication_slot_advance(%s, %s)", [name, lsn_text(lsn)])
    except (ObjectInUse, ObjectNotInPrerequisiteState, UndefinedObject):
        return False
    return True


async def confirmed(admin: AsyncConnection, name: str) -> tuple[int, int]:
    """Where the slot is, and where the server writes."""
    cursor = await admin.execute(
        "SELECT confirmed_flush_lsn::text, pg_current_wal_lsn()::text FROM pg_replication_slots WHERE slot_name = %s",
        [name],
    )
    row = await cursor.fetchone()
    return (parse_lsn(row[0]), parse_lsn(row[1])) if row else (0, 0)


async def standing(admin: AsyncConnection, name: str) -> Standing | None:
    """None when there is no such slot."""
    cursor = await admin.execute(
        "SELECT active, coalesce(wal_status, 'lost'),"
        " coalesce(pg_wal_lsn_diff(pg_current_wal_lsn(), confirmed_flush_lsn), 0)::bigint,"
        " coalesce(pg_wal_lsn_diff(pg_current_wal_lsn(), restart_lsn), 0)::bigint, safe_wal_size,"
        " coalesce(confirmed_flush_lsn, '0/0')::text, pg_current_wal_flush_lsn()::text"
        " FROM pg_replication_slots WHERE slot_name = %s",
        [name],
    )
    row = await cursor.fetchone()
    if row is None:
        return None
    active, state, lag, held, safe, confirmed_lsn, flushed_lsn = row
    return Standing(active, state, lag, held, safe, parse_lsn(confirmed_lsn), parse_lsn(flushed_lsn))


async def note_running(admin: AsyncConnection) -> None:
    """Have the server note which transactions are open, so that the slot may let go of what is before them."""
    await admin.execute("SELECT pg_log_standby_snapshot()")


async def end_pinning(admin: AsyncConnection) -> None:
    """End the oldest transaction of a tenant that has written: the slot, and everybody's changes, matter more."""
    cursor = await admin.execute(
        "SELECT usename, pg_terminate_backend(pid) FROM ("
        " SELECT pid, usename FROM pg_stat_activity WHERE datname = current_database() AND usename ~ %s"
        " AND backend_xid IS NOT NULL AND xact_start < now() - make_interval(secs => %s) ORDER BY xact_start LIMIT 1)",
        [publication.SCHEMA_PATTERN, PINNING_S],
    )
    for role, _ in await cursor.fetchall():
        log.warning(
            "cdc.transaction_ended",
            f"A transaction of {role} was ended: a new replication slot waited for it, or it held back more than half "
            "of the write-ahead log that may be kept (max_slot_wal_keep_size)",
            role=role,
        )


async def projects(admin: AsyncConnection) -> list[str]:
    """Names of the schemas of all projects, new ones last."""
    cursor = await admin.execute(
        "SELECT nspname FROM pg_namespace WHERE nspname ~ %s ORDER BY oid", [publication.SCHEMA_PATTERN]
    )
    return [name for (name,) in await cursor.fetchall()]


async def base_types(admin: AsyncConnection, oids: list[int]) -> dict[int, int]:
    """The types under those of `oids` that are domains."""
    cursor = await admin.execute(
        "WITH RECURSIVE under AS ("
        " SELECT oid AS domain, typbasetype AS base FROM pg_type WHERE oid = ANY (%s) AND typbasetype <> 0"
        " UNION ALL SELECT domain, typbasetype FROM under JOIN pg_type ON oid = base WHERE typbasetype <> 0)"
        " SELECT domain, base FROM under WHERE base NOT IN (SELECT oid FROM pg_type WHERE typbasetype <> 0)",
        [oids],
    )
    return {int(domain): int(base) for domain, base in await cursor.fetchall()}


@dataclass(frozen=True, slots=True)
class _Found:
    confirmed: str | None
    lost: str | None
    """Why, when it is."""


async def _noted(admin: AsyncConnection) -> tuple[str | None, Gap | None]:
    cursor = await admin.execute("SELECT slot, gap FROM atlas.cdc")
    row = await cursor.fetchone()
    slot, gap = row if row else (None, None)
    return slot, Gap(**gap) if gap else None


async def _found(admin: AsyncConnection) -> dict[str, _Found]:
    reason = "invalidation_reason" if admin.info.server_version >= FAILOVER_VERSION else "NULL::text"
    cursor = await admin.execute(
        f"SELECT slot_name, confirmed_flush_lsn::text, wal_status, {reason} FROM pg_replication_slots"
        " WHERE database = current_database() AND starts_with(slot_name, %s) AND NOT temporary".encode(),
        [await _prefix(admin)],
    )
    return {
        name: _Found(confirmed, (why or "wal_removed") if why or state == "lost" else None)
        for name, confirmed, state, why in await cursor.fetchall()
    }


async def _prefix(admin: AsyncConnection) -> str:
    cursor = await admin.execute("SELECT oid FROM pg_database WHERE datname = current_database()")
    row = await cursor.fetchone()
    assert row
    return f"atlas_cdc_{row[0]}_"


async def _replace(admin: AsyncConnection, noted: str | None, found: _Found | None, gap: Gap | None) -> str:
    name = await _prefix(admin) + secrets.token_hex(4)
    failover = ", failover => true" if admin.info.server_version >= FAILOVER_VERSION else ""
    cursor = await admin.execute(
        f"SELECT lsn::text FROM pg_create_logical_replication_slot(%s, 'pgoutput'{failover})".encode(), [name]
    )
    row = await cursor.fetchone()
    assert row
    if noted is not None:
        gap = Gap(
            reason=found.lost or "slot_lost" if found else "slot_missing",
            since=gap.since if gap else found.confirmed if found else None,
            until=row[0],
            position=str(Position(name, 0, 0)),
        )
        log.error(
            "cdc.gap",
            f"The replication slot {noted} is lost ({gap.reason}): changes up to {gap.until} that were not published "
            "are in no event; every project is told with a cdc.gap event. Was no worker running, or is "
            "max_slot_wal_keep_size too small?",
            reason=gap.reason,
            since=gap.since,
            until=gap.until,
        )
    await admin.execute("UPDATE atlas.cdc SET slot = %s, gap = %s", [name, Jsonb(asdict(gap)) if gap else None])
    if noted is not None and found is not None:
        await _remove(admin, noted)
    return name


async def _remove(admin: AsyncConnection, name: str) -> None:
    try:
        await admin.execute("SELECT pg_drop_replication_slot(%s)", [name])
    except ObjectInUse:
        log.warning("cdc.stray_slot", f"The replication slot {name} is in use, though not by us")


def position_of(gap: Gap) -> Position:
    found = parse_position(gap.position)
    assert found is not None
    return found
