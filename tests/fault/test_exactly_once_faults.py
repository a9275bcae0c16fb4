"""A worker dies beside the commit of an exactly_once run: its effect is there once, and so is its answer."""

import asyncio
import json
import sys
from contextlib import suppress
from pathlib import Path

import pytest

from engines.contract import LogLine
from engines.quickjs.engine import QuickJS
from server.host.api import HostApi
from server.host.database import Database
from server.invocations.exactly_once import DONE
from server.invocations.invoke import Call
from server.postgres.tenants import Tenants
from tests.fault.once_victim import WHERE, real_invoker
from tests.fix_dispatch import Answer, Site
from tests.fix_effects import LIMITS, ask


@pytest.mark.parametrize("where", WHERE)
async def test_a_redelivery_after_a_death_answers_what_was_done(
    engine: QuickJS, dispatch_site: Site, tenants: Tenants, database: Database, where: str
) -> None:
    site = dispatch_site
    await tenants.provision(site.project_id)
    outside = HostApi(database, None, None).for_invocation(site.project_id, LIMITS)  # type: ignore[arg-type]
    for sql in (
        "CREATE TABLE orders (id serial PRIMARY KEY, pid text)",
        "CREATE TABLE stock (n int)",
        "INSERT INTO stock VALUES (10)",
    ):
        await ask(outside, "db.query", sql)
    await site.trigger(retry={"attempts": 5})
    await site.publish(1)
    told = {
        "control_url": site.control_url,
        "nats_url": site.nats_url,
        "admin_url": tenants._admin_url,
        "secret": tenants._secret.hex(),
        "function_id": site.function_id,
        "where": where,
    }
    victim = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "tests.fault.once_victim", json.dumps(told), cwd=Path(__file__).parents[2]
    )
    try:
        async with asyncio.timeout(60):
            assert await victim.wait() == -9
    finally:
        with suppress(ProcessLookupError):
            victim.kill()
    committed = where == "after the commit"
    orders = await ask(outside, "db.query", "SELECT id FROM orders")
    assert len(orders) == int(committed)

    invoker, ended = real_invoker(engine, database, site.function_id), list[tuple[bytes, tuple[LogLine, ...]]]()

    async def work(call: Call) -> Answer:
        result = (await invoker.invoke(call)).result
        ended.append((result.value, result.logs))
        return result

    await (await site.worker(work, lease_s=1.0)).start()
    await site.until({"done": 1}, within_s=60)
    (row,) = await site.rows()
    assert [entry["outcome"] for entry in row["history"]] == ["lost", "ok"]
    assert await ask(outside, "db.query", "SELECT n FROM stock") == [{"n": 9}]
    (order,) = await ask(outside, "db.query", "SELECT id FROM orders")
    assert ended == [(str(order["id"]).encode(), (DONE,) if committed else ())]
    assert orders == ([order] if committed else [])
    await database.forget(site.project_id)
    await tenants.drop(site.project_id)
