"""The ledger as clients meet it, over REST and gRPC through Envoy. Deliveries are rows written beside the stack."""

import uuid
from collections.abc import AsyncIterator, Callable
from typing import Any

import grpc
import httpx
import orjson
import psycopg
import pytest

from atlas.deliveries.v1 import deliveries_service_pb2 as pb
from atlas.deliveries.v1.deliveries_service_pb2_grpc import DeliveryServiceStub
from server.postgres.control import Connection
from server.stack import bootstrap, postgres
from tests.fix_clients import Rest, eventually
from tests.fix_ledger import EVENT_BODY, insert_delivery
from tests.fix_up import Stack

SOURCE = "export default () => 1"
FAILS = "export default () => { throw new TypeError('no such order') }"
SLOW = "export default () => new Promise((done) => setTimeout(done, 14000))"


@pytest.fixture
async def database(running_stack: Stack) -> AsyncIterator[Connection]:
    url = postgres.url(running_stack.run / "pg", bootstrap.CONTROL)
    async with await psycopg.AsyncConnection.connect(url, autocommit=True) as conn:
        yield conn


@pytest.fixture
def project(new_project: Callable[..., Rest]) -> Rest:
    return new_project()


@pytest.fixture
def trigger_id(project: Rest) -> str:
    """Paused, so that what is replayed does not run."""
    made = add_trigger(project, project.deployed(SOURCE, slug="one"))
    assert project.manage("POST", f"/triggers/{made}:pause", json={}).status_code == 200
    return made


def add_trigger(project: Rest, function_id: str, **fields: object) -> str:
    trigger = {"event_type": "order.paid", "target_type": "function", "function_id": function_id, **fields}
    answer = project.manage("POST", "/triggers", json=trigger)
    assert answer.status_code == 200, answer.text
    return str(answer.json()["id"])


def publish(project: Rest, data: str) -> None:
    body = b'{"type": "order.paid", "data": ' + data.encode() + b"}"
    assert project.manage("POST", "/events", content=body).status_code == 200


def only(project: Rest, **wanted: object) -> dict[str, Any]:
    """The only delivery, whole, once it is so."""

    def ask() -> Any:
        listing = project.manage("GET", "/deliveries", params=wanted).json()["deliveries"]
        return listing and project.manage("GET", f"/deliveries/{listing[0]['id']}").json()

    return dict(eventually(ask))


def reason(answer: httpx.Response) -> tuple[int, str]:
    return answer.status_code, answer.json()["error"]["details"][0]["reason"]


def listed(project: Rest, **wanted: object) -> list[str]:
    answer = project.manage("GET", "/deliveries", params=wanted)
    assert answer.status_code == 200, answer.text
    return [item["id"] for item in answer.json()["deliveries"]]


async def test_deliveries_are_listed_filtered_and_shown(database: Connection, project: Rest, trigger_id: str) -> None:
    dead = await insert_delivery(database, project.project_id, trigger_id, event_id="e1")
    done = await insert_delivery(
        database, project.project_id, trigger_id, event_id="e2", event_type="order.sent", state="done", outcome="ok"
    )
    assert listed(project) == [done, dead]
    for wanted in (
        {"event": "e1"},
        {"event_type": "order.paid"},
        {"state": "dead"},
        {"outcome": "exception"},
        {"trigger": trigger_id, "state": "dead", "since": "2026-01-01T00:00:00Z"},
    ):
        assert listed(project, **wanted) == [dead], wanted
    assert listed(project, until="2026-01-01T00:00:00Z") == []
    first = project.manage("GET", "/deliveries", params={"page_size": 1}).json()
    assert listed(project, page_size=1, page_token=first["next_page_token"]) == [dead]

    answer = project.manage("GET", f"/deliveries/{dead}")
    assert answer.headers["content-type"] == "application/json"
    assert b'"event":' + EVENT_BODY in answer.content
    shown = answer.json()
    assert (shown["state"], shown["attempts"], shown["error"]["message"]) == ("dead", 1, "boom")
    assert [(item["number"], item["outcome"]) for item in shown["history"]] == [(1, "exception")]


@pytest.mark.parametrize(
    "wanted",
    [
        {"trigger": "x"},
        {"event": "ä"},
        {"event_type": "a b"},
        {"state": "fine"},
        {"outcome": "fine"},
        {"since": "yesterday"},
        {"page_size": 201},
        {"page_token": "x"},
    ],
    ids=str,
)
def test_a_filter_that_is_wrong_is_a_400(project: Rest, wanted: dict[str, object]) -> None:
    answer = project.manage("GET", "/deliveries", params=wanted)
    assert (answer.status_code, answer.json()["error"]["code"]) == (400, "invalid_argument")


async def test_one_is_replayed_and_cancelled(database: Connection, project: Rest, trigger_id: str) -> None:
    dead = await insert_delivery(database, project.project_id, trigger_id)
    again = project.manage("POST", f"/deliveries/{dead}:replay", json={}).json()
    assert (again["state"], again["replays"], again["attempts"]) == ("queued", 1, 0)
    assert reason(project.manage("POST", f"/deliveries/{dead}:replay", json={})) == (400, "DELIVERY_UNDER_WAY")
    ended = project.manage("POST", f"/deliveries/{dead}:cancel", json={}).json()
    assert (ended["state"], ended["error"]["reason"]) == ("cancelled", "CANCELLED")
    assert reason(project.manage("POST", f"/deliveries/{dead}:cancel", json={})) == (400, "DELIVERY_FINISHED")
    done = await insert_delivery(database, project.project_id, trigger_id, state="done", outcome="ok")
    assert reason(project.manage("POST", f"/deliveries/{done}:replay", json={})) == (400, "DELIVERY_DONE")
    assert reason(project.manage("POST", f"/deliveries/{uuid.uuid4()}:replay", json={})) == (404, "DELIVERY_NOT_FOUND")
    assert project.manage("POST", "/deliveries/x:replay", json={}).status_code == 400


def test_what_failed_is_run_again_once_its_function_is_mended(project: Rest) -> None:
    function_id = project.deployed(FAILS, slug="mended")
    trigger = add_trigger(project, function_id, retry={"attempts": 2, "backoff_ms": 10})
    publish(project, '{"z": 12345678901234567890123, "a": 1.10}')
    dead = only(project, state="dead")
    assert (dead["trigger_id"], dead["attempts"], dead["outcome"]) == (trigger, 2, "exception")
    assert [item["number"] for item in dead["history"]] == [1, 2]
    for attempt in dead["history"]:
        assert (attempt["outcome"], attempt["error"]["reason"]) == ("exception", "FUNCTION_EXCEPTION")
        run = project.record(attempt["run_id"])
        assert (run["trigger"], run["error"]["message"]) == (trigger, dead["error"]["message"])
        assert "no such order" in run["error"]["message"]
    raw = project.manage("GET", f"/deliveries/{dead['id']}").content
    assert b'{"z": 12345678901234567890123, "a": 1.10}' in raw

    assert project.deployed(SOURCE, slug="mended") == function_id
    assert project.manage("POST", "/deliveries:replay", json={"reason": "FUNCTION_EXCEPTION"}).json()["replayed"] == 1
    done = only(project, state="done")
    assert (done["id"], done["replays"], done["attempts"], done["outcome"]) == (dead["id"], 1, 1, "ok")
    assert [item["outcome"] for item in done["history"]] == ["exception", "exception", "ok"]
    assert "error" not in done
    assert reason(project.manage("POST", f"/deliveries/{done['id']}:replay", json={})) == (400, "DELIVERY_DONE")


def test_one_that_runs_is_ended(new_project: Callable[..., Rest]) -> None:
    project = new_project(tier="pro")
    add_trigger(project, project.deployed(SLOW, slug="slow"))
    publish(project, "1")
    running = only(project, state="running")
    (attempt,) = running["history"]
    assert (attempt["number"], attempt["outcome"], "ended_at" in attempt) == (1, "", False)
    eventually(lambda: project.runs(state="running"))
    ended = project.manage("POST", f"/deliveries/{running['id']}:cancel", json={}).json()
    assert (ended["state"], ended["outcome"]) == ("cancelled", "cancelled"), ended
    assert [item["outcome"] for item in ended["history"]] == ["cancelled"]
    assert project.record(attempt["run_id"])["outcome"] == "cancelled"


async def test_many_are_replayed(database: Connection, project: Rest, trigger_id: str) -> None:
    ids = [
        await insert_delivery(database, project.project_id, trigger_id, outcome=outcome)
        for outcome in ("exception", "exception", "lost")
    ]
    path = "/deliveries:replay"
    wrong: list[Any] = [{"outcom": "lost"}, {"outcome": 3}, {"outcome": "fine"}, {"project_id": project.project_id}, []]
    for bad in (*wrong, None):
        assert project.manage("POST", path, content=orjson.dumps(bad)).status_code == 400, bad
    assert project.manage("POST", path).status_code == 400
    assert sorted(listed(project, state="dead")) == sorted(ids)
    form = {"content-type": "application/x-www-form-urlencoded"}
    told = project.manage("POST", path, content=b'{"outcome": "lost"}', headers=form)
    assert told.json() == {"replayed": 1, "next_page_token": ""}
    assert project.manage("POST", path, json={"ids": ids[:1]}).json()["replayed"] == 1
    assert project.manage("POST", path, json={}).json()["replayed"] == 1
    assert listed(project, state="dead") == []


async def test_only_its_project_and_only_a_service_key_see_and_change_a_delivery(
    database: Connection, project: Rest, trigger_id: str, new_project: Callable[..., Rest]
) -> None:
    """An escape: every way to name another project's delivery."""
    stranger = new_project()
    dead = await insert_delivery(database, project.project_id, trigger_id)
    calls = [("GET", "/deliveries"), ("GET", f"/deliveries/{dead}"), ("POST", "/deliveries:replay")]
    calls += [("POST", f"/deliveries/{dead}:{verb}") for verb in ("replay", "cancel")]
    for method, path in calls:
        body: dict[str, Any] = {"json": {}} if method == "POST" else {}
        ours = f"/v1/projects/{project.project_id}{path}"
        assert reason(project.request(method, ours, key=stranger.service_key, **body)) == (403, "WRONG_PROJECT")
        assert reason(project.request(method, ours, key=project.anon_key, **body)) == (403, "WRONG_ROLE")
        assert reason(project.request(method, ours, key=project.admin_key, **body)) == (403, "WRONG_ROLE")
        assert project.request(method, ours, **body).status_code == 401
        if dead in path:
            assert reason(stranger.manage(method, path, **body)) == (404, "DELIVERY_NOT_FOUND")
    assert listed(stranger) == []
    assert listed(stranger, trigger=trigger_id) == []
    assert reason(stranger.manage("GET", "/deliveries", params={"project_id": project.project_id})) == (
        403,
        "WRONG_PROJECT",
    )
    for named in ({}, {"ids": [dead]}, {"trigger": trigger_id}):
        assert stranger.manage("POST", "/deliveries:replay", json=named).json()["replayed"] == 0
    nobody = f"/deliveries/{uuid.uuid4()}"
    forged = {"delivery_id": dead, "deliveryId": dead}
    for verb in ("replay", "cancel"):
        assert project.manage("POST", f"{nobody}:{verb}", params=forged, json={}).status_code == 404
        assert project.manage("POST", f"{nobody}:{verb}", json={"delivery_id": dead}).status_code == 400
        assert project.manage("POST", f"{nobody}:{verb}", json={"deliveryId": dead}).status_code == 404
    assert project.manage("GET", nobody, params=forged).status_code == 404
    assert listed(project, state="dead") == [dead]


async def test_the_same_by_grpc(
    database: Connection, project: Rest, trigger_id: str, channel: grpc.aio.Channel
) -> None:
    dead = await insert_delivery(database, project.project_id, trigger_id)
    stub, key = DeliveryServiceStub(channel), (("apikey", project.service_key),)
    asked = pb.GetDeliveryRequest(project_id=project.project_id, delivery_id=dead)
    shown = await stub.GetDelivery(asked, metadata=key)
    assert (shown.id, shown.event) == (dead, EVENT_BODY.decode())
    told = await stub.ReplayDeliveries(pb.ReplayDeliveriesRequest(project_id=project.project_id), metadata=key)
    assert told.replayed == 1


async def test_parked_messages_are_the_operators(database: Connection, project: Rest) -> None:
    subject = f"atlasdb.events.{uuid.uuid4()}"
    await database.execute(
        "INSERT INTO parked_messages (sequence, subject, reason, body, body_bytes) VALUES (7, %s, 'none', %s, 2)",
        [subject, b"\xff\xfe"],
    )
    assert reason(project.request("GET", "/v1/parked-messages", key=project.service_key)) == (403, "WRONG_ROLE")
    assert project.request("GET", "/v1/parked-messages").status_code == 401
    answer = project.request("GET", "/v1/parked-messages", key=project.admin_key)
    (told,) = [message for message in answer.json()["messages"] if message["subject"] == subject]
    assert (told["sequence"], told["body"], told["encoding"], told["body_bytes"]) == (7, "//4=", "base64", 2)


async def test_a_deleted_project_leaves_no_deliveries(
    database: Connection, project: Rest, trigger_id: str, rest: Rest
) -> None:
    await insert_delivery(database, project.project_id, trigger_id)
    deleted = rest.request("DELETE", f"/v1/projects/{project.project_id}", key=rest.admin_key)
    assert deleted.status_code == 200
    for table in ("deliveries", "delivered_events"):
        query = f"SELECT count(*) FROM {table} WHERE project_id = %s".encode()
        row = await (await database.execute(query, [project.project_id])).fetchone()
        assert row == (0,)
