"""The cause of a run goes with what it writes: from atlas.db through the commit into the events of the changes."""

from collections.abc import AsyncIterator
from uuid import uuid4

import pytest
from psycopg import AsyncConnection

from server.cdc.relay import Relay
from server.events import cause
from server.events.envelope import Cause
from server.host.api import HostApi, InvocationHost
from server.host.database import Database
from server.host.fetch import Fetcher
from server.host.keyvalue import KeyValue
from server.host.origin import Origin
from server.postgres.tenants import Tenants, schema_of
from tests.fix_cdc import Stored, run
from tests.fix_effects import LIMITS, ask, begin

RUN, TRIGGER = str(uuid4()), str(uuid4())
CAUSE = Cause(run_id=RUN, trigger_id=TRIGGER, depth=4)


@pytest.fixture
async def host(database: Database, valkey_url: str, project: str) -> AsyncIterator[InvocationHost]:
    """Of a run that an event started."""
    api = HostApi(database, KeyValue(valkey_url), Fetcher())
    yield api.for_invocation(
        project, LIMITS, origin=Origin(run_id=RUN, event_id="e", trigger_id=TRIGGER, depth=CAUSE.depth)
    )
    await api.keyvalue.close()
    await api.fetcher.close()


async def test_changes_of_a_run_have_its_cause_and_others_none(
    relay: Relay, stored: Stored, person: AsyncConnection, project: str, host: InvocationHost
) -> None:
    by_hand = host._api.for_invocation(project, LIMITS, origin=Origin(run_id=RUN))
    await run(person, "CREATE TABLE t (n int)", "INSERT INTO t VALUES (1)")
    await ask(host, "db.query", "INSERT INTO t VALUES ($1)", [2])
    held = await begin(host)
    for number in (3, 4):
        await ask(host, "tx.query", 1, "INSERT INTO t VALUES ($1)", [number])
    await ask(host, "tx.query", 1, "UPDATE t SET n = n + 10 WHERE n = $1", [2])
    await ask(host, "tx.commit", 1)
    await held
    await ask(host, "db.query", "TRUNCATE t")
    await run(person, "INSERT INTO t VALUES (5)")
    await ask(by_hand, "db.query", "INSERT INTO t VALUES (6)")
    events = await stored.of(project, 8)
    assert [event.cause for event in events] == [None, *[CAUSE] * 5, None, Cause(run_id=RUN, depth=1)]


async def test_a_tenant_cannot_make_one_up(
    relay: Relay, stored: Stored, person: AsyncConnection, project: str, tenants: Tenants
) -> None:
    """Neither without a seal nor with that of another project, nor is there a second try in a transaction."""
    told = cause.told(Cause(run_id=RUN, depth=1))
    await run(person, "CREATE TABLE t (n int)")
    own, other = (tenants.sealer.seal("cause", role, told) for role in (schema_of(project), schema_of(RUN)))
    for number, seals in enumerate(([b"0" * 32], [other], [other, own], [own])):
        async with person.transaction():
            for seal in seals:
                await person.execute("SELECT atlas_run.cause(%s, %s)", [told, seal])
            await person.execute("INSERT INTO t VALUES (%s)", [number])
    events = await stored.of(project, 4)
    assert [event.cause and event.cause.depth for event in events] == [None, None, None, 1]


async def test_a_tenant_cannot_say_less_of_its_run(
    relay: Relay, stored: Stored, person: AsyncConnection, project: str, host: InvocationHost, tenants: Tenants
) -> None:
    """Not even with a seal of an earlier run of its own."""
    await run(person, "CREATE TABLE t (n int)")
    told = cause.told(Cause(run_id=RUN, depth=1))
    seal = "\\x" + tenants.sealer.seal("cause", schema_of(project), told).hex()
    held = await begin(host)
    await ask(host, "tx.query", 1, "SELECT atlas_run.cause($1, $2::bytea)", [told, seal])
    await ask(host, "tx.query", 1, "INSERT INTO t VALUES (1)")
    await ask(host, "tx.commit", 1)
    await held
    (event,) = await stored.of(project, 1)
    assert event.cause == CAUSE
