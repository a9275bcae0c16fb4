"""Functions in a real sandbox with the real host: transactions and events, from JavaScript to Postgres and NATS."""

import orjson
import pytest
from psycopg import AsyncConnection

from engines.contract import Outcome
from engines.quickjs.engine import QuickJS
from server.events.bus import EventBus
from server.events.publisher import Publisher
from server.events.run_outbox import relay
from server.host import transaction
from server.host.api import HostApi, InvocationHost
from server.host.origin import Origin
from tests.fix_effects import LIMITS, SETTINGS, ask, stored
from tests.fix_sandbox import run

ORDER = """
return await atlas.db.transaction(async (tx) => {
  const [order] = await tx.query("INSERT INTO orders (total) VALUES ($1) RETURNING id", [input.total]);
  await tx.query("UPDATE stock SET n = n - $1", [input.n]);
  await tx.publish("order.placed", { id: order.id, total: input.total }, { id: "order-" + order.id });
  if (input.fail) throw new Error("changed my mind");
  return order;
}, { exactlyOnce: true });
"""


@pytest.fixture
async def host(hosts: HostApi, project: str) -> InvocationHost:
    found = hosts.for_invocation(project, LIMITS, origin=Origin(run_id="00000000-0000-4000-8000-000000000001"))
    for sql in (
        "CREATE TABLE orders (id serial PRIMARY KEY, total numeric)",
        "CREATE TABLE stock (n int CHECK (n >= 0))",
        "INSERT INTO stock VALUES (10)",
    ):
        await ask(found, "db.query", sql)
    return found


async def state(host: InvocationHost) -> list[dict[str, int]]:
    found = await ask(host, "db.query", "SELECT (SELECT count(*)::int FROM orders) AS orders, n FROM stock")
    assert isinstance(found, list)
    return found


async def test_an_order(
    engine: QuickJS, host: InvocationHost, hosts: HostApi, admin: AsyncConnection, event_bus: EventBus
) -> None:
    failed = await run(engine, ORDER, {"total": 5, "n": 1, "fail": True}, host=host)
    assert failed.error is not None
    assert (failed.outcome, failed.error.message) == (Outcome.EXCEPTION, "changed my mind")
    refused = await run(engine, ORDER, {"total": 5, "n": 11}, host=host)
    assert refused.error is not None
    assert refused.error.code == "sql_23514"
    assert await state(host) == [{"orders": 0, "n": 10}]

    placed = await run(engine, ORDER, {"total": 5, "n": 1}, host=host)
    again = await run(engine, ORDER, {"total": 5, "n": 1}, host=host)
    assert placed.outcome is Outcome.OK, placed
    assert placed.value == again.value
    assert await state(host) == [{"orders": 1, "n": 9}]
    assert await relay(admin, Publisher(event_bus, SETTINGS)) == 1
    (event,) = await stored(event_bus)
    assert event.id == f"order-{orjson.loads(placed.value)['id']}"
    assert (event.type, event.data.value["total"]) == ("order.placed", 5)


@pytest.mark.parametrize(
    ("code", "told"),
    [
        ("return 1", b"1"),
        (
            "try { await atlas.db.transaction(async () => { await atlas.db.transaction(() => 1) }) }"
            " catch (e) { return e.code }",
            b'"transaction_open"',
        ),
        ("await Promise.all([1, 2].map((n) => atlas.kv.get('k' + n))); return 2", b"2"),
    ],
)
async def test_a_transaction_left_open_is_rolled_back_with_its_run(
    engine: QuickJS, host: InvocationHost, hosts: HostApi, code: str, told: bytes
) -> None:
    left = """const opened = Promise.withResolvers(); atlas.db.transaction(async (tx) => {
      await tx.query("INSERT INTO orders (total) VALUES (1)"); opened.resolve(); await new Promise(() => {}) });
      await opened.promise; """
    if "transaction_open" not in told.decode():
        code = left + code
    result = await run(engine, code, host=host)
    assert (result.outcome, result.value) == (Outcome.OK, told)
    assert await state(host) == [{"orders": 0, "n": 10}]


async def test_a_callback_that_never_ends_is_told_when_its_time_is_over(
    engine: QuickJS, host: InvocationHost, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(transaction, "MAX_MS", 200)
    code = """return await atlas.db.transaction(async (tx) => {
      await tx.query("INSERT INTO orders (total) VALUES (1)");
      try { await tx.query("SELECT count(*) FROM generate_series(1, 1000000000)") } catch (e) { return e.code } })"""
    result = await run(engine, code, host=host)
    assert result.error is not None
    assert result.error.code == "transaction_timeout"
    assert await state(host) == [{"orders": 0, "n": 10}]
