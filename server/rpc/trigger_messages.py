"""Triggers in messages: JSON members of the typed requests, and records as messages and as JSON."""

from collections.abc import Mapping
from typing import Any, Final

import orjson
from google.protobuf import struct_pb2

from atlas.triggers.v1 import triggers_pb2
from atlas.triggers.v1 import triggers_service_pb2 as pb
from server.errors import InvalidArgument
from server.events.envelope import spelled
from server.events.json_text import Json, JsonError, read
from server.rpc.values import fill_from_json, timestamp, to_json
from server.triggers import retry
from server.triggers.rows import Record

_CLEARED_BY: Final[Mapping[str, object]] = {"order_key": "", "concurrency": 0}
"""What an update writes where JSON has null."""

_RETRY: Final = ("attempts", "backoff_ms", "max_backoff_ms", "max_age_s")


def members_of(request: pb.CreateTriggerRequest | pb.UpdateTriggerRequest) -> dict[str, Json]:
    """What a typed request gives, as over REST."""
    updates = isinstance(request, pb.UpdateTriggerRequest)
    members: dict[str, Json] = {}
    for field, value in request.ListFields():
        match field.name:
            case "project_id" | "trigger_id":
                pass
            case "config":
                members["config"] = json_of("config", struct_pb2.Value(struct_value=value))
            case "conditions":
                members["conditions"] = json_of("conditions", struct_pb2.Value(list_value=value))
            case "retry":
                members["retry"] = _plain(_retry(value))
            case name if updates and name in _CLEARED_BY and value == _CLEARED_BY[name]:
                members[name] = Json("null", None)
            case name:
                members[name] = _plain(value)
    return members


def json_of(field: str, value: struct_pb2.Value) -> Json:
    try:
        return read(to_json(value, field=field))
    except JsonError as why:
        raise InvalidArgument(field, f"{field}: {why}") from None


def message(record: Record) -> triggers_pb2.Trigger:
    config, conditions = struct_pb2.Value(), struct_pb2.Value()
    fill_from_json(config, record.config.encode())
    fill_from_json(conditions, record.conditions.encode())
    policy = _policy(record)
    return triggers_pb2.Trigger(
        id=record.id,
        project_id=record.project_id,
        event_type=record.event_type,
        config=config.struct_value,
        target_type=record.target_type,
        function_id=record.function_id,
        workflow_id=record.workflow_id,
        conditions=conditions.list_value,
        enabled=record.enabled,
        paused=record.paused,
        retry=triggers_pb2.RetryPolicy(
            **{name: policy[name] for name in _RETRY}, on=triggers_pb2.Outcomes(outcomes=policy["on"])
        ),
        order_key=record.order_key,
        concurrency=record.concurrency,
        created_at=timestamp(record.created_at),
        updated_at=timestamp(record.updated_at),
    )


def plain(record: Record) -> dict[str, Any]:
    """For orjson; `config` and `conditions` as they are stored."""
    return {
        "id": record.id,
        "project_id": record.project_id,
        "event_type": record.event_type,
        "config": orjson.Fragment(record.config),
        "target_type": record.target_type,
        "function_id": record.function_id,
        "workflow_id": record.workflow_id,
        "conditions": orjson.Fragment(record.conditions),
        "enabled": record.enabled,
        "paused": record.paused,
        "retry": _policy(record),
        "order_key": record.order_key,
        "concurrency": record.concurrency,
        "created_at": spelled(record.created_at),
        "updated_at": spelled(record.updated_at),
    }


def _policy(record: Record) -> dict[str, Any]:
    """In full."""
    differing: dict[str, Any] = orjson.loads(record.retry)
    return retry.as_written(retry.DEFAULT) | differing


def _retry(policy: triggers_pb2.RetryPolicy) -> dict[str, object]:
    given: dict[str, object] = {name: getattr(policy, name) for name in _RETRY if policy.HasField(name)}
    return given | ({"on": [*policy.on.outcomes]} if policy.HasField("on") else {})


def _plain(value: Any) -> Json:
    return Json(orjson.dumps(value).decode(), value)
