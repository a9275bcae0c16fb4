"""Schema of the control database: numbered SQL files, applied once each, in order, in a transaction of their own.

Any number of processes may migrate at the same time: one works, the others wait and find it done. A database that
knows a migration this program lacks, or applied other text under the same name, is refused and left alone.
"""

import hashlib
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import psycopg
from psycopg import AsyncConnection
from psycopg.pq import TransactionStatus

MIGRATIONS: Final = Path(__file__).parent / "migrations"

_NAME: Final = re.compile(r"(\d{4})_[a-z0-9_]+\.sql")
_LOCK: Final = 0x61746C61735F6D67  # "atlas_mg": the advisory lock of whoever migrates
_LOCK_TIMEOUT: Final = "120s"


class MigrationError(Exception):
    """The database and the migrations of this program do not fit together; nothing was changed."""


@dataclass(frozen=True, slots=True)
class Migration:
    name: str  # the file's name
    sql: str

    @property
    def sha256(self) -> str:
        return hashlib.sha256(self.sql.encode()).hexdigest()


async def migrate(url: str, directory: Path = MIGRATIONS) -> list[str]:
    """Apply what is missing; the names of what was applied, in order.

    MigrationError when the database is newer than this program or was migrated with other texts.
    """
    known = load(directory)
    async with await AsyncConnection.connect(url, autocommit=True, application_name="atlas-migrate") as conn:
        await conn.execute("SELECT set_config('lock_timeout', %s, false)", [_LOCK_TIMEOUT])
        await conn.execute("SELECT pg_advisory_lock(%s)", [_LOCK])
        await conn.execute(
            "CREATE TABLE IF NOT EXISTS migrations"
            " (name text PRIMARY KEY, sha256 text NOT NULL, applied_at timestamptz NOT NULL DEFAULT now())"
        )
        cursor = await conn.execute("SELECT name, sha256 FROM migrations ORDER BY name")
        missing = pending(known, dict(await cursor.fetchall()))
        for migration in missing:
            await _apply(conn, migration)
    return [migration.name for migration in missing]


def load(directory: Path) -> list[Migration]:
    """The migrations of a directory in order. MigrationError for a misnamed file, a gap or a number used twice."""
    migrations = [Migration(path.name, path.read_text()) for path in sorted(directory.glob("*.sql"))]
    for number, migration in enumerate(migrations, 1):
        if not (match := _NAME.fullmatch(migration.name)) or int(match[1]) != number:
            raise MigrationError(f"{migration.name} should be {number:04}_some_name.sql: numbers count up from 0001")
    return migrations


def pending(known: list[Migration], applied: dict[str, str]) -> list[Migration]:
    """What is to be applied, given the SHA-256 of what was, by name. MigrationError when the two do not fit."""
    names = [migration.name for migration in known]
    if unknown := sorted(set(applied) - set(names)):
        raise MigrationError(f"The database has the migration {unknown[0]}, which this version of the program lacks")
    if out_of_order := [name for name in names[: len(applied)] if name not in applied]:
        raise MigrationError(f"The database lacks {out_of_order[0]} but has a later migration")
    for migration in known[: len(applied)]:
        if applied[migration.name] != migration.sha256:
            raise MigrationError(
                f"{migration.name} was edited after it was applied to this database; add a new migration instead"
            )
    return known[len(applied) :]


async def _apply(conn: AsyncConnection, migration: Migration) -> None:
    async with conn.transaction():
        try:
            await conn.execute(migration.sql.encode())
        except psycopg.Error as why:
            raise MigrationError(f"{migration.name} failed: {why}") from why
        if conn.info.transaction_status is not TransactionStatus.INTRANS:
            raise MigrationError(f"{migration.name} ends the transaction it runs in; leave COMMIT and ROLLBACK out")
        await conn.execute("INSERT INTO migrations (name, sha256) VALUES (%s, %s)", [migration.name, migration.sha256])
