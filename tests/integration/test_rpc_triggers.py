"""TriggerService over gRPC where it differs from REST: what protobuf cannot hold, and what is nested deep."""

import json
from collections.abc import AsyncIterator, Awaitable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import grpc
import orjson
import pytest
from google.api import httpbody_pb2
from google.protobuf import struct_pb2
from google.protobuf.timestamp_pb2 import Timestamp

from atlas.triggers.v1 import triggers_service_pb2 as pb
from atlas.triggers.v1.triggers_service_pb2_grpc import TriggerServiceStub, add_TriggerServiceServicer_to_server
from server.postgres.control import Pool
from server.projects import Principal
from server.rpc.access import Gate
from server.rpc.boundary import Boundary
from server.rpc.triggers import TriggerService
from server.triggers.diagnosis import Diagnostician
from server.triggers.parsing import MAX_GROUP_DEPTH, MAX_VALUE_DEPTH
from server.triggers.store import Triggers
from tests.fix_triggers import ORDER, StartProcess, add_function

KEY = (("apikey", "the key"),)
NOW = datetime(2026, 1, 31, 9, 0, 30, tzinfo=UTC)


class Clock:
    def now(self) -> datetime:
        return NOW

    def monotonic_s(self) -> float:
        raise AssertionError("nobody measures")


class Client:
    """Calls methods by name with the project's key."""

    def __init__(self, channel: grpc.aio.Channel, project_id: str, function_id: str) -> None:
        self._stub = TriggerServiceStub(channel)
        self._project_id = project_id
        self.order = {"event_type": ORDER, "target_type": "function", "function_id": function_id}

    async def call(self, method: str, **fields: Any) -> Any:
        request = getattr(pb, method + "Request")(project_id=self._project_id, **fields)
        return await getattr(self._stub, method)(request, metadata=KEY)

    async def create(self, **fields: bytes) -> Any:
        """Over REST's method, with JSON texts; the trigger as JSON."""
        texts = {name: orjson.Fragment(value) for name, value in fields.items()}
        body = httpbody_pb2.HttpBody(data=orjson.dumps(self.order | texts))
        return json.loads((await self.call("CreateTriggerHttp", body=body)).data)


@pytest.fixture
async def client(pool: Pool, project_id: str, start_process: StartProcess, tmp_path: Path) -> AsyncIterator[Client]:
    class Keys:
        async def authenticate(self, secret: str) -> Principal:
            return Principal(project_id=project_id, role="service", tier="free", key_id="k")

    changes = (await start_process()).changes
    server = grpc.aio.server()
    service = TriggerService(Triggers(pool, changes), Diagnostician(pool), Clock())
    Boundary(server, Gate(Keys(), "a" * 40)).add(add_TriggerServiceServicer_to_server, service)
    address = f"unix:{tmp_path}/s"
    server.add_insecure_port(address)
    await server.start()
    async with grpc.aio.insecure_channel(address) as channel:
        yield Client(channel, project_id, await add_function(pool, project_id))
    await server.stop(0)


def nested(levels: int) -> bytes:
    """Conditions of as many groups as are allowed, around a value of so many levels."""
    value = b"[" * levels + b"1" + b"]" * levels
    condition = b'{"field": "a", "op": "eq", "value": ' + value + b"}"
    for _ in range(MAX_GROUP_DEPTH):
        condition = b'{"all": [' + condition + b"]}"
    return b"[" + condition + b"]"


async def code_of(call: Awaitable[Any]) -> grpc.StatusCode:
    try:
        await call
    except grpc.aio.AioRpcError as error:
        return error.code()
    return grpc.StatusCode.OK


async def test_conditions_as_deep_as_allowed_can_be_read_by_every_client(client: Client) -> None:
    codes = [
        await code_of(client.create(conditions=nested(levels)))
        for levels in range(1, MAX_VALUE_DEPTH + MAX_GROUP_DEPTH)
    ]
    taken = codes.count(grpc.StatusCode.OK)
    assert codes == [grpc.StatusCode.OK] * taken + [grpc.StatusCode.INVALID_ARGUMENT] * (len(codes) - taken)
    assert 0 < taken < len(codes)
    assert len((await client.call("ListTriggers", page_size=200)).triggers) == taken


async def test_lone_surrogates_become_question_marks_in_messages(client: Client) -> None:
    made = await client.create(conditions=rb'[{"field": "a", "op": "eq", "value": "\ud800"}]')
    typed = await client.call("GetTrigger", trigger_id=made["id"])
    assert typed.conditions.values[0].struct_value.fields["value"].string_value == "?"
    event = struct_pb2.Struct()
    event.update({"type": ORDER, "data": {"a": "?"}})
    (explained,) = (await client.call("ExplainEvent", event=event)).triggers
    assert explained.verdict == "conditions_do_not_hold"


async def test_a_preview_begins_now_or_when_one_says(client: Client) -> None:
    config = struct_pb2.Struct()
    config.update({"schedule": "@hourly"})
    (run,) = (await client.call("PreviewSchedule", config=config, count=1)).runs
    assert (run.at.ToDatetime(UTC), run.local) == (datetime(2026, 1, 31, 10, tzinfo=UTC), "2026-01-31T10:00:00+00:00")
    later = Timestamp(seconds=int(datetime(2030, 1, 1, tzinfo=UTC).timestamp()))
    (run,) = (await client.call("PreviewSchedule", config=config, count=1, after=later)).runs
    assert run.local == "2030-01-01T01:00:00+00:00"
    never = client.call("PreviewSchedule", config=config, after=Timestamp(seconds=2**60))
    assert await code_of(never) is grpc.StatusCode.INVALID_ARGUMENT


@pytest.mark.parametrize("after", ["9999-12-31T23:59:59Z", "0001-01-01T00:00:00Z", "1969-12-31T23:59:59Z"])
async def test_a_preview_does_not_begin_at_the_ends_of_time(client: Client, after: str) -> None:
    told = orjson.dumps({"config": {"schedule": "@hourly", "timezone": "Europe/Berlin"}, "after": after})
    call = client.call("PreviewScheduleHttp", body=httpbody_pb2.HttpBody(data=told))
    assert await code_of(call) is grpc.StatusCode.INVALID_ARGUMENT
