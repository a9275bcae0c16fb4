"""DeliveryService and ParkedMessageService over a real gRPC channel: messages, REST twins, and errors as statuses."""

from collections.abc import AsyncIterator, Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from uuid import uuid4

import grpc
import orjson
import pytest
from google.api import httpbody_pb2
from google.protobuf.timestamp_pb2 import Timestamp

from atlas.deliveries.v1 import deliveries_pb2, deliveries_service_pb2_grpc, parked_messages_service_pb2_grpc
from atlas.deliveries.v1 import deliveries_service_pb2 as pb
from atlas.deliveries.v1 import parked_messages_service_pb2 as parked_pb
from server.dispatch.cancel import Canceller
from server.dispatch.deliveries import Deliveries
from server.dispatch.parked_messages import ParkedMessages
from server.dispatch.replay import Replayer
from server.postgres.changes import Changes
from server.postgres.control import Pool, transaction
from server.projects import Principal
from server.rpc.access import Gate
from server.rpc.boundary import Boundary
from server.rpc.deliveries import DeliveryService
from server.rpc.parked_messages import ParkedMessageService
from server.rpc.values import timestamp
from server.runs import rows
from server.runs.record import RunRecord
from tests.fix_ledger import EVENT_BODY, an_attempt, put_delivery, put_parked
from tests.fix_runs import a_record

ADMIN = "admin-key-of-at-least-32-characters"
T0 = datetime(2026, 3, 1, tzinfo=UTC)


class Keys:
    def __init__(self, project_id: str) -> None:
        self._principal = Principal(project_id=project_id, role="service", tier="free", key_id=str(uuid4()))

    async def authenticate(self, secret: str) -> Principal | None:
        return self._principal if secret == "k" else None


class NothingRuns:
    async def cancel(self, project_id: str, run_id: str) -> RunRecord | None:
        return None


Call = Callable[[str, Any], Any]


@pytest.fixture
async def call(pool: Pool, changes: Changes, project_id: str, stack_dir: Path) -> AsyncIterator[Call]:
    """Calls a method by name with a key of the project, or of ParkedMessageService with the admin key."""
    server = grpc.aio.server()
    boundary = Boundary(server, Gate(Keys(project_id), ADMIN))
    service = DeliveryService(Deliveries(pool), Replayer(pool, changes), Canceller(pool, changes, NothingRuns()))
    boundary.add(deliveries_service_pb2_grpc.add_DeliveryServiceServicer_to_server, service)
    boundary.add(
        parked_messages_service_pb2_grpc.add_ParkedMessageServiceServicer_to_server,
        ParkedMessageService(ParkedMessages(pool)),
    )
    socket = stack_dir / f"{uuid4().hex[:8]}.sock"
    server.add_insecure_port(f"unix:{socket}")
    await server.start()
    async with grpc.aio.insecure_channel(f"unix:{socket}") as channel:
        deliveries = deliveries_service_pb2_grpc.DeliveryServiceStub(channel)
        parked = parked_messages_service_pb2_grpc.ParkedMessageServiceStub(channel)

        async def make(method: str, request: Any) -> Any:
            stub, key = (parked, ADMIN) if hasattr(parked, method) else (deliveries, "k")
            return await getattr(stub, method)(request, metadata=(("apikey", key),), timeout=20)

        yield make
    await server.stop(None)


async def test_a_delivery_as_a_message(call: Call, pool: Pool, project_id: str, trigger_id: str) -> None:
    record = a_record(project_id, outcome="exception")
    async with transaction(pool) as conn:
        await rows.finish(conn, [record])
    delivery_id = await put_delivery(
        pool,
        project_id,
        trigger_id,
        event_id="e1",
        order_key="customer 7",
        created_at=T0,
        finished_at=T0,
        replays=2,
        replayed_at=T0,
        attempts=1,
        history=[an_attempt(run_id=record.run.id, began_at=T0.isoformat(), ended_at=T0.isoformat())],
    )
    shown = await call("GetDelivery", pb.GetDeliveryRequest(project_id=project_id, delivery_id=delivery_id))
    boom = deliveries_pb2.DeliveryError(reason="FUNCTION_EXCEPTION", message="boom")
    run = shown.history[0].run
    assert (run.id, run.outcome, run.metrics.host_calls, len(run.logs)) == (record.run.id, "exception", 2, 0)
    assert shown == deliveries_pb2.Delivery(
        id=delivery_id,
        project_id=project_id,
        trigger_id=trigger_id,
        event_id="e1",
        event_type="order.paid",
        state="dead",
        outcome="exception",
        error=boom,
        order_key="customer 7",
        attempts=1,
        replays=2,
        replayed_at=timestamp(T0),
        created_at=timestamp(T0),
        finished_at=timestamp(T0),
        history=[
            deliveries_pb2.Attempt(
                number=1,
                run_id=record.run.id,
                began_at=timestamp(T0),
                ended_at=timestamp(T0),
                outcome="exception",
                error=boom,
                run=run,
            )
        ],
        event=EVENT_BODY.decode(),
    )
    listing = await call("ListDeliveries", pb.ListDeliveriesRequest(project_id=project_id, since=timestamp(T0)))
    shown.ClearField("event")
    del shown.history[:]
    assert list(listing.deliveries) == [shown]


async def test_the_twin_for_rest_has_the_event_byte_for_byte(
    call: Call, pool: Pool, project_id: str, trigger_id: str
) -> None:
    with_event = await put_delivery(pool, project_id, trigger_id)
    without = await put_delivery(pool, project_id, trigger_id, body=None)
    answer = await call("GetDeliveryHttp", pb.GetDeliveryHttpRequest(project_id=project_id, delivery_id=with_event))
    assert answer.content_type == "application/json"
    assert b'"event":' + EVENT_BODY in answer.data
    told = orjson.loads(answer.data)
    assert (told["id"], told["replays"], told["history"][0]["error"]["message"]) == (with_event, 0, "boom")
    assert "due_at" not in told
    answer = await call("GetDeliveryHttp", pb.GetDeliveryHttpRequest(project_id=project_id, delivery_id=without))
    assert "event" not in orjson.loads(answer.data)


async def test_replaying_and_cancelling(call: Call, pool: Pool, project_id: str, trigger_id: str) -> None:
    one, other = [await put_delivery(pool, project_id, trigger_id) for _ in range(2)]
    again = await call("ReplayDelivery", pb.ReplayDeliveryRequest(project_id=project_id, delivery_id=one))
    assert (again.state, again.replays, again.HasField("due_at"), len(again.history)) == ("queued", 1, True, 1)
    ended = await call("CancelDelivery", pb.CancelDeliveryRequest(project_id=project_id, delivery_id=one))
    assert (ended.state, ended.error.reason) == ("cancelled", "CANCELLED")
    all_of_it = pb.ReplayDeliveriesRequest(
        project_id=project_id, ids=[one, other], since=Timestamp(seconds=1), outcome="exception"
    )
    assert await call("ReplayDeliveries", all_of_it) == pb.ReplayDeliveriesResponse(replayed=1)


@pytest.mark.parametrize(
    ("body", "replayed"),
    [
        (b"{}", 2),
        (b'{"ids": []}', 2),
        (b'{"outcome": "lost"}', 1),
        (b'{"event_type": "order.paid", "since": "2026-01-01T00:00:00Z", "until": null}', 2),
        (b'{"until": "2026-01-01T00:00:00Z"}', 0),
    ],
)
async def test_a_filter_as_json(
    call: Call, pool: Pool, project_id: str, trigger_id: str, body: bytes, replayed: int
) -> None:
    await put_delivery(pool, project_id, trigger_id, outcome="lost")
    await put_delivery(pool, project_id, trigger_id)
    assert (await call("ReplayDeliveriesHttp", _http(project_id, body))).replayed == replayed


@pytest.mark.parametrize(
    ("body", "field"),
    [
        (b"", "body"),
        (b"{", "body"),
        (b"[]", "body"),
        (b"null", "body"),
        (b'{"triger": "x"}', "body"),
        (b'{"trigger": 1}', "body"),
        (b'{"since": "yesterday"}', "body"),
        (b'{"since": "0000-01-01T00:00:00Z"}', "body"),
        (b'{"trigger": "x"}', "trigger"),
        (b'{"project_id": "x"}', "project_id"),
        (b'{"projectId": "x"}', "project_id"),
        (b'{"page_token": "x"}', "page_token"),
        (b'{"ids": ["' + b"x" * 200_000 + b'"]}', "body"),
        (b"[" * 100_000, "body"),
    ],
    ids=lambda value: repr(value)[:40],
)
async def test_a_filter_that_is_none_replays_nothing(
    call: Call, pool: Pool, project_id: str, trigger_id: str, body: bytes, field: str
) -> None:
    delivery_id = await put_delivery(pool, project_id, trigger_id)
    with pytest.raises(grpc.aio.AioRpcError) as raised:
        await call("ReplayDeliveriesHttp", _http(project_id, body))
    assert raised.value.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert field in (raised.value.details() or "").lower()
    kept = await call("GetDelivery", pb.GetDeliveryRequest(project_id=project_id, delivery_id=delivery_id))
    assert kept.state == "dead"


@pytest.mark.parametrize(
    ("method", "fields", "code"),
    [
        ("ListDeliveries", {"state": "fine"}, grpc.StatusCode.INVALID_ARGUMENT),
        ("ListDeliveries", {"page_size": 201}, grpc.StatusCode.INVALID_ARGUMENT),
        ("ListDeliveries", {"until": Timestamp(seconds=2**60)}, grpc.StatusCode.INVALID_ARGUMENT),
        ("GetDelivery", {"delivery_id": "x"}, grpc.StatusCode.INVALID_ARGUMENT),
        ("GetDeliveryHttp", {"delivery_id": str(uuid4())}, grpc.StatusCode.NOT_FOUND),
        ("ReplayDelivery", {"delivery_id": str(uuid4())}, grpc.StatusCode.NOT_FOUND),
        ("CancelDelivery", {"delivery_id": str(uuid4())}, grpc.StatusCode.NOT_FOUND),
        ("ReplayDeliveries", {"since": Timestamp(seconds=2**60)}, grpc.StatusCode.INVALID_ARGUMENT),
        ("GetDelivery", {"delivery_id": str(uuid4()), "project_id": str(uuid4())}, grpc.StatusCode.PERMISSION_DENIED),
    ],
)
async def test_what_is_refused(
    call: Call, project_id: str, method: str, fields: dict[str, Any], code: grpc.StatusCode
) -> None:
    request = getattr(pb, f"{method}Request")(**{"project_id": project_id, **fields})
    with pytest.raises(grpc.aio.AioRpcError) as raised:
        await call(method, request)
    assert raised.value.code() is code


async def test_parked_messages(call: Call, pool: Pool) -> None:
    await put_parked(pool, 7, b"\xff\0", parked_at=T0)
    await put_parked(pool, 8, "{ü\0".encode(), body_bytes=100, parked_at=T0)
    listing = await call("ListParkedMessages", parked_pb.ListParkedMessagesRequest())
    assert list(listing.messages) == [
        parked_pb.ParkedMessage(
            sequence=sequence,
            subject="atlasdb.events.odd",
            reason="The message is not an event",
            body=body,
            encoding=encoding,
            body_bytes=size,
            parked_at=timestamp(T0),
        )
        for sequence, body, encoding, size in ((8, "{ü\0", "utf-8", 100), (7, "/wA=", "base64", 2))
    ]


def _http(project_id: str, body: bytes) -> pb.ReplayDeliveriesHttpRequest:
    return pb.ReplayDeliveriesHttpRequest(project_id=project_id, body=httpbody_pb2.HttpBody(data=body))
