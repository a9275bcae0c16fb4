"""The triggers API as clients meet it, over REST and gRPC through Envoy."""

from collections.abc import Callable
from typing import Any
from uuid import uuid4

import grpc
import httpx
import orjson
import pytest
from google.protobuf import struct_pb2
from google.rpc import error_details_pb2, status_pb2

from atlas.triggers.v1 import triggers_pb2
from atlas.triggers.v1 import triggers_service_pb2 as pb
from atlas.triggers.v1.triggers_service_pb2_grpc import TriggerServiceStub
from server.rpc.status import DETAILS_KEY
from tests.fix_clients import Rest

ORDER = "cdc.INSERT.orders"
MEMBERS = {
    *("id", "project_id", "event_type", "config", "target_type", "function_id", "workflow_id", "conditions", "enabled"),
    *("paused", "retry", "order_key", "concurrency", "created_at", "updated_at"),
}
RETRY = {
    "attempts": 5,
    "backoff_ms": 1000,
    "max_backoff_ms": 300000,
    "max_age_s": 86400,
    "on": ["exception", "wall_limit", "crashed", "overloaded"],
}


class Triggers:
    """Calls the API as one project, which has a function."""

    def __init__(self, rest: Rest) -> None:
        self.rest = rest
        self.function_id = rest.deployed("export default () => 1", slug="answers-events")
        self.order = {"event_type": ORDER, "target_type": "function", "function_id": self.function_id}

    def call(self, method: str, path: str = "", body: Any = None, **options: Any) -> httpx.Response:
        content = body if isinstance(body, bytes) or body is None else orjson.dumps(body)
        return self.rest.manage(method, f"/triggers{path}", content=content, **options)

    def create(self, **fields: Any) -> Any:
        answer = self.call("POST", body=self.order | fields)
        assert answer.status_code == 200, answer.text
        return answer.json()


@pytest.fixture
def triggers(new_project: Callable[..., Rest]) -> Triggers:
    return Triggers(new_project())


def error(answer: httpx.Response) -> tuple[int, str, str]:
    """Status, reason, and the field that is wrong."""
    told = answer.json()["error"]
    fields = [
        violation["field"]
        for detail in told.get("details", ())
        for violation in detail.get("field_violations", detail.get("fieldViolations", ()))
    ]
    return answer.status_code, told["details"][0]["reason"], "".join(fields)


class TestRest:
    def test_a_trigger_lives(self, triggers: Triggers) -> None:
        made = triggers.create()
        assert made.keys() == MEMBERS
        assert (made["event_type"], made["function_id"], made["workflow_id"]) == (ORDER, triggers.function_id, None)
        assert (made["conditions"], made["config"], made["retry"]) == ([], {}, RETRY)
        assert (made["enabled"], made["paused"], made["order_key"], made["concurrency"]) == (True, False, None, None)
        path = f"/{made['id']}"
        assert triggers.call("GET", path).json() == made
        assert triggers.call("GET").json() == {"triggers": [made], "next_page_token": ""}
        changed = triggers.call("PATCH", path, {"order_key": "id", "concurrency": 1, "enabled": False}).json()
        assert (changed["order_key"], changed["concurrency"], changed["enabled"]) == ("id", 1, False)
        cleared = triggers.call("PATCH", path, {"order_key": None, "concurrency": None}).json()
        assert (cleared["order_key"], cleared["concurrency"], cleared["enabled"]) == (None, None, False)
        assert triggers.call("POST", f"{path}:pause").json()["paused"] is True
        assert triggers.call("POST", f"{path}:pause", b"{}").json()["paused"] is True
        assert triggers.call("POST", f"{path}:resume").json()["paused"] is False
        deleted = triggers.call("DELETE", path)
        assert (deleted.status_code, deleted.json()) == (200, {})
        assert error(triggers.call("GET", path))[:2] == (404, "TRIGGER_NOT_FOUND")
        assert error(triggers.call("DELETE", path))[:2] == (404, "TRIGGER_NOT_FOUND")

    def test_digits_and_order_are_kept(self, triggers: Triggers) -> None:
        conditions = rb'[{"value": 12345678901234567890.10, "op": "eq", "field": "n"}]'
        body = orjson.dumps(triggers.order)[:-1] + b', "conditions": ' + conditions + b"}"
        made = triggers.call("POST", body=body)
        assert made.headers["content-type"] == "application/json"
        for answer in (made, triggers.call("GET", f"/{made.json()['id']}"), triggers.call("GET")):
            assert conditions in answer.content

    def test_pages(self, triggers: Triggers) -> None:
        made = [triggers.create()["id"] for _ in range(3)]
        first = triggers.call("GET", params={"page_size": 2}).json()
        second = triggers.call("GET", params={"page_size": 2, "page_token": first["next_page_token"]}).json()
        assert [each["id"] for each in first["triggers"] + second["triggers"]] == made[::-1]
        assert second["next_page_token"] == ""
        assert error(triggers.call("GET", params={"page_size": 201})) == (400, "INVALID_FIELD", "page_size")
        assert error(triggers.call("GET", params={"page_token": "x"})) == (400, "INVALID_FIELD", "page_token")

    @pytest.mark.parametrize(
        ("fields", "field"),
        [
            ({"event_type": "cdc.MERGE.orders"}, "event_type"),
            ({"target_type": "mail"}, "target_type"),
            ({"function_id": "x"}, "function_id"),
            ({"conditions": [{"field": "a", "op": "like", "value": 1}]}, "conditions[0].op"),
            ({"config": {"schedule": "0 * * * *"}}, "config.schedule"),
            ({"event_type": "cron", "config": {"schedule": "often"}}, "config.schedule"),
            ({"retry": {"attempts": 99}}, "retry.attempts"),
            ({"order_key": "a..b"}, "order_key"),
            ({"concurrency": 0}, "concurrency"),
            ({"colour": "red"}, "colour"),
            ({"project_id": "theirs"}, "project_id"),
        ],
    )
    def test_what_is_wrong_is_named_and_changes_nothing(
        self, triggers: Triggers, fields: dict[str, Any], field: str
    ) -> None:
        assert error(triggers.call("POST", body=triggers.order | fields)) == (400, "INVALID_FIELD", field)
        assert triggers.call("GET").json()["triggers"] == []
        made = triggers.create()
        assert error(triggers.call("PATCH", f"/{made['id']}", fields)) == (400, "INVALID_FIELD", field)
        assert triggers.call("GET", f"/{made['id']}").json() == made

    @pytest.mark.parametrize("body", [b"", b"[]", b"{", b'{"a": 1, "a": 2}', b"\xff", b'{"conditions": NaN}', b"{} {}"])
    def test_a_body_that_is_no_object(self, triggers: Triggers, body: bytes) -> None:
        assert error(triggers.call("POST", body=body)) == (400, "INVALID_FIELD", "body")

    def test_a_body_that_is_too_large(self, triggers: Triggers) -> None:
        assert error(triggers.call("POST", body=b" " * 200_000))[:2] == (400, "REQUEST_TOO_LARGE")

    @pytest.mark.parametrize(
        "odd", [rb'"\ud800": 1', rb'"order_key": "\ud800"', rb'"order_key": "\u0000"', rb'"target_type": "\udfff"']
    )
    def test_text_that_utf_8_cannot_hold_is_refused(self, triggers: Triggers, odd: bytes) -> None:
        given = {name: value for name, value in triggers.order.items() if name.encode() not in odd}
        body = orjson.dumps(given)[:-1] + b", " + odd + b"}"
        assert error(triggers.call("POST", body=body))[:2] == (400, "INVALID_FIELD")

    def test_conditions_may_hold_any_json_text(self, triggers: Triggers) -> None:
        conditions = rb'[{"field": "a\ud800", "op": "neq", "value": "\u0000\udfff"}]'
        body = orjson.dumps(triggers.order)[:-1] + b', "conditions": ' + conditions + b"}"
        made = triggers.call("POST", body=body)
        assert made.status_code == 200, made.text
        assert conditions in made.content
        sample = rb'{"event": {"type": "cdc.INSERT.orders", "data": {"a\ud800": "\udfff"}}}'
        (explained,) = triggers.call("POST", ":explain", sample).json()["triggers"]
        assert explained["verdict"] == "fires"

    def test_what_curl_sends_without_a_content_type_is_understood(self, triggers: Triggers) -> None:
        form = {"content-type": "application/x-www-form-urlencoded"}
        assert triggers.call("POST", body=triggers.order, headers=form).status_code == 200

    def test_a_query_changes_nothing_of_the_path(self, triggers: Triggers) -> None:
        made, other = triggers.create(), triggers.create()
        answer = triggers.call("GET", f"/{made['id']}?trigger_id={other['id']}&triggerId={other['id']}")
        assert answer.json()["id"] == made["id"]

    def test_another_project_is_out_of_reach(self, triggers: Triggers, new_project: Callable[..., Rest]) -> None:
        made, mine = triggers.create(), Triggers(new_project())
        path = f"/{made['id']}"
        for method, suffix in (("GET", ""), ("PATCH", ""), ("DELETE", ""), ("POST", ":pause"), ("GET", ":preview")):
            assert error(mine.call(method, path + suffix, b"{}" if method in ("PATCH", "POST") else None))[:2] == (
                404,
                "TRIGGER_NOT_FOUND",
            )
        stolen = {"function_id": triggers.function_id}
        assert error(mine.call("POST", body=mine.order | stolen)) == (400, "TARGET_NOT_FOUND", "function_id")
        own = mine.create()
        assert error(mine.call("PATCH", f"/{own['id']}", stolen)) == (400, "TARGET_NOT_FOUND", "function_id")
        theirs = f"/v1/projects/{triggers.rest.project_id}/triggers"
        answer = mine.rest.request("GET", theirs, key=mine.rest.service_key)
        assert error(answer)[:2] == (403, "WRONG_PROJECT")
        answer = triggers.rest.request("GET", theirs, key=triggers.rest.anon_key)
        assert error(answer)[:2] == (403, "WRONG_ROLE")
        assert triggers.rest.request("GET", theirs).status_code == 401
        assert triggers.call("GET").json()["triggers"] == [made]

    def test_the_next_runs(self, triggers: Triggers) -> None:
        config = {"schedule": "30 2 * * *", "timezone": "Europe/Berlin"}
        body: dict[str, Any] = {"config": config, "count": 2, "after": "2026-03-28T12:00:00Z"}
        answer = triggers.call("POST", ":preview", body)
        assert answer.json() == {
            "timezone": "Europe/Berlin",
            "runs": [
                {"at": "2026-03-29T01:00:00Z", "local": "2026-03-29T03:00:00+02:00"},
                {"at": "2026-03-30T00:30:00Z", "local": "2026-03-30T02:30:00+02:00"},
            ],
        }
        made = triggers.create(event_type="cron", config=config)
        stored = triggers.call("GET", f"/{made['id']}:preview", params={"count": 3}).json()
        assert (stored["timezone"], len(stored["runs"])) == ("Europe/Berlin", 3)
        wrong = {"config": config | {"tz": "UTC"}}
        assert error(triggers.call("POST", ":preview", wrong)) == (400, "INVALID_FIELD", "config.tz")
        assert error(triggers.call("POST", ":preview", {})) == (400, "INVALID_FIELD", "config")
        assert error(triggers.call("POST", ":preview", body | {"zone": 1})) == (400, "INVALID_FIELD", "zone")
        assert error(triggers.call("POST", ":preview", body | {"count": 0.5})) == (400, "INVALID_FIELD", "count")
        plain = triggers.create()
        assert error(triggers.call("GET", f"/{plain['id']}:preview"))[:2] == (400, "TRIGGER_NOT_SCHEDULED")

    def test_why_a_trigger_does_not_fire(self, triggers: Triggers) -> None:
        large = triggers.create(conditions=[{"field": "amount", "op": "gt", "value": 100}])
        held = triggers.create(paused=True)
        other = triggers.create(event_type="order.paid")
        event = {"type": ORDER, "data": {"amount": "99.50"}}
        told = triggers.call("POST", ":explain", {"event": event}).json()
        assert told["left_out"] == 0
        assert [(each["trigger_id"], each["verdict"]) for each in told["triggers"]] == [
            (held["id"], "held"),
            (large["id"], "conditions_do_not_hold"),
            (other["id"], "type_does_not_match"),
        ]
        assert told["triggers"][1] == {
            "trigger_id": large["id"],
            "event_type": ORDER,
            "target_type": "function",
            "target_id": triggers.function_id,
            "enabled": True,
            "paused": False,
            "verdict": "conditions_do_not_hold",
            "why": "not all of its conditions hold",
            "type_matches": True,
            "conditions_hold": False,
            "conditions": [
                {
                    "at": "conditions[0]",
                    "field": "amount",
                    "op": "gt",
                    "wanted": "100",
                    "actual": '"99.50"',
                    "holds": False,
                    "why": '"99.50" is not gt 100',
                }
            ],
        }
        fires = {"event": {"type": ORDER, "data": {"amount": 100.01}}, "trigger_id": large["id"]}
        (one,) = triggers.call("POST", ":explain", fires).json()["triggers"]
        assert (one["verdict"], one["conditions"][0]["actual"]) == ("fires", "100.01")
        wrong = {"event": event | {"payload": 1}}
        assert error(triggers.call("POST", ":explain", wrong)) == (400, "INVALID_FIELD", "event.payload")
        assert error(triggers.call("POST", ":explain", {"data": 1})) == (400, "INVALID_FIELD", "data")
        unknown = fires | {"trigger_id": str(uuid4())}
        assert error(triggers.call("POST", ":explain", unknown))[:2] == (404, "TRIGGER_NOT_FOUND")


def struct(**fields: Any) -> struct_pb2.Struct:
    made = struct_pb2.Struct()
    made.update(fields)
    return made


def listed(*values: Any) -> struct_pb2.ListValue:
    made = struct_pb2.ListValue()
    made.extend(values)
    return made


async def field_of(call: Any) -> str:
    """The field that a refused call names."""
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await call
    assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT, caught.value.details()
    trailers: dict[str, Any] = dict(caught.value.trailing_metadata() or ())
    status = status_pb2.Status.FromString(trailers[DETAILS_KEY])
    bad = error_details_pb2.BadRequest()
    assert any(detail.Unpack(bad) for detail in status.details)
    return str(bad.field_violations[0].field)


class TestGrpc:
    @pytest.fixture
    def client(self, triggers: Triggers, channel: grpc.aio.Channel) -> Callable[..., Any]:
        stub = TriggerServiceStub(channel)

        def call(method: str, **fields: Any) -> Any:
            request = getattr(pb, method + "Request")(project_id=triggers.rest.project_id, **fields)
            return getattr(stub, method)(request, metadata=(("apikey", triggers.rest.service_key),))

        return call

    async def test_a_trigger_lives(self, client: Callable[..., Any], triggers: Triggers) -> None:
        condition = {"field": "amount", "op": "gt", "value": 100.5}
        made = await client(
            "CreateTrigger",
            **triggers.order,
            conditions=listed(condition),
            enabled=False,
            order_key="id",
            concurrency=3,
            retry=triggers_pb2.RetryPolicy(attempts=2, on=triggers_pb2.Outcomes()),
        )
        assert (made.event_type, made.function_id, made.HasField("workflow_id")) == (ORDER, triggers.function_id, False)
        assert (made.enabled, made.paused, made.order_key, made.concurrency) == (False, False, "id", 3)
        assert (made.retry.attempts, made.retry.backoff_ms, [*made.retry.on.outcomes]) == (2, 1000, [])
        assert made.conditions == listed(condition)
        assert await client("GetTrigger", trigger_id=made.id) == made
        assert [*(await client("ListTriggers")).triggers] == [made]
        shown = triggers.call("GET", f"/{made.id}").json()
        assert (shown["conditions"], shown["retry"]["on"]) == ([condition], [])
        kept = await client("UpdateTrigger", trigger_id=made.id, enabled=True)
        assert (kept.enabled, kept.conditions, kept.order_key, kept.concurrency) == (True, made.conditions, "id", 3)
        cleared = await client(
            "UpdateTrigger", trigger_id=made.id, order_key="", concurrency=0, conditions=listed(), enabled=False
        )
        assert (cleared.HasField("order_key"), cleared.HasField("concurrency")) == (False, False)
        assert (len(cleared.conditions.values), cleared.enabled) == (0, False)
        assert (await client("PauseTrigger", trigger_id=made.id)).paused
        assert not (await client("ResumeTrigger", trigger_id=made.id)).paused
        await client("DeleteTrigger", trigger_id=made.id)
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await client("GetTrigger", trigger_id=made.id)
        assert caught.value.code() is grpc.StatusCode.NOT_FOUND

    async def test_what_is_wrong_is_named(self, client: Callable[..., Any], triggers: Triggers) -> None:
        order = triggers.order
        assert await field_of(client("CreateTrigger")) == "event_type"
        assert await field_of(client("CreateTrigger", **order, order_key="")) == "order_key"
        assert await field_of(client("CreateTrigger", **order, concurrency=0)) == "concurrency"
        assert await field_of(client("CreateTrigger", **order, config=struct(table="orders"))) == "config.table"
        nan = listed({"field": "a", "op": "eq", "value": float("nan")})
        assert await field_of(client("CreateTrigger", **order, conditions=nan)) == "conditions"
        zero = triggers_pb2.RetryPolicy(attempts=0)
        assert await field_of(client("CreateTrigger", **order, retry=zero)) == "retry.attempts"

    async def test_preview_and_explain(self, client: Callable[..., Any], triggers: Triggers) -> None:
        config = struct(schedule="@hourly", catch_up_s=3600)
        made = await client("CreateTrigger", **triggers.order | {"event_type": "cron"}, config=config)
        found = await client("PreviewTrigger", trigger_id=made.id, count=2)
        assert found.runs[1].at.seconds - found.runs[0].at.seconds == 3600
        assert await field_of(client("PreviewSchedule")) == "config.schedule"
        assert len((await client("PreviewSchedule", config=config)).runs) == 5
        event = struct(type="cron", trigger_id=made.id)
        (explained,) = (await client("ExplainEvent", event=event)).triggers
        assert (explained.trigger_id, explained.verdict) == (made.id, "fires")
