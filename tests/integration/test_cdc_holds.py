"""Projects that are held: what they can still do, what they are told, and who lets them in again."""

import asyncio
from collections.abc import Callable

import pytest
from psycopg import AsyncConnection, OperationalError

from engines.contract import HostError
from server.cdc import slot, writers
from server.cdc.fairness import Fairness
from server.cdc.position import lsn_text
from server.cdc.relay import Relay
from server.cdc.slot import Standing
from server.host import database as database_module
from server.host.database import Database
from server.postgres import holds
from server.postgres.holds import CONNECTION_LIMIT, Hold
from server.postgres.tenants import Tenants, schema_of
from server.telemetry.metrics import Metrics
from tests.fix_cdc import run, streaming
from tests.fix_runs import eventually

NEVER = "FFFFFFF/0"


async def limit_of(admin: AsyncConnection, role: str) -> int:
    ((limit,),) = await (await admin.execute("SELECT rolconnlimit FROM pg_roles WHERE rolname = %s", [role])).fetchall()
    return int(limit)


async def hold(tenants: Tenants, project: str, *, slot_name: str = "s", until: str = NEVER) -> None:
    async with tenants.admin() as admin:
        assert await holds.hold(admin, Hold(schema_of(project), slot_name, until))


async def release(tenants: Tenants, project: str) -> None:
    async with tenants.admin() as admin:
        await holds.release(admin, schema_of(project))


async def test_its_functions_are_told_why_and_go_on_afterwards(
    tenants: Tenants, database: Database, project: str, shared_project: str
) -> None:
    await database.query(project, "CREATE TABLE t (id int)", (), timeout_ms=5_000)
    endless = "SELECT count(*) FROM generate_series(1, 1000000000000)"
    running = asyncio.create_task(database.query(project, endless, (), timeout_ms=30_000))
    async with tenants.admin() as admin:

        async def begun() -> bool:
            cursor = await admin.execute(
                "SELECT FROM pg_stat_activity WHERE usename = %s AND state = 'active'", [schema_of(project)]
            )
            return bool(cursor.rowcount)

        await eventually(begun)
    await hold(tenants, project)
    with pytest.raises(HostError) as ended:
        await running
    for _ in range(2):
        with pytest.raises(HostError) as refused:
            await database.query(project, "SELECT 1", (), timeout_ms=5_000)
        assert (refused.value.code, refused.value.message) == ("unavailable", database_module.HELD)
    assert (ended.value.code, ended.value.message) == ("unavailable", database_module.HELD)
    assert await database.query(shared_project, "SELECT 1 AS one", (), timeout_ms=5_000) == b'[{"one":1}]'
    await release(tenants, project)

    async def works() -> bytes | None:
        try:
            return await database.query(project, "SELECT 1 AS one", (), timeout_ms=5_000)
        except HostError:
            return None

    assert await eventually(works) == b'[{"one":1}]'


async def test_neither_provisioning_nor_a_new_password_opens_it(tenants: Tenants, project: str) -> None:
    await hold(tenants, project)
    await tenants.provision(project)
    await tenants.repair(project)
    async with tenants.admin() as admin:
        assert await limit_of(admin, schema_of(project)) == 0
    with pytest.raises(OperationalError, match="too many connections"):
        await AsyncConnection.connect(tenants.psql_url(project))
    await release(tenants, project)
    async with await AsyncConnection.connect(tenants.psql_url(project)), tenants.admin() as admin:
        assert await limit_of(admin, schema_of(project)) == CONNECTION_LIMIT


async def test_what_was_opened_meanwhile_is_closed_again(
    tenants: Tenants, project: str, person: AsyncConnection
) -> None:
    async with tenants.admin() as admin:
        await run(admin, f"INSERT INTO atlas.cdc_held VALUES ('{schema_of(project)}', 's', '{NEVER}')")
        await holds.enforce(admin)
        assert await limit_of(admin, schema_of(project)) == 0
        with pytest.raises(OperationalError):
            await eventually(lambda: run(person, "SELECT 1"))
        await holds.release(admin, schema_of(project))


async def test_a_tenant_cannot_keep_its_role_from_being_closed(tenants: Tenants, project: str) -> None:
    """Its open transaction has the row that the limit is in."""
    async with await AsyncConnection.connect(tenants.psql_url(project)) as stubborn:
        await run(stubborn, f"ALTER ROLE {schema_of(project)} PASSWORD 'mine'")
        await hold(tenants, project)
        with pytest.raises(OperationalError):
            await run(stubborn, "SELECT 1")
        await stubborn.close()
    await release(tenants, project)


async def test_a_project_that_is_dropped_is_held_no_more(tenants: Tenants, project: str) -> None:
    await hold(tenants, project)
    await tenants.drop(project)
    async with tenants.admin() as admin:
        assert not await holds.is_held(admin, schema_of(project))
        assert not await holds.hold(admin, Hold(schema_of(project), "s", NEVER))
        await holds.release(admin, schema_of(project))
    await tenants.provision(project)
    async with await AsyncConnection.connect(tenants.psql_url(project)):
        pass


async def test_a_relay_ends_the_holds_of_the_one_before_when_they_are_over(
    make_relay: Callable[..., Relay], tenants: Tenants, project: str, shared_project: str
) -> None:
    """One of a slot that is gone is over; one of this slot once what was written before is published."""
    first = make_relay()
    await first.start()
    await streaming(tenants)
    async with tenants.admin() as admin:
        name = await slot.claim(admin)
        await first.close()
        _, written = await slot.confirmed(admin, name)
        await hold(tenants, project, slot_name=name, until=lsn_text(written + 1024 * 1024))
        await hold(tenants, shared_project, slot_name="atlas_cdc_gone", until=NEVER)
        metrics = Metrics()
        await make_relay(metrics).start()

        async def one_left() -> bool:
            return [found.role for found in await holds.held(admin)] == [schema_of(project)]

        await eventually(one_left)
        assert await limit_of(admin, schema_of(shared_project)) == CONNECTION_LIMIT
        assert await limit_of(admin, schema_of(project)) == 0
        await run(admin, "SELECT pg_switch_wal()", "SELECT pg_log_standby_snapshot()")

        async def none_left() -> bool:
            return not await holds.held(admin)

        await eventually(none_left)
        assert await limit_of(admin, schema_of(project)) == CONNECTION_LIMIT


async def test_all_are_let_in_when_nothing_is_captured_any_more(tenants: Tenants, project: str) -> None:
    await hold(tenants, project)
    async with tenants.admin() as admin:
        await Fairness(Metrics()).release_all(admin)
        assert not await holds.held(admin)
    async with await AsyncConnection.connect(tenants.psql_url(project)):
        pass


async def test_a_server_whose_log_cannot_be_read_is_said_once(
    tenants: Tenants, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(writers, "EXTENSION", "atlas_none")
    fairness = Fairness(Metrics())
    async with tenants.admin() as admin:
        ((lsn,),) = await (await admin.execute("SELECT (pg_current_wal_flush_lsn() - '0/0')::bigint")).fetchall()
        standing = Standing(True, "reserved", 900, 900, 100, lsn - 900, lsn)
        for _ in range(3):
            await fairness.look(admin, "s", standing)
        await admin.execute("SELECT 1")
    assert len([record for record in caplog.records if "cannot be held" in record.getMessage()]) == 1


async def test_nobody_is_asked_about_when_the_database_is_away(project: str) -> None:
    away = Database(Tenants("postgresql://nobody@/x?host=/nowhere", secret=bytes(32)))
    with pytest.raises(HostError) as caught:
        await away.query(project, "SELECT 1", (), timeout_ms=5_000)
    assert "cannot be reached" in caught.value.message
    await away.close()
