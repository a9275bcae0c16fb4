"""Workflows, runs and steps as messages, and as the JSON of the same messages with what is JSON in them as it is."""

from collections.abc import Mapping
from datetime import datetime
from typing import Any, Final

import orjson
from google.protobuf import struct_pb2
from google.protobuf.json_format import MessageToDict
from google.protobuf.message import Message

from atlas.workflows.v1 import workflows_pb2 as pb
from server.dispatch.stopped import Found
from server.errors import FunctionFailed
from server.rpc.stopped import fill_stopped
from server.rpc.values import fill_from_json, timestamp
from server.workflows.records import Run, StepRecord
from server.workflows.store import Workflow

NOTHING: Final = Found()


def workflow_message(workflow: Workflow) -> pb.Workflow:
    """With its definition, when it has one."""
    message = _workflow(workflow)
    if workflow.definition:
        value = struct_pb2.Value()
        fill_from_json(value, workflow.definition.encode("utf-8", "replace"))
        message.definition.CopyFrom(value.struct_value)
    return message


def workflow_json(workflow: Workflow) -> bytes:
    told = _plain(_workflow(workflow))
    definition = orjson.Fragment(workflow.definition.encode("utf-8", "replace"))
    return orjson.dumps(told | {"definition": definition})


def run_message(run: Run, steps: list[StepRecord] | None = None, stopped: Found = NOTHING) -> pb.WorkflowRun:
    message = _run(run)
    fill_stopped(message, stopped)
    if steps is not None:
        message.steps.extend(step_message(step) for step in steps)
        _fill(message, "event", run.event)
    return message


def run_json(run: Run, steps: list[StepRecord] | None = None, stopped: Found = NOTHING) -> bytes:
    message = _run(run)
    fill_stopped(message, stopped)
    told = _plain(message)
    del told["steps"]
    if steps is not None:
        told["steps"] = [orjson.Fragment(step_json(step)) for step in steps]
        if run.event is not None:
            told["event"] = orjson.Fragment(run.event)
    return orjson.dumps(told)


def step_message(step: StepRecord) -> pb.WorkflowStep:
    """What is more than a message can hold is left out, and that it is."""
    message = _step(step)
    for name, text in (("input", step.input), ("output", step.output)):
        if not _fill(message, name, text):
            message.omitted = True
    return message


def _run(run: Run) -> pb.WorkflowRun:
    return pb.WorkflowRun(
        id=run.id,
        project_id=run.project_id,
        workflow_id=run.workflow_id,
        version=run.version,
        state=run.state,
        trigger_id=run.trigger_id or "",
        error=_error(run.error),
        created_at=timestamp(run.created_at),
        finished_at=_at(run.finished_at),
    )


def step_json(step: StepRecord) -> bytes:
    told = _plain(_step(step))
    for name in ("input", "output"):
        text = getattr(step, name)
        if text is not None:
            told[name] = orjson.Fragment(text)
    return orjson.dumps(told)


def _workflow(workflow: Workflow) -> pb.Workflow:
    return pb.Workflow(
        id=workflow.id,
        project_id=workflow.project_id,
        name=workflow.name,
        version=workflow.version,
        created_at=timestamp(workflow.created_at),
        updated_at=timestamp(workflow.updated_at),
    )


def _step(step: StepRecord) -> pb.WorkflowStep:
    return pb.WorkflowStep(
        node_id=step.node_id,
        type=step.type,
        state="queued" if step.state == "ready" else step.state,
        attempts=step.attempts,
        due_at=_at(step.due_at if step.state == "waiting" else None),
        omitted=step.omitted,
        error=_error(step.error),
        history=[_attempt(attempt) for attempt in step.history],
        began_at=_at(step.began_at),
        finished_at=_at(step.finished_at),
    )


def _attempt(attempt: Mapping[str, Any]) -> pb.StepAttempt:
    return pb.StepAttempt(
        number=attempt["number"],
        began_at=timestamp(datetime.fromisoformat(attempt["began_at"])),
        finished_at=timestamp(datetime.fromisoformat(attempt["finished_at"])),
        error=_error(attempt.get("error")),
        invocation_id=attempt.get("invocation_id", ""),
    )


def _error(error: Mapping[str, str] | None) -> pb.WorkflowError | None:
    if error is None:
        return None
    return pb.WorkflowError(reason=error["reason"], message=error["message"], node_id=error.get("node_id", ""))


def _fill(message: Any, name: str, text: bytes | None) -> bool:
    """Whether the JSON fits into the field of the message."""
    if text is not None:
        try:
            fill_from_json(getattr(message, name), text)
        except FunctionFailed:
            message.ClearField(name)
            return False
    return True


def _at(moment: datetime | None) -> Any:
    return None if moment is None else timestamp(moment)


def _plain(message: Message) -> dict[str, Any]:
    """With the names and the zeros of every other answer over REST."""
    return MessageToDict(message, preserving_proto_field_name=True, always_print_fields_with_no_presence=True)
