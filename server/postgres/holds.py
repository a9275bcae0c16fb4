"""Projects that are held: kept out of their database until what they have written is published.

    free ── hold: CONNECTION LIMIT 0 and a row, sessions ended ──▶ held ── release: the limit again, no row ──▶ free

`atlas.cdc_held` is the truth, in one transaction with the limit, so that whoever relays next knows whom to let in
again. A role may not change its own limit, but its own password: an open transaction that did has the role's row, and
is ended for it. Reads are refused with the writes: nothing short of it binds a role that owns its tables.
"""

from dataclasses import dataclass
from typing import Final

from psycopg import AsyncConnection, sql
from psycopg.errors import InternalError_, LockNotAvailable, UndefinedObject

from server.log import logger

log = logger("cdc")

CONNECTION_LIMIT: Final = 20
"""Of a role that is not held."""

MAKE: Final = (
    "CREATE TABLE IF NOT EXISTS atlas.cdc_held"
    " (role text PRIMARY KEY, slot text NOT NULL, until pg_lsn NOT NULL, since timestamptz NOT NULL DEFAULT now())"
)

TRIES: Final = 10
LOCK_TIMEOUT_MS: Final = 50
"""For the role's row, which a session of it that was told to end may still have."""

REFUSED: Final = "53300"
ENDED: Final = "57P01"
"""SQLSTATEs of a login beyond the limit, and of a session that was ended."""


@dataclass(frozen=True, slots=True)
class Hold:
    role: str
    slot: str
    until: str
    """Once everything before this LSN of the slot is published, it is over."""


async def held(admin: AsyncConnection) -> list[Hold]:
    """All of them; none where nothing was ever captured."""
    if not await _made(admin):
        return []
    cursor = await admin.execute("SELECT role, slot, until::text FROM atlas.cdc_held ORDER BY role")
    return [Hold(*row) for row in await cursor.fetchall()]


async def is_held(admin: AsyncConnection, role: str) -> bool:
    if not await _made(admin):
        return False
    cursor = await admin.execute("SELECT FROM atlas.cdc_held WHERE role = %s", [role])
    return bool(cursor.rowcount)


async def hold(admin: AsyncConnection, found: Hold) -> bool:
    """False, and nothing is changed, when the role is gone, or could not be had in some tries."""
    for _ in range(TRIES):
        try:
            async with admin.transaction():
                await _wait_briefly(admin)
                await _limit(admin, found.role, 0)
                await admin.execute(
                    "INSERT INTO atlas.cdc_held VALUES (%s, %s, %s) ON CONFLICT (role)"
                    " DO UPDATE SET slot = excluded.slot, until = excluded.until",
                    [found.role, found.slot, found.until],
                )
            taken = True
        except (LockNotAvailable, InternalError_):  # it, or another process, changes the role at this moment
            taken = False
        except UndefinedObject:
            return False
        await _end_sessions(admin, [found.role])
        if taken:
            return True
    return False


async def enforce(admin: AsyncConnection) -> None:
    """End the sessions that held roles have nevertheless, begun while they were being held; and close again what
    another process opened, which had looked before."""
    cursor = await admin.execute(
        "SELECT role, slot, until::text FROM atlas.cdc_held JOIN pg_roles ON rolname = role"
        " WHERE rolconnlimit <> 0 OR EXISTS (SELECT FROM pg_stat_activity WHERE usename = role)"
    )
    for row in await cursor.fetchall():
        await hold(admin, Hold(*row))


async def release(admin: AsyncConnection, role: str) -> bool:
    """It may log in again; also true of a role that is gone. False, and nothing is changed, while another process
    changes the role."""
    try:
        async with admin.transaction():
            await _wait_briefly(admin)
            await admin.execute("DELETE FROM atlas.cdc_held WHERE role = %s", [role])
            await _limit(admin, role, CONNECTION_LIMIT)
    except (LockNotAvailable, InternalError_):
        return False
    except UndefinedObject:
        await forget(admin, role)
    return True


async def forget(admin: AsyncConnection, role: str) -> None:
    """Of a role that is no more."""
    if await _made(admin):
        await admin.execute("DELETE FROM atlas.cdc_held WHERE role = %s", [role])


async def _made(admin: AsyncConnection) -> bool:
    cursor = await admin.execute("SELECT to_regclass('atlas.cdc_held') IS NOT NULL")
    return await cursor.fetchone() == (True,)


async def _wait_briefly(admin: AsyncConnection) -> None:
    await admin.execute(sql.SQL("SET LOCAL lock_timeout = {}").format(sql.Literal(LOCK_TIMEOUT_MS)))


async def _limit(admin: AsyncConnection, role: str, limit: int) -> None:
    await admin.execute(sql.SQL("ALTER ROLE {} CONNECTION LIMIT {}").format(sql.Identifier(role), sql.Literal(limit)))


async def _end_sessions(admin: AsyncConnection, roles: list[str]) -> None:
    await admin.execute("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE usename = ANY (%s)", [roles])
