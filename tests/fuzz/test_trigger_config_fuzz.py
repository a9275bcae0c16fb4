"""Whatever somebody writes as config is refused by name or understood; whatever row comes is seen or passed over."""

from typing import Any

import orjson
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from server.errors import InvalidArgument
from server.events.envelope import decode, encode
from server.triggers.bridge import Bridge, bridge_of
from server.triggers.conditions import evaluate
from server.triggers.configuration import require_config
from server.triggers.row_changes import restrictions
from server.triggers.view import envelope_of
from tests.unit.test_trigger_config import change

names = st.text(max_size=8) | st.sampled_from(["id", "email", "a.b", "$x", "\\"])
values: st.SearchStrategy[Any] = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(max_size=6),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(names, inner, max_size=3),
    max_leaves=6,
)
keys = st.sampled_from(["table", "map", "login_column", "operations", "columns", "schedule", "x"])
types = st.sampled_from(["auth.signup", "auth.login", "auth.>", "cdc.>", "cdc.*.a", "cdc.INSERT.a", "cdc.gap", "o.x"])
slowly = settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])


@slowly
@given(types, st.dictionaries(keys, values, max_size=3))
def test_any_config_is_refused_by_name_or_understood(event_type: str, config: dict[str, Any]) -> None:
    try:
        require_config(event_type, config)
    except InvalidArgument as why:
        field = why.field or ""
    else:
        field = "config"
    assert field.startswith("config")


@slowly
@given(values, values, st.lists(st.sampled_from(["id", "email", "seen"]), max_size=2))
def test_any_row_is_seen_or_passed_over(row: Any, old: Any, changed: list[str]) -> None:
    for event_type, op in (("auth.signup", "INSERT"), ("auth.login", "UPDATE")):
        bridge = bridge_of(event_type, {"table": "users", "map": {"metadata": "email"}})
        assert isinstance(bridge, Bridge)
        try:
            event = change(op, row, table="users", old=old, changed=tuple(changed))
        except (orjson.JSONEncodeError, TypeError):
            return  # more than 64 bits: the event could not come like this
        seen = bridge.event(event)
        if seen is not None:
            assert decode(encode(seen)) == seen
            assert isinstance(seen.data.value["user_id"], str)
            assert envelope_of(seen)["data"] == (bridge.seen(envelope_of(event)) or {})["data"]


@slowly
@given(st.text(min_size=1, max_size=12))
def test_a_column_of_any_name_is_found(name: str) -> None:
    try:
        (condition,) = restrictions("cdc.UPDATE.a", {"columns": [name]}).values()
    except InvalidArgument:
        return
    event = {"type": "cdc.UPDATE.a", "op": "UPDATE", "data": {name: 1}, "old": {name: 2}, "changed": [name]}
    assert evaluate(condition, event)
    assert not evaluate(condition, event | {"old": {name: 1}})
