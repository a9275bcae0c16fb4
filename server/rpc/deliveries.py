"""DeliveryService: messages in and out of `server.dispatch`; the rules live there."""

import orjson
from google.api import httpbody_pb2
from google.protobuf import json_format

from atlas.deliveries.v1 import deliveries_pb2, deliveries_service_pb2_grpc
from atlas.deliveries.v1 import deliveries_service_pb2 as pb
from server.dispatch.cancel import Canceller
from server.dispatch.deliveries import Deliveries, Filter, Shown
from server.dispatch.delivery import Attempt, Delivery, Trouble
from server.dispatch.replay import DeadLetters, Replayer
from server.errors import InvalidArgument
from server.fields import well_formed
from server.rpc.access import principal
from server.rpc.boundary import Context
from server.rpc.runs import run_message
from server.rpc.values import moment, timestamp

MAX_FILTER_BYTES = 128 * 1024
"""Of the body of ReplayDeliveriesHttp: more than a thousand ids take."""


class DeliveryService(deliveries_service_pb2_grpc.DeliveryServiceServicer):
    def __init__(self, deliveries: Deliveries, replayer: Replayer, canceller: Canceller) -> None:
        self._deliveries = deliveries
        self._replayer = replayer
        self._canceller = canceller

    async def ListDeliveries(self, request: pb.ListDeliveriesRequest, context: Context) -> pb.ListDeliveriesResponse:
        wanted = Filter(
            trigger=request.trigger,
            event=request.event,
            event_type=request.event_type,
            state=request.state,
            outcome=request.outcome,
            since=moment("since", request.since) if request.HasField("since") else None,
            until=moment("until", request.until) if request.HasField("until") else None,
        )
        page = await self._deliveries.list(principal().project_id, wanted, request.page_size, request.page_token)
        return pb.ListDeliveriesResponse(
            deliveries=[_delivery(item) for item in page.items], next_page_token=page.next_page_token
        )

    async def GetDelivery(self, request: pb.GetDeliveryRequest, context: Context) -> deliveries_pb2.Delivery:
        shown = await self._get(request.delivery_id)
        message = _delivery(shown.delivery)
        if shown.event is not None:
            message.event = shown.event.decode()
        return message

    async def GetDeliveryHttp(self, request: pb.GetDeliveryHttpRequest, context: Context) -> httpbody_pb2.HttpBody:
        shown = await self._get(request.delivery_id)
        told = json_format.MessageToDict(
            _delivery(shown.delivery), preserving_proto_field_name=True, always_print_fields_with_no_presence=True
        )
        if shown.event is not None:
            told["event"] = orjson.Fragment(shown.event)
        return httpbody_pb2.HttpBody(content_type="application/json", data=orjson.dumps(told))

    async def _get(self, delivery_id: str) -> Shown:
        return await self._deliveries.get(principal().project_id, delivery_id)

    async def ReplayDelivery(self, request: pb.ReplayDeliveryRequest, context: Context) -> deliveries_pb2.Delivery:
        return _delivery(await self._replayer.replay(principal().project_id, request.delivery_id))

    async def ReplayDeliveries(
        self, request: pb.ReplayDeliveriesRequest, context: Context
    ) -> pb.ReplayDeliveriesResponse:
        wanted = DeadLetters(
            ids=tuple(request.ids),
            trigger=request.trigger,
            event_type=request.event_type,
            outcome=request.outcome,
            reason=request.reason,
            since=moment("since", request.since) if request.HasField("since") else None,
            until=moment("until", request.until) if request.HasField("until") else None,
        )
        replayed = await self._replayer.replay_all(principal().project_id, wanted, request.page_token)
        return pb.ReplayDeliveriesResponse(replayed=replayed.count, next_page_token=replayed.next_page_token)

    async def ReplayDeliveriesHttp(
        self, request: pb.ReplayDeliveriesHttpRequest, context: Context
    ) -> pb.ReplayDeliveriesResponse:
        return await self.ReplayDeliveries(parse_filter(request.body.data), context)

    async def CancelDelivery(self, request: pb.CancelDeliveryRequest, context: Context) -> deliveries_pb2.Delivery:
        return _delivery(await self._canceller.cancel(principal().project_id, request.delivery_id))


def parse_filter(body: bytes) -> pb.ReplayDeliveriesRequest:
    """The message of a JSON body. InvalidArgument for whatever is none, unknown fields included."""
    if len(body) > MAX_FILTER_BYTES:
        raise InvalidArgument(
            "body",
            f"The body has {len(body)} bytes; at most {MAX_FILTER_BYTES} are allowed",
            reason="REQUEST_TOO_LARGE",
            used=str(len(body)),
            allowed=str(MAX_FILTER_BYTES),
        )
    try:
        named = orjson.loads(body)  # strict, and bounded in depth
    except orjson.JSONDecodeError as why:
        raise InvalidArgument("body", f"The body is not JSON: {why}; {{}} is all dead letters") from None
    if not isinstance(named, dict):
        raise InvalidArgument("body", "The body must be a JSON object; {} is all dead letters")
    if "project_id" in named or "projectId" in named:
        raise InvalidArgument("project_id", "project_id belongs into the path and not into the body")
    try:
        return json_format.ParseDict(named, pb.ReplayDeliveriesRequest())
    except json_format.ParseError as why:
        raise InvalidArgument("body", f"The body is no filter of dead letters: {str(why)[:300]}") from None


def _delivery(delivery: Delivery) -> deliveries_pb2.Delivery:
    return deliveries_pb2.Delivery(
        id=delivery.id,
        project_id=delivery.project_id,
        trigger_id=delivery.trigger_id,
        event_id=delivery.event_id,
        event_type=delivery.event_type,
        state=delivery.state,
        outcome=delivery.outcome,
        error=_error(delivery.error),
        order_key=delivery.order_key or "",
        attempts=delivery.attempts,
        replays=delivery.replays,
        replayed_at=timestamp(delivery.replayed_at) if delivery.replayed_at else None,
        due_at=timestamp(delivery.due_at) if delivery.state == "queued" else None,
        created_at=timestamp(delivery.created_at),
        finished_at=timestamp(delivery.finished_at) if delivery.finished_at else None,
        history=[_attempt(item) for item in delivery.history],
    )


def _attempt(attempt: Attempt) -> deliveries_pb2.Attempt:
    return deliveries_pb2.Attempt(
        number=attempt.number,
        run_id=attempt.run_id,
        began_at=timestamp(attempt.began_at) if attempt.began_at else None,
        ended_at=timestamp(attempt.ended_at) if attempt.ended_at else None,
        outcome=attempt.outcome,
        error=_error(attempt.error),
        run=run_message(attempt.run) if attempt.run else None,
    )


def _error(trouble: Trouble | None) -> deliveries_pb2.DeliveryError | None:
    if trouble is None:
        return None
    return deliveries_pb2.DeliveryError(reason=well_formed(trouble.reason), message=well_formed(trouble.message))
