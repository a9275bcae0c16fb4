"""Migrations on a real Postgres: once, in order, by many at a time, and never over a database that does not fit."""

import asyncio
from pathlib import Path

import psycopg
import pytest

from server.postgres.migrate import MIGRATIONS, MigrationError, load, migrate

ONE = "CREATE TABLE one (id int); INSERT INTO one VALUES (1);"
TWO = "ALTER TABLE one ADD COLUMN two text;"


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    (tmp_path / "0001_one.sql").write_text(ONE)
    (tmp_path / "0002_two.sql").write_text(TWO)
    return tmp_path


def rows(url: str, query: str) -> list[tuple[object, ...]]:
    with psycopg.connect(url) as conn:
        return conn.execute(query.encode()).fetchall()


async def test_ours_apply_once(fresh_database: str) -> None:
    names = [path.name for path in sorted(MIGRATIONS.glob("*.sql"))]
    assert await migrate(fresh_database) == names
    assert await migrate(fresh_database) == []


async def test_many_at_a_time_apply_each_once(fresh_database: str, directory: Path) -> None:
    applied = await asyncio.gather(*(migrate(fresh_database, directory) for _ in range(8)))
    assert sorted(applied, key=len)[-1] == ["0001_one.sql", "0002_two.sql"]
    assert sum(len(names) for names in applied) == 2
    assert rows(fresh_database, "SELECT count(*) FROM one") == [(1,)]


async def test_only_what_is_missing_is_applied(fresh_database: str, directory: Path) -> None:
    await migrate(fresh_database, directory)
    (directory / "0003_three.sql").write_text("CREATE TABLE three ();")
    assert await migrate(fresh_database, directory) == ["0003_three.sql"]


async def test_a_failing_migration_leaves_nothing_of_itself(fresh_database: str, directory: Path) -> None:
    (directory / "0002_two.sql").write_text("CREATE TABLE half (); SELECT 1/0;")
    with pytest.raises(MigrationError, match=r"0002_two.sql failed: division by zero"):
        await migrate(fresh_database, directory)
    assert rows(fresh_database, "SELECT to_regclass('one') IS NOT NULL, to_regclass('half')") == [(True, None)]
    (directory / "0002_two.sql").write_text(TWO)
    assert await migrate(fresh_database, directory) == ["0002_two.sql"]


async def test_a_newer_database_is_refused(fresh_database: str, directory: Path) -> None:
    await migrate(fresh_database, directory)
    (directory / "0002_two.sql").unlink()
    with pytest.raises(MigrationError, match=r"0002_two.sql, which this version of the program lacks"):
        await migrate(fresh_database, directory)


async def test_an_edited_migration_is_refused(fresh_database: str, directory: Path) -> None:
    await migrate(fresh_database, directory)
    (directory / "0001_one.sql").write_text(ONE + "-- a comment")
    (directory / "0003_three.sql").write_text("CREATE TABLE three ();")
    with pytest.raises(MigrationError, match=r"0001_one.sql was edited"):
        await migrate(fresh_database, directory)
    assert rows(fresh_database, "SELECT to_regclass('three')") == [(None,)]


async def test_a_migration_may_not_end_its_transaction(fresh_database: str, directory: Path) -> None:
    (directory / "0002_two.sql").write_text("CREATE TABLE half (); COMMIT;")
    with pytest.raises(MigrationError, match="ends the transaction"):
        await migrate(fresh_database, directory)


@pytest.mark.parametrize("name", ["0004_gap.sql", "0002_again.sql", "three.sql", "0003_Upper.sql"])
def test_misnumbered_files_are_refused(directory: Path, name: str) -> None:
    (directory / name).write_text("SELECT 1")
    with pytest.raises(MigrationError, match="numbers count up from 0001"):
        load(directory)
