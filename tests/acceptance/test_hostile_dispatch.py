"""What strangers send to the ledger's API and to the stream: answered or parked, and nothing behind it waits."""

import base64
import re
import secrets
from collections.abc import AsyncIterator, Callable
from typing import Any

import nats
import orjson
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from nats.aio.client import Client

from server.events.stream import PREFIX
from tests.fix_clients import Rest, eventually
from tests.fix_up import Stack

COUNTS = "export default (event) => event.data"
names = st.sampled_from(["ids", "trigger", "event_type", "outcome", "reason", "since", "until", "page_token", "x"])
values = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**63), 2**63) | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=3),
    max_leaves=5,
)
bodies = st.binary(max_size=60) | st.dictionaries(names, values, max_size=3).map(orjson.dumps)
asked = st.dictionaries(
    st.sampled_from(
        ["trigger", "event", "event_type", "state", "outcome", "since", "until", "page_size", "page_token"]
    ),
    st.text(st.characters(codec="utf-8"), max_size=12),
    min_size=1,
    max_size=3,
)
several = settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


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


@several
@given(bodies)
def test_any_body_of_a_replay_is_answered(rest: Rest, body: bytes) -> None:
    answer = rest.manage("POST", "/deliveries:replay", content=body)
    assert answer.status_code in (200, 400), answer.text
    if answer.status_code == 400:
        assert answer.json()["error"]["code"] == "invalid_argument"


@several
@given(asked)
def test_any_parameters_of_a_list_are_answered(rest: Rest, wanted: dict[str, str]) -> None:
    answer = rest.manage("GET", "/deliveries", params=wanted)
    assert answer.status_code in (200, 400), answer.text
    if answer.status_code == 400:
        assert answer.json()["error"]["code"] == "invalid_argument"


async def test_what_is_no_event_is_parked_and_holds_nothing_up(project: Rest, bus: Client) -> None:
    trigger = {
        "event_type": "order.>",
        "target_type": "function",
        "function_id": project.deployed(COUNTS, slug="counts"),
    }
    assert project.manage("POST", "/triggers", json=trigger).status_code == 200
    family = f"order.h{secrets.token_hex(4)}"
    least = {
        "id": "e",
        "type": family,
        "project_id": project.project_id,
        "time": "2026-03-01T12:00:00Z",
        "source": "x",
        "data": 1,
    }
    strange: list[bytes] = [
        b"",
        b"\xff\xfe\0",
        b"[" * 100_000,
        b'{"data": 1',
        b"null",
        orjson.dumps({**least, "project_id": "x"}),
        orjson.dumps({**least, "type": "order.other"}),
        orjson.dumps({**least, "id": "a b"}),
        orjson.dumps({**least, "time": "yesterday"}),
        orjson.dumps({**least, "cause": {"depth": -1}}),
        b'{"id": "\\ud800", "data": 1}',
        b"x" * 200_000,
    ]
    jetstream = bus.jetstream()
    for body in strange:
        await jetstream.publish(PREFIX + family, body)
    await jetstream.publish(PREFIX + f"{family}.%00.ä", b"{}")
    await jetstream.publish(PREFIX + family, orjson.dumps({**least, "id": "good"}))

    def done() -> Any:
        return project.manage("GET", "/deliveries", params={"state": "done"}).json()["deliveries"]

    assert [item["event_id"] for item in eventually(done)] == ["good"]

    def parked() -> list[Any]:
        answer = project.request("GET", "/v1/parked-messages", key=project.admin_key, params={"page_size": 200})
        return [item for item in answer.json()["messages"] if item["subject"].startswith(PREFIX + family)]

    found = eventually(lambda: len(parked()) > len(strange) and parked())
    kept = {item["body"].encode() if item["encoding"] == "utf-8" else base64.b64decode(item["body"]) for item in found}
    assert kept == {body[: 64 * 1024] for body in (*strange, b"{}")}
    assert all(item["reason"] for item in found)
    assert max(item["body_bytes"] for item in found) == 200_000
