"""Publishing as clients meet it, over REST and gRPC through Envoy; what arrives is read from the stream itself."""

import uuid
from collections.abc import Callable
from typing import Any

import grpc
import httpx
import orjson
import pytest
from google.protobuf.timestamp_pb2 import Timestamp
from google.rpc import error_details_pb2, status_pb2
from nats.js import JetStreamContext

from atlas.events.v1 import events_pb2
from atlas.events.v1 import events_service_pb2 as pb
from atlas.events.v1.events_service_pb2_grpc import EventServiceStub
from server.events import stream
from server.events.envelope import Event
from tests.fix_clients import Rest


class Events:
    """Publishes by REST as one project."""

    def __init__(self, rest: Rest) -> None:
        self.rest = rest
        self.path = f"/v1/projects/{rest.project_id}/events"

    def publish(self, body: Any, *, key: str | None = None, path: str = "", **options: Any) -> httpx.Response:
        content = body if isinstance(body, bytes) else orjson.dumps(body)
        return self.rest.request(
            "POST", path or self.path, key=key or self.rest.service_key, content=content, **options
        )


@pytest.fixture
def events(rest: Rest) -> Events:
    return Events(rest)


def error(answer: httpx.Response) -> tuple[int, str, str]:
    """Status, reason, and the field that is wrong."""
    told = answer.json()["error"]
    fields = [
        violation["field"]
        for detail in told.get("details", ())
        for violation in detail.get("field_violations", detail.get("fieldViolations", ()))
    ]
    return answer.status_code, told["details"][0]["reason"], "".join(fields)


async def event_at(jetstream: JetStreamContext, sequence: int) -> Event:
    message = await jetstream.get_msg(stream.NAME, sequence)
    assert message.subject is not None
    assert message.data is not None
    return stream.event_of(message.subject, message.data)


class TestRest:
    async def test_one_event_arrives_as_it_was_written(
        self, events: Events, rest: Rest, jetstream: JetStreamContext
    ) -> None:
        data = b'{"z": 12345678901234567890123, "a": 1.10}'
        answer = events.publish(b'{"type": "order.paid", "data": ' + data + b', "subject": "o/1", "id": "first"}')
        assert answer.status_code == 200, answer.text
        assert answer.headers["content-type"] == "application/json"
        assert answer.json() == {"id": "first", "sequence": answer.json()["sequence"], "duplicate": False}
        event = await event_at(jetstream, answer.json()["sequence"])
        assert (event.id, event.type, event.project_id) == ("first", "order.paid", rest.project_id)
        assert (event.source, event.subject, event.data.text) == ("api", "o/1", data.decode())

    async def test_a_batch_is_answered_in_order(self, events: Events, jetstream: JetStreamContext) -> None:
        answer = events.publish({"events": [{"type": f"many.n{number}", "data": number} for number in range(100)]})
        assert answer.status_code == 200, answer.text
        told = answer.json()["events"]
        assert [(await event_at(jetstream, item["sequence"])).type for item in told] == [
            f"many.n{number}" for number in range(100)
        ]

    def test_an_id_is_stored_once_for_its_project(self, events: Events, new_project: Callable[..., Rest]) -> None:
        event = {"type": "order.paid", "data": None, "id": str(uuid.uuid4())}
        first, second = events.publish(event).json(), events.publish(event).json()
        assert second == {**first, "duplicate": True}
        theirs = Events(new_project()).publish(event).json()
        assert (theirs["duplicate"], theirs["id"]) == (False, event["id"])

    def test_what_curl_sends_without_a_content_type_is_understood(self, events: Events) -> None:
        form = {"content-type": "application/x-www-form-urlencoded"}
        assert events.publish({"type": "a", "data": 1}, headers=form).status_code == 200

    def test_who_may_publish(self, events: Events, rest: Rest, new_project: Callable[..., Rest]) -> None:
        event, other = {"type": "a", "data": 1}, new_project()
        assert rest.request("POST", events.path, json=event).status_code == 401
        assert error(events.publish(event, key=rest.anon_key))[:2] == (403, "WRONG_ROLE")
        assert error(events.publish(event, key=rest.admin_key))[:2] == (403, "WRONG_ROLE")
        assert error(events.publish(event, key=other.service_key))[:2] == (403, "WRONG_PROJECT")
        named = f"{events.path}?project_id={other.project_id}"
        assert error(events.publish(event, path=named))[:2] == (403, "WRONG_PROJECT")
        inside = {**event, "project_id": other.project_id}
        assert error(events.publish(inside)) == (400, "INVALID_FIELD", "project_id")

    @pytest.mark.parametrize(
        ("body", "reason", "field"),
        [
            (b"", "INVALID_FIELD", "body"),
            (b"{", "INVALID_FIELD", "body"),
            ({"type": "a b", "data": 1}, "INVALID_FIELD", "type"),
            ({"type": "cdc.INSERT.orders", "data": 1}, "EVENT_TYPE_RESERVED", "type"),
            ({"type": "cron", "data": 1}, "EVENT_TYPE_RESERVED", "type"),
            ({"type": "a"}, "INVALID_FIELD", "data"),
            ({"events": [{"type": "a", "data": 1}, {"type": "", "data": 1}]}, "INVALID_FIELD", "events[1].type"),
            ({"events": [{"type": "a", "data": 1}] * 101}, "INVALID_FIELD", "events"),
            ({"type": "a", "data": "x" * 1_000_000}, "EVENT_TOO_LARGE", "data"),
            ({"type": "a", "data": "x" * 3_000_000}, "REQUEST_TOO_LARGE", "body"),
            (b'{"type": "a", "data": ' + b"[" * 5_000 + b"]" * 5_000 + b"}", "INVALID_FIELD", "body"),
        ],
        ids=lambda value: repr(value)[:40],
    )
    async def test_what_is_wrong_is_named_and_nothing_stored(
        self, events: Events, jetstream: JetStreamContext, body: Any, reason: str, field: str
    ) -> None:
        before = (await jetstream.stream_info(stream.NAME)).state.last_seq
        assert error(events.publish(body)) == (400, reason, field)
        assert (await jetstream.stream_info(stream.NAME)).state.last_seq == before


class TestGrpc:
    async def publish(self, channel: grpc.aio.Channel, rest: Rest, *new: events_pb2.NewEvent, key: str = "") -> Any:
        request = pb.PublishEventsRequest(project_id=rest.project_id, events=new)
        return await EventServiceStub(channel).PublishEvents(request, metadata=(("apikey", key or rest.service_key),))

    async def test_events_arrive(self, channel: grpc.aio.Channel, rest: Rest, jetstream: JetStreamContext) -> None:
        event = events_pb2.NewEvent(type="order.paid", source="shop", time=Timestamp(seconds=1, nanos=5_000))
        event.data.struct_value.fields["amount"].number_value = 99.5
        told = await self.publish(channel, rest, event, events_pb2.NewEvent(type="empty", id=str(uuid.uuid4())))
        assert [item.duplicate for item in told.events] == [False, False]
        stored = await event_at(jetstream, told.events[0].sequence)
        assert (stored.id, stored.source, stored.data.value) == (told.events[0].id, "shop", {"amount": 99.5})
        assert stored.time.isoformat() == "1970-01-01T00:00:01.000005+00:00"
        assert (await event_at(jetstream, told.events[1].sequence)).data.value is None

    @pytest.mark.parametrize(
        ("new", "reason", "field"),
        [
            ([], "INVALID_FIELD", "events"),
            ([events_pb2.NewEvent(type="a")] * 101, "INVALID_FIELD", "events"),
            (
                [events_pb2.NewEvent(type="a"), events_pb2.NewEvent(type="cron")],
                "EVENT_TYPE_RESERVED",
                "events[1].type",
            ),
            ([events_pb2.NewEvent(type="a", time=Timestamp(seconds=2**62))], "INVALID_FIELD", "events[0].time"),
            ([events_pb2.NewEvent(type="a", subject="x" * 2_200_000)], "REQUEST_TOO_LARGE", "body"),
        ],
        ids=lambda value: repr(value)[:30],
    )
    async def test_what_is_wrong_is_named(
        self, channel: grpc.aio.Channel, rest: Rest, new: list[events_pb2.NewEvent], reason: str, field: str
    ) -> None:
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await self.publish(channel, rest, *new)
        assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT
        info, bad = error_details_pb2.ErrorInfo(), error_details_pb2.BadRequest()
        trailers = dict(caught.value.trailing_metadata() or ())
        details = status_pb2.Status.FromString(trailers["grpc-status-details-bin"]).details
        assert details[0].Unpack(info)
        assert details[1].Unpack(bad)
        assert (info.reason, bad.field_violations[0].field) == (reason, field)

    async def test_an_anon_key_may_not_publish(self, channel: grpc.aio.Channel, rest: Rest) -> None:
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await self.publish(channel, rest, events_pb2.NewEvent(type="a"), key=rest.anon_key)
        assert caught.value.code() is grpc.StatusCode.PERMISSION_DENIED
