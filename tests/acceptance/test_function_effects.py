"""An order from an HTTP call through a transaction, its event, a second function and its rows, to the last event."""

from typing import Any

import pytest

from tests.fix_clients import Rest, eventually

PLACE = """export default async (input) => {
  await atlas.db.query("CREATE TABLE IF NOT EXISTS orders (id int PRIMARY KEY)");
  await atlas.db.query("CREATE TABLE IF NOT EXISTS shipped (id int PRIMARY KEY, depth int)");
  return await atlas.db.transaction(async (tx) => {
    await tx.query("INSERT INTO orders VALUES ($1)", [input.id]);
    await tx.publish("order.placed", { id: input.id }, { id: "order-" + input.id });
    if (input.fail) throw new Error("changed my mind");
    return input.id;
  });
}"""

SHIP = """export default async (event, ctx) => {
  await atlas.db.transaction((tx) =>
    tx.query("INSERT INTO shipped VALUES ($1, $2)", [event.data.id, event.cause.depth]), { exactlyOnce: true });
}"""

SHIP_WHOLE = """export default (event, ctx) =>
  atlas.db.query("INSERT INTO shipped VALUES ($1, $2)", [event.data.id, event.cause.depth])"""

TELL = """export default async (event, ctx) => {
  await atlas.kv.set("told", [event.data.id, event.cause, ctx.event.cause]);
}"""


@pytest.mark.parametrize(("runtime", "source", "whole"), [("quickjs", SHIP, False), ("node", SHIP_WHOLE, True)])
def test_what_an_order_causes(patient: Rest, runtime: str, source: str, whole: bool) -> None:
    rest = patient
    place = rest.deployed(PLACE, slug="place", runtime=runtime)
    ship = rest.deployed(source, slug="ship", runtime=runtime, exactly_once=whole)
    assert rest.manage("GET", f"/functions/{ship}").json()["exactly_once"] is whole
    tell = rest.deployed(TELL, slug="tell")
    rest.deployed("export default () => atlas.kv.get('told')", slug="told")
    triggers: dict[str, Any] = {}
    for function_id, event_type in ((ship, "order.placed"), (tell, "cdc.INSERT.shipped")):
        body = {"event_type": event_type, "target_type": "function", "function_id": function_id}
        answer = rest.manage("POST", "/triggers", json=body)
        assert answer.status_code == 200, answer.text
        triggers[event_type] = answer.json()["id"]
    assert rest.invoke("place", {"id": 1, "fail": True}).status_code == 500
    placed = rest.invoke("place", {"id": 2})
    assert placed.json()["result"] == 2

    def told() -> Any:
        return rest.invoke("told").json()["result"]

    shipped, cause, same = eventually(told)
    assert (shipped, same) == (2, cause)
    assert (cause["depth"], cause["trigger_id"]) == (2, triggers["order.placed"])
    first = rest.record(cause["run_id"])
    assert (first["function_id"], first["outcome"]) == (ship, "ok")
    assert place != ship
