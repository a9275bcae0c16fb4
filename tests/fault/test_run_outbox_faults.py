"""What a run committed survives deaths: its events are published once, its marked effect happens once."""

import asyncio
import json
import sys
from pathlib import Path
from typing import Any
from uuid import uuid4

import psycopg
import pytest
from psycopg import AsyncConnection

from server.errors import Unavailable
from server.events import run_outbox
from server.events.bus import EventBus
from server.events.publisher import Publisher
from server.events.run_outbox import Relay, relay
from server.host.api import HostApi
from server.host.origin import Origin
from server.postgres.tenants import Tenants
from tests.fix_effects import LIMITS, SETTINGS, ask, begin, stored, waiting
from tests.fix_runs import OwnNats, eventually

TRIGGER = str(uuid4())
PROGRAM = Path(__file__).with_name("committing_program.py")


async def delivered(tenants: Tenants, nats_url: str, project: str, event_id: str, where: str = "") -> Any:
    """What a process that runs the transaction prints; None when it was killed."""
    told = {
        "admin_url": tenants._admin_url,
        "secret": tenants._secret.hex(),
        "project_id": project,
        "nats_url": nats_url,
        "run_id": TRIGGER,
        "event_id": event_id,
        "where": where,
    }
    process = await asyncio.create_subprocess_exec(
        sys.executable, str(PROGRAM), json.dumps(told), stdout=asyncio.subprocess.PIPE, cwd=PROGRAM.parents[2]
    )
    out, _ = await process.communicate()
    assert process.returncode in (0, -9)
    return json.loads(out) if process.returncode == 0 else None


@pytest.mark.parametrize("where", ["before the commit", "after the commit"])
async def test_a_redelivery_after_a_death_does_its_effect_once(
    tenants: Tenants,
    admin: AsyncConnection,
    hosts: HostApi,
    project: str,
    event_bus: EventBus,
    nats_url: str,
    where: str,
) -> None:
    host = hosts.for_invocation(project, LIMITS)
    await ask(host, "db.query", "CREATE TABLE t (n int)")
    assert await delivered(tenants, nats_url, project, "e1", where) is None
    again = [await delivered(tenants, nats_url, project, "e1") for _ in range(2)]
    assert again == [{"value": "new" if where == "before the commit" else "done"}, {"value": "done"}]
    host = hosts.for_invocation(project, LIMITS)  # the time of the first may be over
    assert await ask(host, "db.query", "SELECT n FROM t") == [{"n": 1}]
    publisher = Publisher(event_bus, SETTINGS)
    assert await relay(admin, publisher) == 1
    assert len(await stored(event_bus)) == 1


async def committed(hosts: HostApi, project: str, count: int) -> None:
    host = hosts.for_invocation(project, LIMITS, origin=Origin(run_id=str(uuid4())))
    held = await begin(host)
    for number in range(count):
        await ask(host, "events.publish", "a", number, None, 1)
    await ask(host, "tx.commit", 1)
    await held


async def test_what_dies_between_acknowledgement_and_removal_publishes_nothing_twice(
    tenants: Tenants,
    admin: AsyncConnection,
    hosts: HostApi,
    project: str,
    event_bus: EventBus,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    await committed(hosts, project, 20)
    publisher = Publisher(event_bus, SETTINGS)
    real = run_outbox._remove

    async def die(dying: AsyncConnection, *rest: Any) -> None:
        await admin.execute("SELECT pg_terminate_backend(%s, 5000)", [dying.info.backend_pid])
        await real(dying, *rest)

    monkeypatch.setattr(run_outbox, "_remove", die)
    for _ in range(2):
        with pytest.raises(psycopg.Error):
            async with tenants.admin() as dying:
                await relay(dying, publisher)
    assert await waiting(admin) == 20
    monkeypatch.setattr(run_outbox, "_remove", real)
    assert await relay(admin, publisher) == 20
    assert [event.data.value for event in await stored(event_bus)] == list(range(20))


async def test_they_wait_for_nats(
    tenants: Tenants, admin: AsyncConnection, hosts: HostApi, project: str, own_nats: OwnNats
) -> None:
    bus = EventBus(own_nats.url)
    await bus.start()
    publisher = Publisher(bus, SETTINGS, patience_s=0.5)
    await publisher.start()
    own_nats.kill()
    await committed(hosts, project, 5)
    with pytest.raises(Unavailable):
        await relay(admin, publisher)
    assert await waiting(admin) == 5
    own_nats.start()
    relaying = Relay(tenants, bus, publisher, poll_s=0.05)
    await relaying.start()

    async def gone() -> bool:
        return await waiting(admin) == 0

    await eventually(gone)
    assert [event.data.value for event in await stored(bus)] == list(range(5))
    await relaying.close()
    await bus.close()


async def test_a_relay_that_dies_is_followed_by_another(
    tenants: Tenants, admin: AsyncConnection, hosts: HostApi, project: str, event_bus: EventBus
) -> None:
    """Also its connection alone."""
    relays = [Relay(tenants, event_bus, Publisher(event_bus, SETTINGS), poll_s=0.05) for _ in range(2)]
    for each in relays:
        await each.start()
    for number in range(3):
        await committed(hosts, project, 10)
        if number == 0:
            await relays[0].close()
        await admin.execute(
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity"
            " WHERE application_name = 'atlas-tenants' AND pid <> pg_backend_pid()"
        )

    async def all_there() -> bool:
        return await waiting(admin) == 0

    await eventually(all_there)
    assert [event.data.value for event in await stored(event_bus)] == [*range(10)] * 3
    await relays[1].close()
