"""WorkflowService: typed for gRPC clients, HttpBody for REST where JSON passes. Both end in `server.workflows`."""

from collections.abc import AsyncIterator
from typing import Final

from google.api.httpbody_pb2 import HttpBody as Body

from atlas.workflows.v1 import workflows_pb2, workflows_service_pb2_grpc
from atlas.workflows.v1 import workflows_service_pb2 as pb
from server.dispatch.stopped import Found, StoppedEvents
from server.events.json_text import Json
from server.rpc import workflow_bodies as bodies
from server.rpc.access import principal
from server.rpc.boundary import Context
from server.rpc.values import moment
from server.rpc.workflow_messages import (
    run_json,
    run_message,
    step_json,
    step_message,
    workflow_json,
    workflow_message,
)
from server.workflows.definition import Definition
from server.workflows.records import Filter, Run, StepRecord
from server.workflows.runs import Workflows
from server.workflows.store import Definitions
from server.workflows.watch import Watching

KEEPALIVE_S: Final = 15.0
EVENT_STREAM: Final = "text/event-stream"


class WorkflowService(workflows_service_pb2_grpc.WorkflowServiceServicer):
    def __init__(
        self,
        definitions: Definitions,
        workflows: Workflows,
        watching: Watching,
        stopped: StoppedEvents,
        *,
        keepalive_s: float = KEEPALIVE_S,
    ) -> None:
        self._definitions = definitions
        self._stopped = stopped
        self._workflows = workflows
        self._watching = watching
        self._keepalive_s = keepalive_s

    # --- definitions

    async def CreateWorkflow(self, request: pb.CreateWorkflowRequest, context: Context) -> workflows_pb2.Workflow:
        document = bodies.definition_of(request.definition)
        return workflow_message(await self._definitions.create(principal().project_id, request.name, document))

    async def CreateWorkflowHttp(self, request: pb.CreateWorkflowHttpRequest, context: Context) -> Body:
        found = bodies.members(request.body.data, ("name", "definition"))
        document = bodies.required(found, "definition")
        name = bodies.text(found, "name")
        return _json(workflow_json(await self._definitions.create(principal().project_id, name, document)))

    async def ListWorkflows(self, request: pb.ListWorkflowsRequest, context: Context) -> pb.ListWorkflowsResponse:
        page = await self._definitions.list(principal().project_id, request.page_size, request.page_token)
        found = [workflow_message(item) for item in page.items]
        return pb.ListWorkflowsResponse(workflows=found, next_page_token=page.next_page_token)

    async def GetWorkflow(self, request: pb.GetWorkflowRequest, context: Context) -> workflows_pb2.Workflow:
        return workflow_message(await self._definitions.get(principal().project_id, request.workflow_id))

    async def GetWorkflowHttp(self, request: pb.GetWorkflowHttpRequest, context: Context) -> Body:
        return _json(workflow_json(await self._definitions.get(principal().project_id, request.workflow_id)))

    async def UpdateWorkflow(self, request: pb.UpdateWorkflowRequest, context: Context) -> workflows_pb2.Workflow:
        changed = await self._definitions.update(
            principal().project_id,
            request.workflow_id,
            name=request.name if request.HasField("name") else None,
            document=bodies.definition_of(request.definition) if request.HasField("definition") else None,
        )
        return workflow_message(changed)

    async def UpdateWorkflowHttp(self, request: pb.UpdateWorkflowHttpRequest, context: Context) -> Body:
        found = bodies.members(request.body.data, ("name", "definition"))
        changed = await self._definitions.update(
            principal().project_id,
            request.workflow_id,
            name=bodies.text(found, "name") if "name" in found else None,
            document=found.get("definition"),
        )
        return _json(workflow_json(changed))

    async def DeleteWorkflow(self, request: pb.DeleteWorkflowRequest, context: Context) -> pb.DeleteWorkflowResponse:
        await self._definitions.delete(principal().project_id, request.workflow_id)
        return pb.DeleteWorkflowResponse()

    async def ValidateWorkflow(
        self, request: pb.ValidateWorkflowRequest, context: Context
    ) -> pb.ValidateWorkflowResponse:
        document = bodies.definition_of(request.definition)
        return _sizes(await self._definitions.validate(principal().project_id, document))

    async def ValidateWorkflowHttp(
        self, request: pb.ValidateWorkflowHttpRequest, context: Context
    ) -> pb.ValidateWorkflowResponse:
        document = bodies.required(bodies.members(request.body.data, ("definition",)), "definition")
        return _sizes(await self._definitions.validate(principal().project_id, document))

    # --- runs

    async def RunWorkflow(self, request: pb.RunWorkflowRequest, context: Context) -> workflows_pb2.WorkflowRun:
        data = bodies.value_of(request.input, "input")
        return run_message(
            await self._workflows.run(principal().project_id, request.workflow_id, data, run_id=request.run_id)
        )

    async def RunWorkflowHttp(self, request: pb.RunWorkflowHttpRequest, context: Context) -> workflows_pb2.WorkflowRun:
        found = bodies.members(request.body.data, ("input", "run_id"))
        data, run_id = found.get("input", Json("null", None)), bodies.text(found, "run_id")
        return run_message(await self._workflows.run(principal().project_id, request.workflow_id, data, run_id=run_id))

    async def ListWorkflowRuns(
        self, request: pb.ListWorkflowRunsRequest, context: Context
    ) -> pb.ListWorkflowRunsResponse:
        wanted = Filter(
            workflow_id=request.workflow,
            state=request.state,
            since=moment("since", request.since) if request.HasField("since") else None,
            until=moment("until", request.until) if request.HasField("until") else None,
        )
        page = await self._workflows.list(principal().project_id, wanted, request.page_size, request.page_token)
        found = [run_message(run) for run in page.items]
        return pb.ListWorkflowRunsResponse(runs=found, next_page_token=page.next_page_token)

    async def GetWorkflowRun(self, request: pb.GetWorkflowRunRequest, context: Context) -> workflows_pb2.WorkflowRun:
        return run_message(*await self._shown(request.run_id))

    async def GetWorkflowRunHttp(self, request: pb.GetWorkflowRunHttpRequest, context: Context) -> Body:
        return _json(run_json(*await self._shown(request.run_id)))

    async def _shown(self, run_id: str) -> tuple[Run, list[StepRecord], Found]:
        project_id = principal().project_id
        run, steps = await self._workflows.get(project_id, run_id)
        return run, steps, await self._stopped.of(project_id, run_id)

    async def GetWorkflowStep(self, request: pb.GetWorkflowStepRequest, context: Context) -> workflows_pb2.WorkflowStep:
        return step_message(await self._workflows.step(principal().project_id, request.run_id, request.node_id))

    async def GetWorkflowStepHttp(self, request: pb.GetWorkflowStepHttpRequest, context: Context) -> Body:
        return _json(step_json(await self._workflows.step(principal().project_id, request.run_id, request.node_id)))

    async def CancelWorkflowRun(
        self, request: pb.CancelWorkflowRunRequest, context: Context
    ) -> workflows_pb2.WorkflowRun:
        return run_message(await self._workflows.cancel(principal().project_id, request.run_id))

    async def WatchWorkflowRun(
        self, request: pb.WatchWorkflowRunRequest, context: Context
    ) -> AsyncIterator[pb.WatchWorkflowRunResponse]:
        changes = self._watching.watch(principal().project_id, request.run_id, silence_s=self._keepalive_s)
        async for change in changes:
            if change is not None:
                yield pb.WatchWorkflowRunResponse(run=run_message(change.run, [*change.steps]))

    async def WatchWorkflowRunHttp(
        self, request: pb.WatchWorkflowRunHttpRequest, context: Context
    ) -> AsyncIterator[Body]:
        changes = self._watching.watch(principal().project_id, request.run_id, silence_s=self._keepalive_s)
        async for change in changes:
            if change is None:
                yield Body(content_type=EVENT_STREAM, data=b": keepalive\n\n")
                continue
            told = [(b"step", step_json(step)) for step in change.steps]
            told.append((b"run", run_json(change.run)))
            data = b"".join(b"event: %s\ndata: %s\n\n" % event for event in told)
            yield Body(content_type=EVENT_STREAM, data=data)


def _json(text: bytes) -> Body:
    return Body(content_type="application/json", data=text)


def _sizes(definition: Definition) -> pb.ValidateWorkflowResponse:
    return pb.ValidateWorkflowResponse(nodes=len(definition.nodes), edges=len(definition.edges))
