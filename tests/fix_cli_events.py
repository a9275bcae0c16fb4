"""What the command line asks of events, triggers, deliveries and workflows: a small API that remembers it."""

import json
from collections.abc import Iterator
from typing import Any

import grpc
import pytest
from google.api import httpbody_pb2
from google.protobuf import empty_pb2

from atlas.deliveries.v1 import (
    deliveries_pb2,
    deliveries_service_pb2,
    deliveries_service_pb2_grpc,
    lineage_service_pb2,
    lineage_service_pb2_grpc,
    parked_messages_service_pb2,
    parked_messages_service_pb2_grpc,
)
from atlas.events.v1 import events_service_pb2_grpc
from atlas.triggers.v1 import triggers_pb2, triggers_service_pb2, triggers_service_pb2_grpc
from atlas.workflows.v1 import workflows_pb2, workflows_service_pb2, workflows_service_pb2_grpc
from server.errors import NotFound
from tests.fix_cli import KEY, PROJECT_ID, Atlas, FakeApi, serving

TRIGGER_ID = "7f1c2d5e-9a56-4c0b-8f43-5d3f6c1e2a90"
DEFAULTS: dict[str, Any] = {
    "event_type": "",
    "config": {},
    "target_type": "",
    "function_id": None,
    "workflow_id": None,
    "conditions": [],
    "enabled": True,
    "paused": False,
    "retry": {"attempts": 5, "backoff_ms": 1000},
    "order_key": None,
    "concurrency": None,
}


class FakeEventApi(
    FakeApi,
    events_service_pb2_grpc.EventServiceServicer,
    triggers_service_pb2_grpc.TriggerServiceServicer,
    deliveries_service_pb2_grpc.DeliveryServiceServicer,
    lineage_service_pb2_grpc.LineageServiceServicer,
    parked_messages_service_pb2_grpc.ParkedMessageServiceServicer,
    workflows_service_pb2_grpc.WorkflowServiceServicer,
):
    """Keeps triggers as REST shows them, by id; `bodies` are those of the requests so far, as they were sent."""

    def __init__(self) -> None:
        super().__init__()
        self.bodies: list[bytes] = []
        self.triggers: dict[str, dict[str, Any]] = {}
        self.deliveries: list[deliveries_pb2.Delivery] = []
        self.duplicate = False
        self.workflows: dict[str, workflows_pb2.Workflow] = {}
        self.workflow_runs: list[workflows_pb2.WorkflowRun] = []
        self.lineage = lineage_service_pb2.Lineage()
        self.parked: list[parked_messages_service_pb2.ParkedMessage] = []
        self.explained = triggers_service_pb2.ExplainEventResponse()

    @property
    def body(self) -> Any:
        """The last one."""
        return json.loads(self.bodies[-1])

    def add_trigger(self, **members: Any) -> str:
        trigger_id = TRIGGER_ID[:-1] + str(len(self.triggers))
        self.triggers[trigger_id] = {"id": trigger_id, **DEFAULTS, **members}
        return trigger_id

    def add_workflow(self, name: str) -> str:
        workflow_id = TRIGGER_ID[:-2] + f"a{len(self.workflows)}"
        self.workflows[workflow_id] = workflows_pb2.Workflow(id=workflow_id, name=name, version=1)
        return workflow_id

    def PublishEventsHttp(self, request: Any, context: grpc.ServicerContext) -> httpbody_pb2.HttpBody:
        body = self._body(request, context)
        return _json({"id": body.get("id", "made"), "sequence": 1, "duplicate": self.duplicate})

    def CreateTriggerHttp(self, request: Any, context: grpc.ServicerContext) -> httpbody_pb2.HttpBody:
        return _json(self.triggers[self.add_trigger(**self._body(request, context))])

    def ListTriggersHttp(self, request: Any, context: grpc.ServicerContext) -> httpbody_pb2.HttpBody:
        """One a page."""
        self._see(request, context)
        found = list(self.triggers.values())
        at = int(request.page_token or 0)
        token = str(at + 1) if at + 1 < len(found) else ""
        return _json({"triggers": found[at : at + 1], "next_page_token": token})

    def GetTriggerHttp(self, request: Any, context: grpc.ServicerContext) -> httpbody_pb2.HttpBody:
        self._see(request, context)
        return _json(self._trigger(request, context))

    def UpdateTriggerHttp(self, request: Any, context: grpc.ServicerContext) -> httpbody_pb2.HttpBody:
        found = self._trigger(request, context)
        found |= self._body(request, context)
        return _json(found)

    def DeleteTrigger(self, request: Any, context: grpc.ServicerContext) -> empty_pb2.Empty:
        self._see(request, context)
        del self.triggers[request.trigger_id]
        return empty_pb2.Empty()

    def PauseTriggerHttp(self, request: Any, context: grpc.ServicerContext) -> httpbody_pb2.HttpBody:
        self._see(request, context)
        return _json(self._trigger(request, context) | {"paused": True})

    def ResumeTriggerHttp(self, request: Any, context: grpc.ServicerContext) -> httpbody_pb2.HttpBody:
        self._see(request, context)
        return _json(self._trigger(request, context) | {"paused": False})

    def PreviewTrigger(self, request: Any, context: grpc.ServicerContext) -> Any:
        self._see(request, context)
        return _previewed(request.count)

    def PreviewScheduleHttp(self, request: Any, context: grpc.ServicerContext) -> Any:
        return _previewed(self._body(request, context)["count"])

    def ExplainEventHttp(self, request: Any, context: grpc.ServicerContext) -> Any:
        self._body(request, context)
        return self.explained

    def BacktestTriggerHttp(self, request: Any, context: grpc.ServicerContext) -> Any:
        """Two calls' worth, with a sample in each where some are wanted."""
        body = self._body(request, context)
        number = 2 if body["page_token"] else 1
        samples = [triggers_service_pb2.BacktestSample(event_id=f"e{number}", event_type="a.b", data=str(number))]
        return triggers_service_pb2.BacktestResponse(
            looked_at=10,
            fired=number,
            samples=samples[: body["samples"]],
            truncated=number == 1,
            next_page_token="more" if number == 1 else "",
        )

    def GetLineage(self, request: Any, context: grpc.ServicerContext) -> lineage_service_pb2.Lineage:
        self._see(request, context)
        return self.lineage

    def ListParkedMessages(self, request: Any, context: grpc.ServicerContext) -> Any:
        """One a page."""
        self._see(request, context)
        at = int(request.page_token or 0)
        token = str(at + 1) if at + 1 < len(self.parked) else ""
        return parked_messages_service_pb2.ListParkedMessagesResponse(
            messages=self.parked[at : at + 1], next_page_token=token
        )

    def ListDeliveries(self, request: Any, context: grpc.ServicerContext) -> Any:
        """One a page."""
        self._see(request, context)
        at = int(request.page_token or 0)
        token = str(at + 1) if at + 1 < len(self.deliveries) else ""
        return deliveries_service_pb2.ListDeliveriesResponse(
            deliveries=self.deliveries[at : at + 1], next_page_token=token
        )

    def GetDelivery(self, request: Any, context: grpc.ServicerContext) -> deliveries_pb2.Delivery:
        self._see(request, context)
        return self._delivery(request)

    def GetDeliveryHttp(self, request: Any, context: grpc.ServicerContext) -> httpbody_pb2.HttpBody:
        self._see(request, context)
        found = self._delivery(request)
        return _json({"id": found.id, "state": found.state, "event": json.loads(found.event)})

    def ReplayDelivery(self, request: Any, context: grpc.ServicerContext) -> deliveries_pb2.Delivery:
        self._see(request, context)
        return self._delivery(request)

    def ReplayDeliveries(self, request: Any, context: grpc.ServicerContext) -> Any:
        """Two calls' worth."""
        self._see(request, context)
        token = "" if request.page_token else "more"
        return deliveries_service_pb2.ReplayDeliveriesResponse(replayed=7, next_page_token=token)

    def CancelDelivery(self, request: Any, context: grpc.ServicerContext) -> deliveries_pb2.Delivery:
        self._see(request, context)
        found = self._delivery(request)
        found.state = "cancelled"
        return found

    def ListWorkflows(self, request: Any, context: grpc.ServicerContext) -> Any:
        """One a page."""
        self._see(request, context)
        found = list(self.workflows.values())
        at = int(request.page_token or 0)
        token = str(at + 1) if at + 1 < len(found) else ""
        return workflows_service_pb2.ListWorkflowsResponse(workflows=found[at : at + 1], next_page_token=token)

    def CreateWorkflowHttp(self, request: Any, context: grpc.ServicerContext) -> httpbody_pb2.HttpBody:
        return self._workflow(self.add_workflow(self._body(request, context)["name"]))

    def UpdateWorkflowHttp(self, request: Any, context: grpc.ServicerContext) -> httpbody_pb2.HttpBody:
        self._body(request, context)
        self.workflows[request.workflow_id].version += 1
        return self._workflow(request.workflow_id)

    def GetWorkflowHttp(self, request: Any, context: grpc.ServicerContext) -> httpbody_pb2.HttpBody:
        self._see(request, context)
        return self._workflow(request.workflow_id)

    def DeleteWorkflow(self, request: Any, context: grpc.ServicerContext) -> Any:
        self._see(request, context)
        del self.workflows[request.workflow_id]
        return workflows_service_pb2.DeleteWorkflowResponse()

    def ValidateWorkflowHttp(self, request: Any, context: grpc.ServicerContext) -> Any:
        nodes = self._body(request, context)["definition"]["nodes"]
        return workflows_service_pb2.ValidateWorkflowResponse(nodes=len(nodes), edges=0)

    def RunWorkflowHttp(self, request: Any, context: grpc.ServicerContext) -> workflows_pb2.WorkflowRun:
        self._body(request, context)
        return workflows_pb2.WorkflowRun(id="r1", workflow_id=request.workflow_id, state="running")

    def ListWorkflowRuns(self, request: Any, context: grpc.ServicerContext) -> Any:
        self._see(request, context)
        return workflows_service_pb2.ListWorkflowRunsResponse(runs=self.workflow_runs)

    def GetWorkflowRun(self, request: Any, context: grpc.ServicerContext) -> workflows_pb2.WorkflowRun:
        self._see(request, context)
        return self.workflow_runs[-1]

    def GetWorkflowRunHttp(self, request: Any, context: grpc.ServicerContext) -> httpbody_pb2.HttpBody:
        self._see(request, context)
        return _json({"id": request.run_id})

    def GetWorkflowStepHttp(self, request: Any, context: grpc.ServicerContext) -> httpbody_pb2.HttpBody:
        self._see(request, context)
        return _json({"node_id": request.node_id, "output": [1]})

    def CancelWorkflowRun(self, request: Any, context: grpc.ServicerContext) -> workflows_pb2.WorkflowRun:
        self._see(request, context)
        return workflows_pb2.WorkflowRun(id=request.run_id, state="cancelled")

    def WatchWorkflowRun(self, request: Any, context: grpc.ServicerContext) -> Iterator[Any]:
        self._see(request, context)
        for run in self.workflow_runs:
            yield workflows_service_pb2.WatchWorkflowRunResponse(run=run)

    def _workflow(self, workflow_id: str) -> httpbody_pb2.HttpBody:
        found = self.workflows[workflow_id]
        return _json({"id": found.id, "name": found.name, "version": found.version})

    def _body(self, request: Any, context: grpc.ServicerContext) -> Any:
        self._see(request, context)
        assert request.body.content_type == "application/json"
        self.bodies.append(request.body.data)
        return self.body

    def _trigger(self, request: Any, context: grpc.ServicerContext) -> dict[str, Any]:
        if request.trigger_id not in self.triggers:
            self.refuse(NotFound("The project has no such trigger", reason="TRIGGER_NOT_FOUND"), context)
        return self.triggers[request.trigger_id]

    def _delivery(self, request: Any) -> deliveries_pb2.Delivery:
        return next(item for item in self.deliveries if item.id == request.delivery_id)

    PublishEvents = CreateTrigger = ListTriggers = GetTrigger = UpdateTrigger = FakeApi._unasked
    CreateWorkflow = GetWorkflow = UpdateWorkflow = ValidateWorkflow = RunWorkflow = FakeApi._unasked
    GetWorkflowStep = WatchWorkflowRunHttp = FakeApi._unasked
    PauseTrigger = ResumeTrigger = PreviewSchedule = ExplainEvent = ReplayDeliveriesHttp = FakeApi._unasked
    BacktestTrigger = FakeApi._unasked


def _json(told: object) -> httpbody_pb2.HttpBody:
    return httpbody_pb2.HttpBody(content_type="application/json", data=json.dumps(told).encode())


def _previewed(count: int) -> triggers_service_pb2.PreviewResponse:
    runs = [triggers_pb2.ScheduledRun(local=f"2026-07-0{number + 1}T08:00:00+02:00") for number in range(count)]
    for number, run in enumerate(runs):
        run.at.FromJsonString(f"2026-07-0{number + 1}T06:00:00Z")
    return triggers_service_pb2.PreviewResponse(timezone="Europe/Berlin", runs=runs)


@pytest.fixture
def event_api() -> Iterator[FakeEventApi]:
    fake = FakeEventApi()
    with serving(
        fake,
        events_service_pb2_grpc.add_EventServiceServicer_to_server,
        triggers_service_pb2_grpc.add_TriggerServiceServicer_to_server,
        deliveries_service_pb2_grpc.add_DeliveryServiceServicer_to_server,
        lineage_service_pb2_grpc.add_LineageServiceServicer_to_server,
        parked_messages_service_pb2_grpc.add_ParkedMessageServiceServicer_to_server,
        workflows_service_pb2_grpc.add_WorkflowServiceServicer_to_server,
    ):
        yield fake


@pytest.fixture
def to_event_api(event_api: FakeEventApi, atlas: Atlas, monkeypatch: pytest.MonkeyPatch) -> Atlas:
    """Runs command lines with variables that point at `event_api`."""
    for name, value in (("ATLAS_URL", event_api.url), ("PROJECT_ID", PROJECT_ID), ("SERVICE_KEY", KEY)):
        monkeypatch.setenv(name, value)
    return atlas
