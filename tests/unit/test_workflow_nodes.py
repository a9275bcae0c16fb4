"""What each type of node does in one attempt, around what it asks."""

import base64
from collections.abc import Sequence
from contextlib import AbstractAsyncContextManager, nullcontext
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import uuid4

import orjson
import pytest

from engines.contract import HostError, Outcome, Response, Result
from server.errors import FunctionFailed, InvalidArgument, NotFound, ResourceExhausted, Unavailable
from server.events.envelope import Event
from server.events.json_text import read
from server.events.publisher import Published
from server.invocations.invoke import Call, Finished
from server.workflows.definition import MAX_INPUT_BYTES, Node
from server.workflows.nodes.condition import ConditionNode
from server.workflows.nodes.delay import DelayNode
from server.workflows.nodes.event import EventNode
from server.workflows.nodes.function import FunctionNode
from server.workflows.nodes.http import HttpNode
from server.workflows.nodes.kv import KeyValueNode
from server.workflows.nodes.step import Attempt, NodeType, Output, StepFailed, Wait
from server.workflows.parsing import parse
from server.workflows.templates import Filling, Scope

NOW = datetime(2026, 5, 1, 12, tzinfo=UTC)
PROJECT, RUN, TRIGGER, FUNCTION = (str(uuid4()) for _ in range(4))
EVENT: dict[str, Any] = {"id": "e", "type": "order.paid", "data": {"amount": 150, "url": "https://a.b/x"}}


def attempt(node_type: str, config: dict[str, Any], *, event: dict[str, Any] | None = None, **more: Any) -> Attempt:
    nodes = [{"id": "n", "type": node_type, "config": config}]
    node: Node = parse(read(orjson.dumps({"nodes": nodes}))).nodes["n"]
    scope = Scope(event=EVENT if event is None else event, steps={}, run={"id": RUN})
    filled = node.config if node_type == "condition" else Filling(scope, MAX_INPUT_BYTES).fill(node.config)
    fields: dict[str, Any] = {"attempt": 1, "lease": "lease", "now": NOW, "trigger_id": TRIGGER} | more
    return Attempt(project_id=PROJECT, tier="free", run_id=RUN, node=node, input=filled, scope=scope, **fields)


async def output(node: NodeType, what: Attempt) -> Any:
    got = await node.run(what)
    assert isinstance(got, Output)
    return orjson.loads(got.json)


async def failed(node: NodeType, what: Attempt) -> StepFailed:
    with pytest.raises(StepFailed) as caught:
        await node.run(what)
    return caught.value


class Invoker:
    def __init__(self, answer: Result | Exception) -> None:
        self.answer = answer
        self.calls: list[Call] = []

    async def invoke(self, call: Call) -> Finished:
        self.calls.append(call)
        if isinstance(self.answer, Exception):
            raise self.answer
        return Finished(call.run_id, self.answer)

    async def slug(self, project_id: str, function_id: str) -> str:
        if (project_id, function_id) != (PROJECT, FUNCTION):
            raise NotFound("The project has no such function", reason="FUNCTION_NOT_FOUND")
        return "hello"


class TestFunction:
    async def test_it_is_called_by_slug_or_id_with_the_event_unless_told_otherwise(self) -> None:
        invoker = Invoker(Result(outcome=Outcome.OK, value=b'{"x": 1}'))
        node = FunctionNode(invoker, invoker)
        assert await output(node, attempt("function", {"function": "hello"})) == {"x": 1}
        assert await output(node, attempt("function", {"function_id": FUNCTION, "input": [1, "{{run.id}}"]})) == {
            "x": 1
        }
        first, second = invoker.calls
        assert (first.slug, orjson.loads(first.body.data)) == ("hello", EVENT)
        assert (second.slug, orjson.loads(second.body.data)) == ("hello", [1, RUN])
        assert first.event is not None
        assert orjson.loads(first.event) == {
            "id": "e",
            "type": "order.paid",
            "trigger_id": TRIGGER,
            "attempt": 1,
            "workflow": {"run_id": RUN, "node_id": "n"},
        }
        assert (first.function_id, second.function_id) == (None, FUNCTION)
        assert (first.project_id, first.tier, first.trigger, first.body.kind) == (PROJECT, "free", "workflow", "json")

    async def test_each_attempt_is_a_run_of_its_own(self) -> None:
        one, same = (attempt("function", {"function": "hello"}, lease="a") for _ in range(2))
        other = attempt("function", {"function": "hello"}, lease="b")
        assert one.invocation_id == same.invocation_id != other.invocation_id
        assert one.name == other.name

    @pytest.mark.parametrize(
        ("body", "content_type", "told"),
        [
            (b'{"a":1}', "application/json", {"a": 1}),
            (b'{"a":', "application/json", '{"a":'),
            (b"text", "text/plain", "text"),
            (b"\xff\x00", "image/png", {"base64": "/wA="}),
        ],
    )
    async def test_a_response_is_told_with_its_status(self, body: bytes, content_type: str, told: object) -> None:
        response = Response(status=201, headers=(("content-type", content_type),), body=body)
        invoker = Invoker(Result(outcome=Outcome.OK, response=response))
        assert await output(FunctionNode(invoker, invoker), attempt("function", {"function": "hello"})) == {
            "status": 201,
            "headers": {"content-type": content_type},
            "body": told,
        }

    @pytest.mark.parametrize(
        ("error", "again", "no_room"),
        [
            (FunctionFailed("it threw", reason="FUNCTION_EXCEPTION"), True, False),
            (FunctionFailed("it cannot be loaded", reason="FUNCTION_LOAD_FAILED"), False, False),
            (ResourceExhausted("too much fuel", reason="FUEL_LIMIT"), False, False),
            (ResourceExhausted("too much memory", reason="MEMORY_LIMIT"), True, False),
            (NotFound("none", reason="FUNCTION_NOT_FOUND"), False, False),
            (Unavailable("no room", reason="OVERLOADED"), True, True),
        ],
    )
    async def test_which_failures_are_tried_again(self, error: Exception, again: bool, no_room: bool) -> None:
        invoker = Invoker(error)
        why = await failed(FunctionNode(invoker, invoker), attempt("function", {"function": "hello"}))
        assert (why.again, why.no_room, why.message) == (again, no_room, str(error))

    async def test_one_of_another_project_is_not_there(self) -> None:
        invoker = Invoker(Result(outcome=Outcome.OK))
        why = await failed(FunctionNode(invoker, invoker), attempt("function", {"function_id": str(uuid4())}))
        assert (why.reason, why.again, invoker.calls) == ("FUNCTION_NOT_FOUND", False, [])


class Fetcher:
    def __init__(self, answer: Any) -> None:
        self.answer = answer
        self.asked: tuple[object, Any] = (None, None)

    def turn(self, project_id: str, *, within_s: float) -> AbstractAsyncContextManager[None]:
        return nullcontext()

    async def fetch(self, project_id: str, url: object, options: object, *, timeout_ms: float, in_turn: bool) -> bytes:
        assert (project_id, in_turn) == (PROJECT, True)
        self.asked = url, options
        if isinstance(self.answer, Exception):
            raise self.answer
        return orjson.dumps(self.answer)


def answered(status: int, body: bytes = b"", content_type: str = "application/json") -> dict[str, Any]:
    return {
        "status": status,
        "headers": [["content-type", content_type]],
        "body_base64": base64.b64encode(body).decode(),
    }


class TestHttp:
    async def test_a_post_with_templates(self) -> None:
        fetcher = Fetcher(answered(200, b'{"ok":true}'))
        config = {
            "url": "{{trigger.url}}?r={{run.id}}",
            "method": "POST",
            "headers": {"X-Amount": "{{trigger.amount}}", "Authorization": "Bearer t"},
            "body": {"amount": "{{trigger.amount}}"},
        }
        what = attempt("http", config)
        assert await output(HttpNode(fetcher), what) == {
            "status": 200,
            "headers": {"content-type": "application/json"},
            "body": {"ok": True},
        }
        url, options = fetcher.asked
        assert (url, options["method"]) == (f"https://a.b/x?r={RUN}", "POST")
        assert base64.b64decode(options["body_base64"]) == b'{"amount":150}'
        assert dict(options["headers"]) == {
            "x-amount": "150",
            "authorization": "Bearer t",
            "idempotency-key": what.name,
            "content-type": "application/json",
        }

    async def test_text_is_sent_as_text_and_own_headers_stay(self) -> None:
        fetcher = Fetcher(answered(200, b"fine", "text/plain"))
        headers = {"Idempotency-Key": "mine", "Content-Type": "text/csv"}
        config = {"url": "https://a.b", "method": "PUT", "headers": headers, "body": "é"}
        assert (await output(HttpNode(fetcher), attempt("http", config)))["body"] == "fine"
        assert dict(fetcher.asked[1]["headers"]) == {"idempotency-key": "mine", "content-type": "text/csv"}
        assert base64.b64decode(fetcher.asked[1]["body_base64"]) == "é".encode()

    async def test_a_get_is_plain(self) -> None:
        fetcher = Fetcher(answered(204))
        await output(HttpNode(fetcher), attempt("http", {"url": "https://a.b"}))
        assert fetcher.asked[1]["headers"] == []
        assert "body_base64" not in fetcher.asked[1]

    @pytest.mark.parametrize(("status", "again"), [(400, False), (404, False), (408, True), (429, True), (503, True)])
    async def test_statuses_fail_unless_told_otherwise(self, status: int, again: bool) -> None:
        node = HttpNode(Fetcher(answered(status, b"{}")))
        why = await failed(node, attempt("http", {"url": "https://a.b"}))
        assert (why.reason, why.again) == ("HTTP_STATUS", again)
        told = await output(node, attempt("http", {"url": "https://a.b", "fail_on_status": False}))
        assert told["status"] == status

    @pytest.mark.parametrize(
        ("code", "reason", "again"),
        [
            ("fetch_blocked", "HTTP_BLOCKED", False),
            ("fetch_failed", "HTTP_FAILED", True),
            ("fetch_timeout", "HTTP_TIMEOUT", True),
            ("invalid_argument", "HTTP_INVALID_ARGUMENT", False),
        ],
    )
    async def test_what_fetch_refuses(self, code: str, reason: str, again: bool) -> None:
        why = await failed(HttpNode(Fetcher(HostError(code, "why"))), attempt("http", {"url": "https://a.b"}))
        assert (why.reason, why.again) == (reason, again)

    @pytest.mark.parametrize(
        "config", [{"url": "{{trigger.data}}"}, {"url": "https://a.b", "headers": {"a": "{{trigger}}"}}]
    )
    async def test_what_templates_made_no_text_of(self, config: dict[str, Any]) -> None:
        why = await failed(HttpNode(Fetcher(answered(200))), attempt("http", config))
        assert (why.reason, why.again) == ("HTTP_INVALID_ARGUMENT", False)


@pytest.mark.parametrize(
    ("condition", "holds"),
    [
        ({"field": "trigger.amount", "op": "gt", "value": 100}, True),
        ({"field": "trigger.data.amount", "op": "lt", "value": 100}, False),
        ({"field": "trigger.type", "op": "eq", "value": "order.paid"}, True),
        ({"not": {"field": "trigger.none", "op": "exists"}}, True),
        ({"field": "run.id", "op": "eq", "value": RUN}, True),
    ],
)
async def test_a_condition_sees_what_templates_see(condition: dict[str, Any], holds: bool) -> None:
    got = await ConditionNode().run(attempt("condition", {"conditions": [condition]}))
    assert (got.branch, got.json) == (holds, orjson.dumps(holds))


class TestDelay:
    async def test_it_waits_and_then_is_over(self) -> None:
        what = attempt("delay", {"seconds": 90})
        assert await DelayNode().run(what) == Wait(NOW + timedelta(seconds=90))
        over = attempt("delay", {"seconds": 90}, wake_at=NOW)
        assert await output(DelayNode(), over) == {"until": "2026-05-01T12:00:00Z"}
        early = attempt("delay", {"seconds": 90}, wake_at=NOW + timedelta(seconds=1))
        assert await DelayNode().run(early) == Wait(NOW + timedelta(seconds=1))

    @pytest.mark.parametrize(
        ("until", "waits_s"),
        [("2026-05-01T13:00:00+01:00", 0), ("2020-01-01T00:00:00Z", 0), ("2026-05-02T12:00:00Z", 86400)],
    )
    async def test_until(self, until: str, waits_s: int) -> None:
        assert await DelayNode().run(attempt("delay", {"until": until})) == Wait(NOW + timedelta(seconds=waits_s))

    @pytest.mark.parametrize(
        "config", [{"until": "2026-07-01T12:00:00Z"}, {"until": "{{trigger.amount}}"}, {"seconds": "{{trigger.id}}"}]
    )
    async def test_what_makes_no_sense(self, config: dict[str, Any]) -> None:
        assert (await failed(DelayNode(), attempt("delay", config))).reason == "DELAY_INVALID"


class Publisher:
    def __init__(self, error: Exception | None = None) -> None:
        self.error = error
        self.events: list[Event] = []

    async def publish(self, events: Sequence[Event]) -> list[Published]:
        self.events += events
        if self.error is not None:
            raise self.error
        return [Published(event.id, 1, len(self.events) > 1) for event in events]


class TestEvent:
    async def test_a_repeated_step_publishes_the_same_event(self) -> None:
        publisher, config = (
            Publisher(),
            {"type": "a.{{trigger.amount}}", "data": {"n": "{{trigger.amount}}"}, "subject": "s"},
        )
        for number in (1, 2):
            what = attempt("event", config, attempt=number, lease=str(number))
            told = await output(EventNode(publisher), what)
            assert told == {"id": what.name, "type": "a.150", "duplicate": number == 2}
        one, two = publisher.events
        assert (one.id, one.data.text, one.subject, one.source) == (two.id, '{"n":150}', "s", "workflow")
        assert one.cause is not None
        assert (one.cause.run_id, one.cause.trigger_id, one.cause.depth) == (RUN, TRIGGER, 1)

    async def test_it_is_one_deeper_than_its_cause(self) -> None:
        publisher = Publisher()
        caused = {"cause": {"run_id": RUN, "depth": 4}}
        await EventNode(publisher).run(attempt("event", {"type": "a"}, event=caused))
        assert publisher.events[0].cause is not None
        assert publisher.events[0].cause.depth == 5
        deep = {"cause": {"run_id": RUN, "depth": 1000}}
        why = await failed(EventNode(publisher), attempt("event", {"type": "a"}, event=deep))
        assert (why.reason, "loop" in why.message) == ("EVENT_INVALID", True)

    @pytest.mark.parametrize(
        ("config", "event", "reason"),
        [
            ({"type": "{{trigger.t}}"}, {"data": {"t": "cron"}}, "EVENT_TYPE_RESERVED"),
            ({"type": "{{trigger.t}}"}, {"data": {"t": 5}}, "EVENT_INVALID"),
            ({"type": "a", "data": ["{{trigger.t}}"]}, {"data": {"t": "x" * 1_000_000}}, "EVENT_TOO_LARGE"),
            ({"type": "a", "subject": "{{trigger.t}}"}, {"data": {"t": ""}}, "EVENT_INVALID"),
        ],
        ids=repr,
    )
    async def test_what_templates_made_no_event_of(self, config: Any, event: Any, reason: str) -> None:
        why = await failed(EventNode(Publisher()), attempt("event", config, event=event))
        assert (why.reason, why.again) == (reason, False)

    async def test_data_nested_deeper_than_an_event_may_be(self) -> None:
        data: Any = 1
        for _ in range(63):
            data = [data]
        why = await failed(
            EventNode(Publisher()),
            attempt("event", {"type": "a", "data": [["{{trigger.t}}"]]}, event={"data": {"t": data}}),
        )
        assert why.reason == "EVENT_INVALID"

    @pytest.mark.parametrize(
        ("error", "again"),
        [
            (Unavailable("away", reason="EVENT_BUS_UNAVAILABLE"), True),
            (InvalidArgument(None, "large", reason="EVENT_TOO_LARGE"), False),
        ],
    )
    async def test_a_bus_that_is_away_is_no_attempt(self, error: Exception, again: bool) -> None:
        why = await failed(EventNode(Publisher(error)), attempt("event", {"type": "a"}))
        assert (why.again, why.no_room) == (again, again)


class Keys:
    def __init__(self, error: Exception | None = None) -> None:
        self.error = error
        self.kept: dict[tuple[str, object], Any] = {}
        self.ttl_s: float | None = None

    async def get(self, project_id: str, key: object) -> bytes:
        if self.error is not None:
            raise self.error
        return orjson.dumps(self.kept.get((project_id, key)))

    async def set(self, project_id: str, key: object, value: object, ttl_s: float | None) -> None:
        self.kept[project_id, key] = orjson.loads(orjson.dumps(value))
        self.ttl_s = ttl_s

    async def delete(self, project_id: str, key: object) -> bool:
        return self.kept.pop((project_id, key), None) is not None


class TestKeyValue:
    async def test_set_get_delete(self) -> None:
        keys = Keys()
        node = KeyValueNode(keys)
        value = {"op": "set", "key": "k/{{trigger.id}}", "value": ["{{trigger.amount}}"], "ttl_seconds": 5}
        assert await output(node, attempt("kv", value)) is None
        assert (keys.kept, keys.ttl_s) == ({(PROJECT, "k/e"): [150]}, 5)
        assert await output(node, attempt("kv", {"op": "get", "key": "k/e"})) == [150]
        assert await output(node, attempt("kv", {"op": "delete", "key": "k/e"})) is True
        assert await output(node, attempt("kv", {"op": "delete", "key": "k/e"})) is False

    @pytest.mark.parametrize(
        ("code", "again", "no_room"),
        [("invalid_argument", False, False), ("unavailable", True, True), ("kv_full", True, False)],
    )
    async def test_what_the_store_refuses(self, code: str, again: bool, no_room: bool) -> None:
        node = KeyValueNode(Keys(HostError(code, "why")))
        why = await failed(node, attempt("kv", {"op": "get", "key": "k"}))
        assert (why.again, why.no_room) == (again, no_room)

    async def test_numbers_that_the_store_cannot_hold(self) -> None:
        what = attempt("kv", {"op": "set", "key": "k", "value": "{{trigger.n}}"}, event={"data": {"n": 2**70}})
        assert (await failed(KeyValueNode(Keys()), what)).reason == "KV_INVALID_ARGUMENT"
