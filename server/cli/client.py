"""Calls of the API over one gRPC channel, with the project and the key put in, and every failure a Problem."""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Final, TypeVar
from uuid import UUID

import grpc
from google.api.httpbody_pb2 import HttpBody

from atlas.deliveries.v1.deliveries_service_pb2_grpc import DeliveryServiceStub
from atlas.deliveries.v1.lineage_service_pb2_grpc import LineageServiceStub
from atlas.deliveries.v1.parked_messages_service_pb2_grpc import ParkedMessageServiceStub
from atlas.events.v1.events_service_pb2_grpc import EventServiceStub
from atlas.functions.v1 import functions_pb2 as functions
from atlas.functions.v1 import functions_service_pb2 as service
from atlas.functions.v1.functions_service_pb2_grpc import FunctionServiceStub
from atlas.functions.v1.invocation_service_pb2_grpc import InvocationServiceStub
from atlas.runs.v1.runs_service_pb2_grpc import RunServiceStub
from atlas.storage.v1.storage_service_pb2_grpc import StorageServiceStub
from atlas.triggers.v1.triggers_service_pb2_grpc import TriggerServiceStub
from atlas.workflows.v1 import workflows_pb2 as workflows
from atlas.workflows.v1.workflows_service_pb2 import ListWorkflowsRequest
from atlas.workflows.v1.workflows_service_pb2_grpc import WorkflowServiceStub
from server.cli.problems import REFUSED, USAGE, Problem, problem_of
from server.cli.target import Target

CALL_S: Final = 30.0
DEPLOY_S: Final = 300.0
"""The first deploy to a runtime may have to build its engine."""
INVOKE_S: Final = 120.0

_MOST_BYTES: Final = 64 * 1024 * 1024

Request = TypeVar("Request")
Answer = TypeVar("Answer")


@dataclass(frozen=True, slots=True, kw_only=True)
class HttpAnswer:
    """What REST would have answered. `chosen`: by the function, or because the answer is still to come."""

    status: int
    chosen: bool
    run_id: str
    content_type: str
    data: bytes


class Client:
    """Makes no connection before the first call. Close it, or the process ends with it."""

    def __init__(self, target: Target) -> None:
        self.target = target
        options = [
            ("grpc.primary_user_agent", "atlas-cli"),
            ("grpc.max_receive_message_length", _MOST_BYTES),
            ("grpc.max_send_message_length", _MOST_BYTES),
            ("grpc.enable_http_proxy", int(not target.local)),
        ]
        if target.tls:
            self._channel = grpc.secure_channel(target.address, grpc.ssl_channel_credentials(), options)
        else:
            self._channel = grpc.insecure_channel(target.address, options)
        self.functions = FunctionServiceStub(self._channel)
        self.invocations = InvocationServiceStub(self._channel)
        self.runs = RunServiceStub(self._channel)
        self.events = EventServiceStub(self._channel)
        self.triggers = TriggerServiceStub(self._channel)
        self.deliveries = DeliveryServiceStub(self._channel)
        self.lineage = LineageServiceStub(self._channel)
        self.parked = ParkedMessageServiceStub(self._channel)
        self.storage = StorageServiceStub(self._channel)
        self.workflows = WorkflowServiceStub(self._channel)

    def close(self) -> None:
        self._channel.close()

    @cached_property
    def project_id(self) -> str:
        if not self.target.project_id:
            raise Problem("No project is given", USAGE, hint=_WHERE.format("--project", "PROJECT_ID"))
        return self.target.project_id

    @cached_property
    def _metadata(self) -> tuple[tuple[str, str], ...]:
        if not self.target.key:
            raise Problem("No key is given", USAGE, hint=_WHERE.format("--key", "SERVICE_KEY"))
        if not self.target.key.isascii() or not self.target.key.isprintable():
            raise Problem("The key has characters that no key has", USAGE)
        return (("apikey", self.target.key),)

    def call(
        self, method: "grpc.UnaryUnaryMultiCallable[Request, Answer]", request: Request, timeout_s: float = CALL_S
    ) -> Answer:
        """One answer. Raises Problem for every status but OK."""
        try:
            return method(request, timeout=timeout_s, metadata=self._metadata)
        except grpc.RpcError as error:
            raise problem_of(error, self.target.url) from None

    def call_json(self, method: "grpc.UnaryUnaryMultiCallable[Request, HttpBody]", request: Request) -> Any:
        """The JSON of a call that REST has in the same form. Raises Problem."""
        return json.loads(self.call(method, request).data)

    def call_http(
        self,
        method: "grpc.UnaryUnaryMultiCallable[Request, HttpBody]",
        request: Request,
        timeout_s: float = CALL_S,
        **headers: str,
    ) -> HttpAnswer:
        """A call that REST has in the same form, with its headers. Raises Problem."""
        metadata = (*self._metadata, *((name.replace("_", "-"), value) for name, value in headers.items() if value))
        try:
            body, call = method.with_call(request, timeout=timeout_s, metadata=metadata)
        except grpc.RpcError as error:
            raise problem_of(error, self.target.url) from None
        told = {name: value for name, value in call.initial_metadata() or () if isinstance(value, str)}
        return HttpAnswer(
            status=int(told.get("x-atlas-status", 200)),
            chosen="x-atlas-status" in told,
            run_id=told.get("atlas-run-id", ""),
            content_type=body.content_type,
            data=body.data,
        )

    def stream(self, method: "grpc.UnaryStreamMultiCallable[Request, Answer]", request: Request) -> Iterator[Answer]:
        """Answers until the server ends them; closing the iterator ends the call. Raises Problem."""
        call = method(request, metadata=self._metadata)
        try:
            yield from call
        except grpc.RpcError as error:
            raise problem_of(error, self.target.url) from None
        finally:
            call.cancel()

    def every_function(self, *, deleted: bool = False) -> Iterator[functions.EdgeFunction]:
        """Newest first, page by page as they are asked for."""
        token = ""
        while True:
            request = service.ListFunctionsRequest(
                project_id=self.project_id, page_size=200, page_token=token, deleted=deleted
            )
            page = self.call(self.functions.ListFunctions, request)
            yield from page.functions
            token = page.next_page_token
            if not token:
                return

    def function(self, slug: str, *, deleted: bool = False) -> functions.EdgeFunction:
        """By slug; of deleted ones, the newest. Raises Problem when there is none."""
        for item in self.every_function(deleted=deleted):
            if item.slug == slug:
                return item
        what = "deleted function" if deleted else "function"
        raise Problem(
            f'The project has no {what} "{slug}"', REFUSED, hint="see `atlas functions`", reason="FUNCTION_NOT_FOUND"
        )

    def every_workflow(self) -> Iterator[workflows.Workflow]:
        """Newest first, without their definitions, page by page as they are asked for."""
        request = ListWorkflowsRequest(project_id=self.project_id, page_size=200)
        while True:
            page = self.call(self.workflows.ListWorkflows, request)
            yield from page.workflows
            request.page_token = page.next_page_token
            if not request.page_token:
                return

    def workflow_id(self, given: str) -> str:
        """Of an id, itself; of a name, the id of the one workflow that has it. Raises Problem when not one has."""
        if _is_uuid(given):
            return given
        found = [item.id for item in self.every_workflow() if item.name == given]
        if len(found) == 1:
            return found[0]
        told = f"{len(found)} workflows" if found else "no workflow"
        raise Problem(
            f'The project has {told} "{given}"', REFUSED, hint="see `atlas workflows`", reason="WORKFLOW_NOT_FOUND"
        )


_WHERE: Final = "give {} or {}, or run it where `.atlas/env` of a running stack is in the folder or one above"


def json_body(text: str) -> HttpBody:
    return HttpBody(content_type="application/json", data=text.encode())


def _is_uuid(text: str) -> bool:
    try:
        return str(UUID(text)) == text.lower()
    except ValueError:
        return False
