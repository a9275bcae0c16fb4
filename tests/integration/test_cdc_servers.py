"""What a server of tenants must allow for changes to be captured, and that it stops though a relay listens."""

import asyncio
from collections.abc import Callable
from uuid import uuid4

import pytest
from psycopg import AsyncConnection

from server.cdc.relay import Relay
from server.events.bus import EventBus
from server.postgres import publication
from server.postgres.tenants import Tenants
from server.telemetry.metrics import Metrics
from tests.fault.cdc_relay import SECRET
from tests.fix_cdc import SETTINGS, OwnPostgres, run, streaming
from tests.fix_runs import eventually


class TestServers:
    async def test_one_without_logical_decoding_is_told_so_and_serves_all_else(
        self, make_postgres: Callable[..., OwnPostgres], cdc_bus: EventBus, caplog: pytest.LogCaptureFixture
    ) -> None:
        tenants = Tenants(make_postgres(wal_level="replica").url, secret=SECRET, other_databases=())
        await tenants.start()
        assert "wal_level of the tenants' Postgres is replica; set it to logical" in caplog.text
        project = str(uuid4())
        await tenants.provision(project)
        relay = Relay(tenants, cdc_bus, SETTINGS, Metrics())
        caplog.clear()
        await relay.start()

        async def told() -> bool:
            return "There are no events of tables: wal_level" in caplog.text

        await eventually(told)
        await relay.close()

    async def test_one_with_prepared_transactions_is_told_so(self, make_postgres: Callable[..., OwnPostgres]) -> None:
        server = make_postgres(max_prepared_transactions="3")
        async with await AsyncConnection.connect(server.url, autocommit=True) as admin:
            with pytest.raises(publication.NotPublishable, match="is 3; set it to 0 and restart"):
                await publication.require(admin)

    async def test_one_where_we_are_no_superuser_is_told_so(
        self, make_postgres: Callable[..., OwnPostgres], cdc_bus: EventBus
    ) -> None:
        server = make_postgres()
        async with await AsyncConnection.connect(server.url, autocommit=True) as admin:
            await run(admin, "CREATE ROLE owner", "ALTER DATABASE tenants OWNER TO owner", "SET ROLE owner")
            with pytest.raises(publication.NotPublishable, match="ATLAS_TENANT_DATABASE_URL must be a superuser's"):
                await publication.require(admin)

    async def test_it_stops_at_once_though_a_relay_listens(
        self, make_postgres: Callable[..., OwnPostgres], cdc_bus: EventBus
    ) -> None:
        server = make_postgres()
        tenants = Tenants(server.url, secret=SECRET, other_databases=())
        await tenants.start()
        relay = Relay(tenants, cdc_bus, SETTINGS, Metrics())
        await relay.start()
        await streaming(tenants)
        assert server.running
        server.running.ask_to_stop()
        await asyncio.to_thread(server.running.process.wait, 10)
        await relay.close()
