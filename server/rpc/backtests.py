"""What requests of BacktestTrigger ask, typed and as JSON."""

from collections.abc import Mapping
from typing import Final

import orjson
from google.protobuf import struct_pb2

from atlas.triggers.v1 import triggers_service_pb2 as pb
from server.events.envelope import parse_time, text_of
from server.events.json_text import Json
from server.rpc.trigger_messages import json_of
from server.rpc.values import moment
from server.triggers import bodies
from server.triggers.backtest import DEFAULT_SAMPLES, MAX_SAMPLES, Question
from server.triggers.drafts import DRAWN
from server.triggers.retry import parse_whole

_KNOWN: Final = ("trigger_id", *DRAWN, "since", "until", "samples", "page_token")


def question_of(request: pb.BacktestTriggerRequest) -> Question:
    draft: dict[str, Json] = {}
    if request.event_type:
        draft["event_type"] = Json(orjson.dumps(request.event_type).decode(), request.event_type)
    if request.HasField("config"):
        draft["config"] = json_of("config", struct_pb2.Value(struct_value=request.config))
    if request.HasField("conditions"):
        draft["conditions"] = json_of("conditions", struct_pb2.Value(list_value=request.conditions))
    return Question(
        draft=draft,
        trigger_id=request.trigger_id,
        since=moment("since", request.since) if request.HasField("since") else None,
        until=moment("until", request.until) if request.HasField("until") else None,
        samples=request.samples if request.HasField("samples") else DEFAULT_SAMPLES,
        page_token=request.page_token,
    )


def question_in(members: Mapping[str, Json]) -> Question:
    """InvalidArgument for unknown members and values of the wrong type."""
    bodies.require_known(members, _KNOWN)
    since, until = text_of(members, "since"), text_of(members, "until")
    return Question(
        draft={name: members[name] for name in DRAWN if name in members},
        trigger_id=text_of(members, "trigger_id"),
        since=parse_time("since", since) if since else None,
        until=parse_time("until", until) if until else None,
        samples=(
            parse_whole("samples", members["samples"].value, 0, MAX_SAMPLES)
            if "samples" in members
            else DEFAULT_SAMPLES
        ),
        page_token=text_of(members, "page_token"),
    )
