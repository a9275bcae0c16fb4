"""Hostile definitions are refused with a place, and never with anything else; templates fill in or are refused."""

import json
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from server.errors import InvalidArgument
from server.events.json_text import read
from server.workflows.definition import Definition
from server.workflows.graph import ancestors, cycle
from server.workflows.parsing import TYPES, parse
from server.workflows.templates import Filling, Scope, TooLarge, compiled, dumped

TEXT = st.text(max_size=12) | st.sampled_from(
    [
        "{{trigger}}",
        "{{trigger.a}}",
        "{{steps.a.output}}",
        "{{steps.b.error.reason}}",
        "{{run.id}}",
        r"\{{",
        "{{",
        "}}",
        "x{{",
        "a",
        "b",
    ]
)
SCALARS = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | TEXT
JSON = st.recursive(
    SCALARS, lambda inner: st.lists(inner, max_size=4) | st.dictionaries(TEXT, inner, max_size=4), max_leaves=12
)
NAMES = (
    *("function", "function_id", "input", "url", "method", "headers", "body", "conditions", "seconds", "until"),
    *("type", "data", "subject", "op", "key", "value", "ttl_seconds", "fail_on_status"),
)
IDS = st.sampled_from(["a", "b", "c"]) | SCALARS
CONDITIONS = st.lists(
    st.fixed_dictionaries(
        {"field": TEXT | st.sampled_from(["trigger.a", "steps.a.output"]), "op": st.sampled_from(["eq", "in", "x"])},
        optional={"value": JSON},
    ),
    max_size=2,
)
CONFIG = st.dictionaries(st.sampled_from(NAMES), JSON | CONDITIONS, max_size=4) | JSON
NODES = st.fixed_dictionaries(
    {"id": IDS, "type": st.sampled_from([*TYPES]) | SCALARS},
    optional={"config": CONFIG, "retry": JSON, "timeout_seconds": SCALARS, "on_error": SCALARS},
)
EDGES = st.fixed_dictionaries({"source": IDS, "target": IDS}, optional={"branch": SCALARS, "id": SCALARS})
DEFINITIONS = JSON | st.fixed_dictionaries(
    {"nodes": st.lists(NODES | JSON, max_size=4)},
    optional={"edges": st.lists(EDGES | JSON, max_size=5), "version": SCALARS},
)


@given(DEFINITIONS)
@settings(max_examples=300, deadline=None)
def test_a_definition_is_right_or_refused_with_its_place(value: Any) -> None:
    try:
        found = parse(read(json.dumps(value).encode()))
    except InvalidArgument as why:
        place = why.field or "nowhere"
    else:
        place = "definition"
        _require_sound(found)
    assert place.startswith("definition")


def _require_sound(found: Definition) -> None:
    assert cycle(found.edges) == ()
    upstream = ancestors(found)
    for node in found.nodes.values():
        assert node.reads <= upstream[node.id]


@given(st.text() | st.lists(TEXT, max_size=6).map("".join), JSON)
@settings(max_examples=300, deadline=None)
def test_a_template_is_filled_in_or_refused(text: str, data: Any) -> None:
    scope = Scope(event={"id": "e", "data": data}, steps={"a": {"output": data}}, run={"id": "r"})
    try:
        template = compiled(text, "config")
    except InvalidArgument:
        return
    try:
        filled = Filling(scope, 10_000).fill(template)
    except TooLarge:
        return
    assert json.loads(dumped(filled)) is not NotImplemented
    if "{{" not in text:
        assert filled == text
