"""What a function is told of its call."""

import uuid
from dataclasses import replace

import orjson

from server.invocations.invoke import Body, Call, Request, _invocation


def call(request: Request) -> Call:
    return Call(project_id="p", tier=None, slug="f", body=Body(kind="json", data=b"1"), request=request)


def test_the_context_names_request_project_and_invocation() -> None:
    request = Request(method="PUT", path="/a", query={"q": "1"}, headers={"x": "y"})
    made = _invocation(call(request), b'{"A":"1"}')
    assert orjson.loads(made.context) == {
        "request": {"method": "PUT", "path": "/a", "query": {"q": "1"}, "headers": {"x": "y"}},
        "invocation_id": made.id,
        "project_id": "p",
        "env": {"A": "1"},
    }
    assert (made.input, made.input_kind) == (b"1", "json")


def test_ids_are_random_uuids() -> None:
    ids = [uuid.UUID(_invocation(call(Request()), b"{}").id) for _ in range(200)]
    assert len(set(ids)) == len(ids)
    assert {(found.version, found.variant) for found in ids} == {(4, uuid.RFC_4122)}
    assert {str(found)[19] for found in ids} == set("89ab")


def test_the_event_that_a_run_answers_is_in_its_context() -> None:
    made = _invocation(replace(call(Request()), event=b'{"id":"1"}'), b"{}")
    assert orjson.loads(made.context)["event"] == {"id": "1"}
