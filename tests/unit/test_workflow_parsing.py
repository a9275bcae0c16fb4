"""Definitions as they are written: what is wrong is named by its place."""

import json
from typing import Any

import pytest

from server.errors import InvalidArgument
from server.events.json_text import read
from server.workflows.definition import Definition, Retry
from server.workflows.parsing import parse


def definition(nodes: list[Any], edges: list[Any] | None = None, **more: Any) -> dict[str, Any]:
    return {"nodes": nodes, "edges": edges or [], **more}


def kv(node_id: str, **more: Any) -> dict[str, Any]:
    return {"id": node_id, "type": "kv", "config": {"op": "get", "key": "k"}, **more}


def check(node_id: str = "check") -> dict[str, Any]:
    conditions = [{"field": "trigger.amount", "op": "gt", "value": 1}]
    return {"id": node_id, "type": "condition", "config": {"conditions": conditions}}


def parsed(value: Any) -> Definition:
    return parse(read(json.dumps(value).encode()))


def edge(source: str, target: str, **more: Any) -> dict[str, Any]:
    return {"source": source, "target": target, **more}


def test_a_definition_with_every_type_and_its_defaults() -> None:
    found = parsed(
        definition(
            [
                check(),
                {"id": "f", "type": "function", "config": {"function": "hello"}},
                {"id": "h", "type": "http", "config": {"url": "https://example.com/{{trigger.id}}", "method": "post"}},
                {"id": "d", "type": "delay", "config": {"seconds": 3}},
                {"id": "e", "type": "event", "config": {"type": "order.paid", "data": {"was": "{{steps.f.output}}"}}},
                kv("k", retry={"attempts": 3, "backoff_ms": 100_000}, on_error="continue", timeout_seconds=2),
            ],
            [
                edge("check", "f", branch=True, id="a"),
                edge("check", "h", branch=False, id="b"),
                *(edge("f", "d"), edge("h", "d"), edge("d", "e"), edge("e", "k")),
            ],
            version=1,
        )
    )
    assert [*found.nodes] == ["check", "f", "h", "d", "e", "k"]
    assert (found.nodes["f"].timeout_s, found.nodes["h"].timeout_s) == (300, 30)
    assert found.nodes["f"].retry == Retry()
    assert found.nodes["k"].retry == Retry(attempts=3, backoff_ms=100_000, max_backoff_ms=100_000)
    assert (found.nodes["k"].on_error, found.nodes["k"].timeout_s) == ("continue", 2)
    assert found.nodes["e"].reads == {"f"}
    assert [each.branch for each in found.into["h"]] == [False]


@pytest.mark.parametrize(
    ("value", "field", "says"),
    [
        ([], "definition", "an array; it must be an object"),
        ({}, "definition.nodes", "missing"),
        (definition([]), "definition.nodes", "has 0 items; it must have 1 to 200"),
        (definition([kv(f"n{n}") for n in range(201)]), "definition.nodes", "has 201 items"),
        (definition([kv("a")], version=2), "definition.version", "must be 1"),
        (definition([kv("a")], version=True), "definition.version", "must be 1"),
        (definition([kv("a")], steps=[]), "definition.steps", 'unknown member "steps"'),
        (definition(["a"]), "definition.nodes[0]", "a string; it must be an object"),
        (definition([{"type": "kv"}]), "definition.nodes[0].id", "missing"),
        (definition([kv("a b")]), "definition.nodes[0].id", '"a b"; it must be 1 to 64 letters'),
        (definition([kv("")]), "definition.nodes[0].id", "1 to 64"),
        (definition([kv("a"), kv("a")]), "definition.nodes[1].id", "the id of another node"),
        (
            definition([kv("a") | {"type": "sql"}]),
            "definition.nodes[0].type",
            '"sql"; it must be one of function, http',
        ),
        (definition([kv("a", color="red")]), "definition.nodes[0].color", 'unknown member "color"'),
        (definition([kv("a", on_error="ignore")]), "definition.nodes[0].on_error", "one of fail, continue"),
        (definition([kv("a", on_error=None)]), "definition.nodes[0].on_error", "null"),
        (definition([kv("a", retry={"attempts": 21})]), "definition.nodes[0].retry.attempts", "from 1 to 20"),
        (definition([kv("a", retry={"attempts": 1.5})]), "definition.nodes[0].retry.attempts", "whole number"),
        (definition([kv("a", retry={"attempts": True})]), "definition.nodes[0].retry.attempts", "true"),
        (definition([kv("a", retry={"times": 1})]), "definition.nodes[0].retry.times", "unknown member"),
        (
            definition([kv("a", retry={"backoff_ms": 500, "max_backoff_ms": 400})]),
            "definition.nodes[0].retry.max_backoff_ms",
            "from 500",
        ),
        (definition([kv("a", timeout_seconds=0.5)]), "definition.nodes[0].timeout_seconds", "from 1 to 3600"),
        (
            definition([{"id": "a", "type": "http", "config": {"url": "http://a.b"}, "timeout_seconds": 61}]),
            "definition.nodes[0].timeout_seconds",
            "from 1 to 60",
        ),
        (definition([kv("a")], "x"), "definition.edges", "a string; it must be an array"),  # type: ignore[arg-type]
        (definition([kv("a")], [edge("a", "b")]), "definition.edges[0].target", '"b"; there is no such node'),
        (definition([kv("a")], [edge("b", "a")]), "definition.edges[0].source", '"b"; there is no such node'),
        (definition([kv("a")], [{"source": "a"}]), "definition.edges[0].target", "missing"),
        (definition([kv("a")], [edge("a", "a", when=1)]), "definition.edges[0].when", "unknown member"),
        (definition([kv("a")], [edge("a", "a")]), "definition.edges", "cycle a → a"),
        (
            definition([kv("a"), kv("b"), kv("c"), kv("d")], [edge("a", "b"), edge("b", "c"), edge("c", "b")]),
            "definition.edges",
            "cycle b → c → b",
        ),
        (definition([kv("a"), kv("b")], [edge("a", "b"), edge("a", "b")]), "definition.edges[1]", "the same edge as"),
        (
            definition([kv("a"), kv("b"), kv("c")], [edge("a", "b", id="x"), edge("a", "c", id="x")]),
            "definition.edges[1].id",
            "another edge",
        ),
        (definition([check(), kv("b")], [edge("check", "b")]), "definition.edges[0].branch", "missing; it must say"),
        (
            definition([check(), kv("b")], [edge("check", "b", branch="true")]),
            "definition.edges[0].branch",
            "true or false",
        ),
        (definition([kv("a"), kv("b")], [edge("a", "b", branch=True)]), "definition.edges[0].branch", "only edges out"),
    ],
)
def test_what_is_wrong_with_the_graph(value: Any, field: str, says: str) -> None:
    with pytest.raises(InvalidArgument) as caught:
        parsed(value)
    assert (caught.value.field, says in caught.value.message) == (field, True), caught.value.message


@pytest.mark.parametrize(
    ("node_type", "config", "member", "says"),
    [
        ("function", {}, "", "either function, a slug, or function_id"),
        ("function", {"function": "a", "function_id": "b"}, "", "either"),
        ("function", {"function": "a b"}, ".function", "must be a slug"),
        ("function", {"function": 1}, ".function", "a number; it must be a string"),
        ("function", {"function_id": "x"}, ".function_id", "must be a UUID"),
        ("function", {"function": "a", "arguments": []}, ".arguments", "unknown member"),
        ("function", {"function": "a", "input": {"x": ["{{trigger"]}}, ".input.x[0]", "ends with }}"),
        ("function", {"function": "a", "input": "{{env.KEY}}"}, ".input", "begins with one of trigger, steps, run"),
        ("function", {"function": "a", "input": "{{$old.x}}"}, ".input", "begins with one of"),
        ("function", {"function": "a", "input": "{{}}"}, ".input", "0 characters"),
        ("function", {"function": "a", "input": "{{steps.x}}"}, ".input", "steps.ID.output"),
        ("function", {"function": "a", "input": "{{steps.x.input}}"}, ".input", "steps.ID.output"),
        ("function", {"function": "a", "input": "{{run.secret}}"}, ".input", "run.id alone"),
        ("function", {"function": "a", "input": "{{trigger.a..b}}"}, ".input", "names with a dot"),
        ("function", {"function": "a", "input": "{{trigger.a | upper}} {{1+1}}"}, ".input", "begins with one of"),
        ("function", {"function": "a", "input": "{{steps.b.output}}"}, "", "reads steps.b, which does not exist"),
        ("function", {"function": "a", "input": "{{steps.n.output}}"}, "", "is not upstream of it"),
        ("function", "x", "", "must be an object"),
        ("http", {}, ".url", "missing"),
        ("http", {"url": "ftp://a.b"}, ".url", "must begin with http"),
        ("http", {"url": "https://u:p@a.b"}, ".url", "credentials"),
        ("http", {"url": "https://a.b", "method": "TRACE"}, ".method", "one of GET"),
        ("http", {"url": "https://a.b", "headers": []}, ".headers", "must be an object"),
        ("http", {"url": "https://a.b", "headers": {"a": 1}}, ".headers.a", "must be a string"),
        ("http", {"url": "https://a.b", "body": 1}, ".body", "a GET request cannot have one"),
        ("http", {"url": "https://a.b", "fail_on_status": 1}, ".fail_on_status", "true or false"),
        ("condition", {}, ".conditions", "missing"),
        ("condition", {"conditions": []}, ".conditions", "has 0 items"),
        ("condition", {"conditions": [{"field": "trigger.a", "op": "is", "value": 1}]}, ".conditions[0].op", "one of"),
        ("condition", {"conditions": [{"field": "a", "op": "eq", "value": 1}]}, ".conditions", "begins with one of"),
        ("condition", {"conditions": [{"field": "$old.a", "op": "eq", "value": 1}]}, ".conditions", "begins with"),
        ("condition", {"conditions": [{"field": "trigger.a", "op": "changed"}]}, ".conditions", "only triggers know"),
        (
            "condition",
            {"conditions": [{"any": [{"field": "steps.q.output", "op": "exists"}]}]},
            "",
            "steps.q, which does not exist",
        ),
        ("delay", {}, "", "either seconds or until"),
        ("delay", {"seconds": 1, "until": "x"}, "", "either"),
        ("delay", {"seconds": -1}, ".seconds", "from 0 to 2592000"),
        ("delay", {"seconds": 2_592_001}, ".seconds", "from 0 to 2592000"),
        ("delay", {"seconds": "soon"}, ".seconds", "a string"),
        ("delay", {"until": "tomorrow"}, ".until", "must be a time"),
        ("event", {"data": 1}, ".type", "missing"),
        ("event", {"type": "cdc.INSERT.orders"}, ".type", "made by the service alone"),
        ("event", {"type": "a b"}, ".type", "tokens"),
        ("event", {"type": "a", "subject": ""}, ".subject", "missing"),
        ("kv", {"op": "incr", "key": "a"}, ".op", "one of get, set, delete"),
        ("kv", {"op": "get"}, ".key", "missing"),
        ("kv", {"op": "get", "key": ""}, ".key", "1 to 512 bytes"),
        ("kv", {"op": "get", "key": "a", "value": 1}, ".value", "unknown member"),
        ("kv", {"op": "set", "key": "a"}, ".value", "missing"),
        ("kv", {"op": "set", "key": "a", "value": 1, "ttl_seconds": 0}, ".ttl_seconds", "from 0.001"),
    ],
)
def test_what_is_wrong_with_a_configuration(node_type: str, config: Any, member: str, says: str) -> None:
    with pytest.raises(InvalidArgument) as caught:
        parsed(definition([{"id": "n", "type": node_type, "config": config}]))
    field = f"definition.nodes[0].config{member}"
    assert (caught.value.field, says in caught.value.message) == (field, True), caught.value.message


def test_a_definition_has_a_bound() -> None:
    with pytest.raises(InvalidArgument, match="at most 262144 are allowed"):
        parsed(definition([kv("a") | {"config": {"op": "set", "key": "k", "value": "x" * 300_000}}]))


def test_a_node_may_read_whatever_is_upstream_however_far() -> None:
    reads = {"id": "c", "type": "kv", "config": {"op": "set", "key": "k", "value": "{{steps.a.error.message}}"}}
    parsed(definition([kv("a"), kv("b"), reads], [edge("a", "b"), edge("b", "c")]))
    with pytest.raises(InvalidArgument, match="not upstream"):
        parsed(definition([kv("a"), kv("b"), reads], [edge("b", "c")]))
