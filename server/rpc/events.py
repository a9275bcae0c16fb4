"""EventService: typed for gRPC clients, HttpBody for REST. Both end in the same Publisher."""

import orjson
from google.api import httpbody_pb2

from atlas.events.v1 import events_pb2, events_service_pb2_grpc
from atlas.events.v1 import events_service_pb2 as pb
from server.errors import InvalidArgument
from server.events.drafts import MAX_REQUEST_BYTES, Draft, Drafts, events_of, parse_body, require_count, too_large
from server.events.json_text import Json, JsonError, read
from server.events.publisher import Published, Publisher
from server.rpc.access import principal
from server.rpc.boundary import Context
from server.rpc.values import to_json_each


class EventService(events_service_pb2_grpc.EventServiceServicer):
    def __init__(self, publisher: Publisher) -> None:
        self._publisher = publisher

    async def PublishEvents(self, request: pb.PublishEventsRequest, context: Context) -> pb.PublishEventsResponse:
        if (size := request.ByteSize()) > MAX_REQUEST_BYTES:
            raise too_large(size)
        require_count(len(request.events))
        published = await self._publish(_drafts(request))
        return pb.PublishEventsResponse(
            events=[
                events_pb2.PublishedEvent(id=item.id, sequence=item.sequence, duplicate=item.duplicate)
                for item in published
            ]
        )

    async def PublishEventsHttp(self, request: pb.PublishEventsHttpRequest, context: Context) -> httpbody_pb2.HttpBody:
        drafts = parse_body(request.body.data)
        published = await self._publish(drafts)
        told = orjson.dumps({"events": published} if drafts.batch else published[0])
        return httpbody_pb2.HttpBody(content_type="application/json", data=told)

    async def _publish(self, drafts: Drafts) -> list[Published]:
        return await self._publisher.publish(events_of(principal().project_id, drafts))


def _drafts(request: pb.PublishEventsRequest) -> Drafts:
    texts = to_json_each((event.data for event in request.events), field="events")
    items = [
        Draft(
            type=event.type,
            data=_json(f"events[{number}].data", text),
            id=event.id,
            time=_time(f"events[{number}].time", event),
            subject=event.subject,
            source=event.source,
        )
        for number, (event, text) in enumerate(zip(request.events, texts, strict=True))
    ]
    return Drafts(items, batch=True)


def _json(field: str, text: bytes) -> Json:
    try:
        return read(text)
    except JsonError as why:
        raise InvalidArgument(field, f"{field}: {why}") from None


def _time(field: str, event: events_pb2.NewEvent) -> str:
    if not event.HasField("time"):
        return ""
    try:
        return event.time.ToJsonString()
    except ValueError:
        raise InvalidArgument(field, f"{field} lies outside the years 1 to 9999") from None
