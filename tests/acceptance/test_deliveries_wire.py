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
from tests.fix_clients import Rest
from tests.fix_ledger import EVENT_BODY, insert_delivery
from tests.fix_up import Stack

SOURCE = "export default () => 1"


@pytest.fixture
async def database(running_stack: Stack) -> AsyncIterator[Connection]:
    url = postgres.url(running_stack.run / "pg", bootstrap.CONTROL)
    async with await psycopg.AsyncConnection.connect(url, autocommit=True) as conn:
        yield conn


@pytest.fixture
def project(new_project: Callable[..., Rest]) -> Rest:
    return new_project()


@pytest.fixture
async def trigger_id(database: Connection, project: Rest) -> str:
    """Paused, so that what is replayed does not run."""
    function_id = project.deployed(SOURCE, slug="one")
    cursor = await database.execute(
        "WITH made AS (INSERT INTO triggers (project_id, event_type, target_type, function_id, paused)"
        " VALUES (%s, 'order.paid', 'function', %s, true) RETURNING id, project_id)"
        " SELECT id::text, pg_notify('atlas_changes', 'trigger:' || project_id || '/' || id) FROM made",
        [project.project_id, function_id],
    )
    row = await cursor.fetchone()
    assert row
    return str(row[0])


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
