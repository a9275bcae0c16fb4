"""Any bytes are a filter of dead letters or InvalidArgument, and so are any fields of it, and any parameters of a list;
whatever lies in the ledger can be shown."""

import contextlib
import json

import orjson
from google.protobuf import json_format
from hypothesis import given, settings
from hypothesis import strategies as st

from server.dispatch.deliveries import Filter, where
from server.dispatch.delivery import OUTCOMES, STATES
from server.dispatch.parked_messages import ParkedMessage
from server.dispatch.replay import DeadLetters
from server.errors import InvalidArgument
from server.paging import EARLIEST, Place, Request, request
from server.rpc.deliveries import parse_filter
from server.rpc.parked_messages import message_of
from tests.fix_ledger import NOW

ID = "5f0f9f0e-0000-4000-8000-000000000001"
NAMES = ["ids", "trigger", "event_type", "eventType", "outcome", "reason", "since", "until", "page_token", "projectId"]
values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=3),
    max_leaves=6,
)
odd = st.sampled_from([ID, [ID, ID], "ok", "lost", "order.paid", "2026-03-01T00:00:00.5Z", "\ud800", "\0", 10**400])
texts = st.sampled_from([ID, ID.upper(), *STATES, *OUTCOMES, "order.paid", "", "'", "%s", "\0", "\ud800"]) | st.text()


@given(st.binary(max_size=40))
def test_any_bytes(body: bytes) -> None:
    with contextlib.suppress(InvalidArgument):
        parse_filter(body)


@settings(max_examples=400)
@given(st.dictionaries(st.sampled_from(NAMES) | st.text(max_size=3), odd | values, max_size=4), st.booleans())
def test_any_members(named: dict[str, object], ascii_only: bool) -> None:
    body = json.dumps(named, ensure_ascii=ascii_only).encode("utf-8", "surrogatepass")
    try:
        parsed = parse_filter(body)
    except InvalidArgument:
        return
    known = {json_name.name for json_name in parsed.DESCRIPTOR.fields} | {"eventType"}
    assert set(orjson.loads(body)) <= known
    assert "project_id" not in json_format.MessageToDict(parsed, preserving_proto_field_name=True)


@given(st.lists(texts, max_size=3), texts, texts, texts, texts)
def test_any_fields(ids: list[str], trigger: str, event_type: str, outcome: str, reason: str) -> None:
    wanted = DeadLetters(ids=ids, trigger=trigger, event_type=event_type, outcome=outcome, reason=reason)
    try:
        checked = wanted.checked()
    except InvalidArgument:
        return
    assert checked.checked() == checked
    for text in (*checked.ids, checked.trigger, checked.event_type, checked.reason):
        assert "\0" not in text.encode().decode()


@given(texts, texts, texts, texts, texts)
def test_any_parameters_of_a_list(trigger: str, event: str, event_type: str, state: str, outcome: str) -> None:
    wanted = Filter(trigger=trigger, event=event, event_type=event_type, state=state, outcome=outcome)
    try:
        checked = wanted.checked()
    except InvalidArgument:
        return
    clauses, given_values = where(checked)
    assert clauses.count("%s") == len(given_values)
    assert clauses.replace("%s", "").count("'") == 2 * (bool(state) + bool(outcome))
    assert not any("\0" in str(value) for value in given_values)


@given(st.integers(-(2**63), 2**63 - 1), st.text(max_size=20))
def test_a_forged_token_is_refused_or_a_place(order: int, name: str) -> None:
    token = Request(name, 1, EARLIEST).token(Place(order, ID))
    with contextlib.suppress(InvalidArgument):
        assert request(name, 0, token).after.moment.year > 0
    with contextlib.suppress(InvalidArgument):
        request(f"{name}.", 0, token)
        raise AssertionError("a token of another list")


@given(st.binary(max_size=12), st.integers(0, 3), st.integers(0, 2**63 - 1), st.text(max_size=5))
def test_any_message_that_is_parked_is_shown(body: bytes, cut: int, sequence: int, reason: str) -> None:
    whole = len(body) + cut
    told = message_of(
        ParkedMessage(
            sequence=sequence,
            subject="atlasdb.events.x",
            reason=reason.encode("utf-8", "replace").decode(),
            body=body,
            body_bytes=whole,
            parked_at=NOW,
        )
    )
    assert told.encoding in ("utf-8", "base64")
    if told.encoding == "utf-8":
        assert body.startswith(told.body.encode())
        assert cut or told.body.encode() == body
    json_format.MessageToJson(told)
