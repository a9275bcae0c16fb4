"""What led to events and what they led to, the past of triggers, and auth events, through the whole stack."""

import re
from collections.abc import AsyncIterator, Callable
from datetime import UTC, datetime, timedelta
from typing import Any
from urllib.parse import quote
from uuid import uuid4

import grpc
import httpx
import nats
import orjson
import psycopg
import pytest
from google.protobuf import struct_pb2
from google.protobuf.timestamp_pb2 import Timestamp
from nats.aio.client import Client

from atlas.deliveries.v1 import lineage_service_pb2 as lineage_pb
from atlas.deliveries.v1.lineage_service_pb2_grpc import LineageServiceStub
from atlas.events.v1 import events_pb2
from atlas.events.v1 import events_service_pb2 as events
from atlas.events.v1.events_service_pb2_grpc import EventServiceStub
from atlas.triggers.v1 import triggers_service_pb2 as pb
from atlas.triggers.v1.triggers_service_pb2_grpc import TriggerServiceStub
from server.events.stream import PREFIX
from server.stack import bootstrap, postgres
from tests.fix_clients import Rest, eventually
from tests.fix_up import Stack

TELLS = "export default (event, ctx) => { console.log(JSON.stringify({...event, seen: ctx.event})); return event.data }"
BEFORE = timedelta(minutes=5)


@pytest.fixture
def project(new_project: Callable[..., Rest]) -> Rest:
    return new_project()


@pytest.fixture
async def bus(running_stack: Stack) -> AsyncIterator[Client]:
    """A client of the stack's own NATS, as an engine beside us has it."""
    config = (running_stack.run / "nats.conf").read_text()
    address, token = re.findall(r'listen: "(.+?)"|token: "(.+?)"', config)
    client = await nats.connect(f"nats://{token[1]}@{address[0]}")
    yield client
    await client.close()


def create(project: Rest, event_type: str, **fields: Any) -> Any:
    function_id = fields.pop("function_id", None) or project.deployed(TELLS, slug=f"f{uuid4().hex[:8]}")
    given = {"event_type": event_type, "target_type": "function", "function_id": function_id} | fields
    answer = project.manage("POST", "/triggers", json=given)
    assert answer.status_code == 200, answer.text
    return answer.json()


def publish(project: Rest, event_type: str, data: Any, **fields: Any) -> str:
    answer = project.manage("POST", "/events", content=orjson.dumps({"type": event_type, "data": data} | fields))
    assert answer.status_code == 200, answer.text
    return str(answer.json()["id"])


def envelope(project: Rest, event_type: str, data: Any, **fields: Any) -> bytes:
    """As an engine publishes it straight to NATS."""
    told = {
        "id": str(uuid4()),
        "type": event_type,
        "project_id": project.project_id,
        "time": "2026-01-31T09:00:00Z",
        "source": "auth",
        "data": data,
    }
    return orjson.dumps(told | fields)


def ended(project: Rest, state: str, count: int, **wanted: Any) -> list[Any]:
    """The deliveries, once so many are so."""

    def ask() -> Any:
        found = project.manage("GET", "/deliveries", params={"state": state, **wanted}).json()["deliveries"]
        return found if len(found) >= count else None

    found = eventually(ask, 30)
    assert len(found) == count
    return list(found)


def inputs(project: Rest, **wanted: Any) -> list[Any]:
    """What the functions of done deliveries were given."""
    found = []
    for delivery in project.manage("GET", "/deliveries", params={"state": "done", **wanted}).json()["deliveries"]:
        shown = project.manage("GET", f"/deliveries/{delivery['id']}").json()
        found.append(orjson.loads(project.record(shown["history"][-1]["run_id"])["logs"][0]["text"]))
    return found


def reason(answer: httpx.Response) -> tuple[int, str]:
    return answer.status_code, answer.json()["error"]["details"][0]["reason"]


class TestLineage:
    def test_over_rest(self, project: Rest, new_project: Callable[..., Rest]) -> None:
        trigger = create(project, "order.paid")
        event_id = publish(project, "order.paid", 1, id="a/b:c%20?d#e")
        (delivery,) = ended(project, "done", 1)
        path = f"/events/{quote(event_id, safe='')}/lineage"
        answer = project.manage("GET", path)
        assert answer.status_code == 200, answer.text
        told = answer.json()
        assert (told["event"]["id"], told["event"]["type"]) == (event_id, "order.paid")
        assert (told["causes"], told["causes_complete"], told["truncated"]) == ([], True, False)
        (below,) = told["event"]["deliveries"]
        assert (below["id"], below["trigger_id"], below["state"]) == (delivery["id"], trigger["id"], "done")
        assert len(below["run_ids"]) == 1
        assert below["events"] == []

        assert reason(new_project().manage("GET", path)) == (404, "EVENT_NOT_FOUND")
        url = f"/v1/projects/{project.project_id}{path}"
        assert reason(project.request("GET", url, key=project.anon_key)) == (403, "WRONG_ROLE")
        assert reason(project.request("GET", url, key=new_project().service_key)) == (403, "WRONG_PROJECT")
        unmatched = publish(project, "order.unheard", 1)
        assert reason(project.manage("GET", f"/events/{unmatched}/lineage")) == (404, "EVENT_NOT_FOUND")

    async def test_over_grpc_and_a_loop(self, project: Rest, bus: Client, channel: grpc.aio.Channel) -> None:
        """A run that led to an event of its own type, eight deep."""
        trigger = create(project, "order.paid")
        publish(project, "order.paid", 1, id="first")
        (first,) = ended(project, "done", 1)
        run = project.manage("GET", f"/deliveries/{first['id']}").json()["history"][0]["run_id"]
        for depth, event_id in ((1, "second"), (8, "deep")):
            cause = {"run_id": run, "trigger_id": trigger["id"], "depth": depth}
            await bus.jetstream().publish(
                PREFIX + "order.paid", envelope(project, "order.paid", 2, id=event_id, cause=cause)
            )
        (dead,) = ended(project, "dead", 1)
        assert (dead["event_id"], dead["error"]["reason"]) == ("deep", "EVENT_LOOP")
        assert f"run {run} → event order.paid deep" in dead["error"]["message"]
        ended(project, "done", 2)
        (warning,) = project.manage("GET", f"/triggers/{trigger['id']}").json()["warnings"]
        assert (warning["reason"], dead["id"] in warning["message"]) == ("EVENT_LOOP", True)
        (stopped,) = project.record(run)["stopped_events"]
        assert (stopped["event_id"], stopped["delivery_id"]) == ("deep", dead["id"])
        assert stopped["message"] == dead["error"]["message"]
        again = project.manage("POST", f"/deliveries/{dead['id']}:replay", json={})
        assert again.status_code == 200, again.text
        (dead,) = ended(project, "dead", 1)
        assert dead["replays"] == 1

        told = await LineageServiceStub(channel).GetLineage(
            lineage_pb.GetLineageRequest(project_id=project.project_id, event_id="first"),
            metadata=(("apikey", project.service_key),),
        )
        assert {each.id for each in told.event.deliveries[0].events} == {"second", "deep"}
        above = project.manage("GET", "/events/second/lineage").json()
        (link,) = above["causes"]
        assert (link["run_id"], link["event_id"], link["delivery_id"]) == (run, "first", first["id"])
        assert above["causes_complete"] is True

    async def test_a_workflows_run_says_what_was_stopped(self, project: Rest, bus: Client) -> None:
        create(project, "order.paid")
        base = f"/workflows/v1/projects/{project.project_id}"
        definition = {"nodes": [{"id": "wait", "type": "delay", "config": {"seconds": 1}}], "edges": []}
        key, body = project.service_key, {"name": "w", "definition": definition}
        made = project.request("POST", f"{base}/definitions", key=key, json=body).json()
        run = project.request("POST", f"{base}/definitions/{made['id']}:run", key=key, json={}).json()["id"]
        cause = {"run_id": run, "depth": 8}
        await bus.jetstream().publish(PREFIX + "order.paid", envelope(project, "order.paid", 1, id="deep", cause=cause))
        (dead,) = ended(project, "dead", 1)
        shown = project.request("GET", f"{base}/runs/{run}", key=key).json()
        assert [each["delivery_id"] for each in shown["stopped_events"]] == [dead["id"]]
        assert (shown["more_stopped_events"], shown["steps"][0]["node_id"]) == (False, "wait")


class TestThePast:
    def test_start_from(self, project: Rest) -> None:
        function_id = project.deployed(TELLS, slug="late")
        for number in range(5):
            publish(project, "order.paid", number)
        start = (datetime.now(UTC) - BEFORE).isoformat().replace("+00:00", "Z")
        made = create(project, "order.paid", function_id=function_id, start_from=start)
        assert made["backfill"]["state"] == "running"
        publish(project, "order.paid", 5)
        ended(project, "done", 6)
        shown = eventually(
            lambda: (
                (found := project.manage("GET", f"/triggers/{made['id']}").json())["backfill"]["state"] == "done"
                and found
            )
        )
        assert shown["backfill"]["fired"] >= 5
        assert sorted(each["data"] for each in inputs(project)) == [*range(6)]
        refused = project.manage(
            "POST",
            "/triggers",
            json={
                "event_type": "order.paid",
                "target_type": "function",
                "function_id": function_id,
                "start_from": "2020-01-01T00:00:00Z",
            },
        )
        assert reason(refused) == (400, "INVALID_FIELD")
        assert "start_from" in refused.text
        later = project.manage("PATCH", f"/triggers/{made['id']}", json={"start_from": start})
        assert later.status_code == 400

    async def test_over_grpc(self, project: Rest, channel: grpc.aio.Channel) -> None:
        function_id = project.deployed(TELLS, slug="late")
        publish(project, "order.paid", {"n": 1})
        since = Timestamp()
        since.FromDatetime(datetime.now(UTC) - BEFORE)
        key = (("apikey", project.service_key),)
        stub = TriggerServiceStub(channel)
        conditions = struct_pb2.ListValue()
        conditions.add_struct().update({"field": "n", "op": "gte", "value": 1})
        tested = await stub.BacktestTrigger(
            pb.BacktestTriggerRequest(
                project_id=project.project_id, event_type="order.paid", conditions=conditions, since=since
            ),
            metadata=key,
        )
        assert (tested.looked_at, tested.fired, tested.truncated) == (1, 1, False)
        assert tested.samples[0].data == '{"n":1}'
        made = await stub.CreateTrigger(
            pb.CreateTriggerRequest(
                project_id=project.project_id,
                event_type="order.paid",
                target_type="function",
                function_id=function_id,
                start_from=since,
            ),
            metadata=key,
        )
        assert made.backfill.state == "running"
        ended(project, "done", 1)

    def test_backtest(self, project: Rest, new_project: Callable[..., Rest]) -> None:
        stranger = new_project()
        for number in range(10):
            publish(project, "order.paid", {"amount": number * 50})
            publish(stranger, "order.paid", {"amount": 5000})
        draft = {
            "event_type": "order.paid",
            "conditions": [{"field": "amount", "op": "gt", "value": 100}],
            "since": (datetime.now(UTC) - BEFORE).isoformat(),
            "samples": 2,
        }
        told = project.manage("POST", "/triggers:backtest", json=draft).json()
        assert (told["looked_at"], told["fired"], told["truncated"], told["next_page_token"]) == (10, 7, False, "")
        assert [orjson.loads(each["data"])["amount"] for each in told["samples"]] == [150, 200]
        assert told["samples"][0]["conditions"][0]["actual"] == "150"
        for wrong in ({}, draft | {"colour": 1}, draft | {"samples": 21}, draft | {"since": "x"}):
            assert reason(project.manage("POST", "/triggers:backtest", json=wrong)) == (400, "INVALID_FIELD")
        path = f"/v1/projects/{project.project_id}/triggers:backtest"
        assert reason(project.request("POST", path, key=stranger.service_key, json=draft)) == (403, "WRONG_PROJECT")


SIGNUP = {"user_id": "u1", "email": "ada@example.com", "provider": "email", "created_at": "2026-01-31T09:00:00Z"}
LOGIN = {"user_id": "u1", "provider": "email", "logged_in_at": "2026-01-31T09:05:00Z"}


class TestAuthEvents:
    async def test_an_auth_service_publishes_in_three_ways(
        self, project: Rest, bus: Client, channel: grpc.aio.Channel
    ) -> None:
        create(project, "auth.signup", conditions=[{"field": "email", "op": "suffix", "value": "@example.com"}])
        create(project, "auth.login")
        for event_type, data in (("auth.signup", SIGNUP), ("auth.login", LOGIN)):
            name = event_type.partition(".")[2]
            for _ in range(2):  # an id makes it one
                publish(project, event_type, data, id=f"{name}-rest", subject="u1", source="auth")
            fields = struct_pb2.Value()
            fields.struct_value.update(data)
            await EventServiceStub(channel).PublishEvents(
                events.PublishEventsRequest(
                    project_id=project.project_id,
                    events=[events_pb2.NewEvent(type=event_type, data=fields, id=f"{name}-grpc", source="auth")],
                ),
                metadata=(("apikey", project.service_key),),
            )
            await bus.jetstream().publish(
                PREFIX + event_type,
                envelope(project, event_type, data, id=f"{name}-nats"),
                headers={"Nats-Msg-Id": f"{project.project_id}:{name}-nats"},
            )
        ended(project, "done", 6)
        for event_type, data in (("auth.signup", SIGNUP), ("auth.login", LOGIN)):
            seen = inputs(project, event_type=event_type)
            assert {each["seen"]["id"].partition("-")[2] for each in seen} == {"rest", "grpc", "nats"}
            assert [each["data"] for each in seen] == [data] * 3
            assert {each["source"] for each in seen} == {"auth"}

    async def test_a_table_of_users_stands_for_one(self, project: Rest, bus: Client) -> None:
        """Changes as the relay publishes them."""
        create(project, "auth.signup", config={"table": "users"})
        create(project, "auth.login", config={"table": "users", "map": {"provider": "via"}})
        schema = f"proj_{project.project_id.replace('-', '')}"
        row = {"id": 7, "email": "ada@example.com", "created_at": "2026-01-31T09:00:00+00:00", "last_sign_in_at": None}
        after = row | {"last_sign_in_at": "2026-02-01T00:00:00+00:00", "via": "google"}
        for op, data, more in (
            ("INSERT", row, {}),
            ("UPDATE", row | {"email": "x@example.com"}, {"old": row, "changed": ["email"]}),
            ("UPDATE", after, {"old": row, "changed": ["last_sign_in_at"]}),
        ):
            change = {"op": op, "schema": schema, "table": "users", "source": "postgres"} | more
            await bus.jetstream().publish(
                f"{PREFIX}cdc.{op}.users", envelope(project, f"cdc.{op}.users", data, **change)
            )
        ended(project, "done", 2)
        (signup,) = inputs(project, event_type="auth.signup")
        assert (signup["type"], signup["seen"]["type"], signup["subject"]) == ("auth.signup", "auth.signup", "7")
        assert signup["data"] == {"user_id": "7", "email": row["email"], "created_at": row["created_at"]}
        assert not signup.keys() & {"op", "table", "schema"}
        (login,) = inputs(project, event_type="auth.login")
        assert login["data"] == {
            "user_id": "7",
            "email": row["email"],
            "provider": "google",
            "logged_in_at": after["last_sign_in_at"],
        }
        explained = project.manage(
            "POST", "/triggers:explain", json={"event": {"type": "cdc.INSERT.users", "data": row}}
        ).json()["triggers"]
        assert [each["verdict"] for each in explained] == ["fires", "type_does_not_match"]


SQL = "export default ({ sql }) => atlas.db.query(sql)"
INSERTS = "export default () => atlas.db.query(`INSERT INTO circle (n) VALUES (1)`)"


def test_rows_that_a_function_writes(project: Rest) -> None:
    """A circle through a table ends; a real table of users signs up."""
    project.run(SQL, {"sql": "CREATE TABLE circle (n int)"}, slug="sql")
    assert project.invoke("sql", {"sql": "CREATE TABLE users (id int, email text)"}).status_code == 200
    create(project, "cdc.INSERT.circle", function_id=project.deployed(INSERTS, slug="again"))
    create(project, "auth.signup", config={"table": "users"})
    assert project.invoke("sql", {"sql": "INSERT INTO users VALUES (7, 'ada@example.com')"}).status_code == 200
    ended(project, "done", 1)
    (signup,) = inputs(project)
    assert signup["data"] == {"user_id": "7", "email": "ada@example.com"}
    begun = project.invoke("sql", {"sql": "INSERT INTO circle VALUES (0)"})
    assert begun.status_code == 200
    (dead,) = ended(project, "dead", 1)
    assert dead["error"]["reason"] == "EVENT_LOOP"
    ended(project, "done", 7, event_type="cdc.INSERT.circle")
    told = project.manage("GET", f"/events/{quote(dead['event_id'], safe='')}/lineage").json()
    assert [each["depth"] for each in told["causes"]] == [*range(8, 0, -1)]
    assert told["causes_complete"] is True
    *_, second, by_hand = told["causes"]
    assert (by_hand["run_id"], by_hand["event_id"]) == (begun.headers["atlas-run-id"], "")
    first = second["event_id"]
    below = project.manage("GET", f"/events/{quote(first, safe='')}/lineage").json()["event"]
    levels = 0
    while below["deliveries"][0]["events"]:
        below, levels = below["deliveries"][0]["events"][0], levels + 1
    assert levels == 7
    assert len(project.record(told["causes"][0]["run_id"])["stopped_events"]) == 1


async def test_a_workflow_that_feeds_itself_is_named(running_stack: Stack, project: Rest) -> None:
    url = postgres.url(running_stack.run / "pg", bootstrap.CONTROL)
    definition = {"nodes": [{"id": "tell", "type": "event", "config": {"type": "order.again"}}], "edges": []}
    async with await psycopg.AsyncConnection.connect(url, autocommit=True) as conn:
        cursor = await conn.execute(
            "INSERT INTO workflow_definitions (project_id, name, definition) VALUES (%s, 'circle', %s) RETURNING id",
            [project.project_id, orjson.dumps(definition).decode()],
        )
        ((workflow_id,),) = await cursor.fetchall()
    given = {"event_type": "order.>", "target_type": "workflow", "workflow_id": str(workflow_id), "enabled": False}
    made = project.manage("POST", "/triggers", json=given).json()
    assert [each["reason"] for each in made["warnings"]] == ["TRIGGER_FEEDS_ITSELF"]
    assert "warnings" not in project.manage("GET", f"/triggers/{made['id']}").json()
