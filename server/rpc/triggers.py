"""TriggerService: typed for gRPC clients, JSON bodies for REST. Both end in the same methods of `server.triggers`."""

from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any

import orjson
from google.api import httpbody_pb2
from google.protobuf import struct_pb2
from google.protobuf.empty_pb2 import Empty

from atlas.triggers.v1 import triggers_pb2, triggers_service_pb2_grpc
from atlas.triggers.v1 import triggers_service_pb2 as pb
from server.clock import Clock, SystemClock
from server.errors import InvalidArgument
from server.events.envelope import parse_time, text_of
from server.fields import well_formed
from server.paging import Page
from server.rpc.access import principal
from server.rpc.boundary import Context
from server.rpc.trigger_messages import json_of, members_of, message, plain
from server.rpc.values import timestamp
from server.triggers import bodies
from server.triggers.diagnosis import Diagnosis, Diagnostician, Explained
from server.triggers.explanation import ExplainedPredicate
from server.triggers.previews import Preview, preview, preview_of
from server.triggers.rows import Record
from server.triggers.samples import event_of
from server.triggers.store import Triggers


class TriggerService(triggers_service_pb2_grpc.TriggerServiceServicer):
    def __init__(self, triggers: Triggers, diagnostician: Diagnostician, clock: Clock | None = None) -> None:
        self._triggers = triggers
        self._diagnostician = diagnostician
        self._clock = clock or SystemClock()

    async def CreateTrigger(self, request: pb.CreateTriggerRequest, context: Context) -> triggers_pb2.Trigger:
        return message(await self._triggers.create(principal().project_id, members_of(request)))

    async def CreateTriggerHttp(self, request: pb.CreateTriggerHttpRequest, context: Context) -> httpbody_pb2.HttpBody:
        members = bodies.members_of(request.body.data)
        return _json(plain(await self._triggers.create(principal().project_id, members)))

    async def ListTriggers(self, request: pb.ListTriggersRequest, context: Context) -> pb.ListTriggersResponse:
        page = await self._page(request.page_size, request.page_token)
        return pb.ListTriggersResponse(
            triggers=[message(record) for record in page.items], next_page_token=page.next_page_token
        )

    async def ListTriggersHttp(self, request: pb.ListTriggersHttpRequest, context: Context) -> httpbody_pb2.HttpBody:
        page = await self._page(request.page_size, request.page_token)
        return _json({"triggers": [plain(record) for record in page.items], "next_page_token": page.next_page_token})

    async def _page(self, page_size: int, page_token: str) -> Page[Record]:
        return await self._triggers.list(principal().project_id, page_size, page_token)

    async def GetTrigger(self, request: pb.GetTriggerRequest, context: Context) -> triggers_pb2.Trigger:
        return message(await self._triggers.get(principal().project_id, request.trigger_id))

    async def GetTriggerHttp(self, request: pb.GetTriggerHttpRequest, context: Context) -> httpbody_pb2.HttpBody:
        return _json(plain(await self._triggers.get(principal().project_id, request.trigger_id)))

    async def UpdateTrigger(self, request: pb.UpdateTriggerRequest, context: Context) -> triggers_pb2.Trigger:
        return message(await self._triggers.update(principal().project_id, request.trigger_id, members_of(request)))

    async def UpdateTriggerHttp(self, request: pb.UpdateTriggerHttpRequest, context: Context) -> httpbody_pb2.HttpBody:
        members = bodies.members_of(request.body.data)
        return _json(plain(await self._triggers.update(principal().project_id, request.trigger_id, members)))

    async def DeleteTrigger(self, request: pb.DeleteTriggerRequest, context: Context) -> Empty:
        await self._triggers.delete(principal().project_id, request.trigger_id)
        return Empty()

    async def PauseTrigger(self, request: pb.PauseTriggerRequest, context: Context) -> triggers_pb2.Trigger:
        return message(await self._triggers.pause(principal().project_id, request.trigger_id))

    async def PauseTriggerHttp(self, request: pb.PauseTriggerHttpRequest, context: Context) -> httpbody_pb2.HttpBody:
        _require_nothing(request.body)
        return _json(plain(await self._triggers.pause(principal().project_id, request.trigger_id)))

    async def ResumeTrigger(self, request: pb.ResumeTriggerRequest, context: Context) -> triggers_pb2.Trigger:
        return message(await self._triggers.resume(principal().project_id, request.trigger_id))

    async def ResumeTriggerHttp(self, request: pb.ResumeTriggerHttpRequest, context: Context) -> httpbody_pb2.HttpBody:
        _require_nothing(request.body)
        return _json(plain(await self._triggers.resume(principal().project_id, request.trigger_id)))

    async def PreviewTrigger(self, request: pb.PreviewTriggerRequest, context: Context) -> pb.PreviewResponse:
        record = await self._triggers.get(principal().project_id, request.trigger_id)
        return _previewed(preview_of(record, self._clock.now(), request.count))

    async def PreviewSchedule(self, request: pb.PreviewScheduleRequest, context: Context) -> pb.PreviewResponse:
        config = json_of("config", struct_pb2.Value(struct_value=request.config)).value
        after = _moment(request) if request.HasField("after") else self._clock.now()
        return _previewed(preview(config, after, request.count))

    async def PreviewScheduleHttp(self, request: pb.PreviewScheduleHttpRequest, context: Context) -> pb.PreviewResponse:
        members = bodies.members_of(request.body.data)
        bodies.require_known(members, ("config", "count", "after"))
        after = parse_time("after", text_of(members, "after")) if "after" in members else self._clock.now()
        count = members["count"].value if "count" in members else 0
        return _previewed(preview(bodies.object_in(members, "config"), after, count))

    async def ExplainEvent(self, request: pb.ExplainEventRequest, context: Context) -> pb.ExplainEventResponse:
        event = json_of("event", struct_pb2.Value(struct_value=request.event)).value
        return await self._explained(event, request.trigger_id)

    async def ExplainEventHttp(self, request: pb.ExplainEventHttpRequest, context: Context) -> pb.ExplainEventResponse:
        members = bodies.members_of(request.body.data, most_bytes=bodies.MAX_SAMPLE_BYTES)
        bodies.require_known(members, ("event", "trigger_id"))
        return await self._explained(bodies.object_in(members, "event"), text_of(members, "trigger_id"))

    async def _explained(self, event: Mapping[str, Any], trigger_id: str) -> pb.ExplainEventResponse:
        sample = event_of(principal().project_id, event, self._clock.now())
        return _diagnosed(await self._diagnostician.diagnose(sample, trigger_id))


def _json(told: object) -> httpbody_pb2.HttpBody:
    return httpbody_pb2.HttpBody(content_type="application/json", data=orjson.dumps(told))


def _require_nothing(body: httpbody_pb2.HttpBody) -> None:
    if body.data:
        bodies.require_known(bodies.members_of(body.data), ())


def _moment(request: pb.PreviewScheduleRequest) -> datetime:
    try:
        return request.after.ToDatetime(UTC)
    except (ValueError, OverflowError):
        raise InvalidArgument("after", "after lies outside the years 1 to 9999") from None


def _previewed(found: Preview) -> pb.PreviewResponse:
    runs = [
        triggers_pb2.ScheduledRun(at=timestamp(at), local=local)
        for at, local in zip(found.runs, found.local, strict=True)
    ]
    return pb.PreviewResponse(timezone=found.timezone, runs=runs)


def _diagnosed(diagnosis: Diagnosis) -> pb.ExplainEventResponse:
    return pb.ExplainEventResponse(
        triggers=[_explained(each) for each in diagnosis.triggers], left_out=diagnosis.left_out
    )


def _explained(explained: Explained) -> triggers_pb2.ExplainedTrigger:
    record = explained.record
    return triggers_pb2.ExplainedTrigger(
        trigger_id=record.id,
        event_type=record.event_type,
        target_type=record.target_type,
        target_id=record.function_id or record.workflow_id or "",
        enabled=record.enabled,
        paused=record.paused,
        verdict=explained.verdict,
        why=explained.why,
        type_matches=explained.type_matches,
        conditions_hold=explained.conditions_hold,
        conditions=[_condition(each) for each in explained.predicates],
    )


def _condition(each: ExplainedPredicate) -> triggers_pb2.ExplainedCondition:
    """Protobuf holds no lone surrogates."""
    return triggers_pb2.ExplainedCondition(
        at=each.at,
        field=well_formed(each.field),
        op=each.op,
        wanted=None if each.wanted is None else well_formed(each.wanted),
        actual=None if each.actual is None else well_formed(each.actual),
        holds=each.holds,
        why=well_formed(each.why),
    )
