"""Who may call what: one row a method, and deny by default.

A key comes as `apikey: KEY` or `Authorization: Bearer KEY`. When both are sent, `apikey` is the key and
`Authorization` is left to the function, so that an application's own tokens can travel beside our keys.
"""

import hmac
from collections.abc import Mapping, Sequence
from contextvars import ContextVar
from enum import Enum
from typing import Final, Protocol

from server.errors import AtlasError, PermissionDenied, Unauthenticated
from server.projects import Principal


class Access(Enum):
    PUBLIC = "public"
    ANY_KEY = "any key of the project"
    SERVICE = "a service key of the project"
    ADMIN = "the admin key"


_FUNCTIONS: Final = "/atlas.functions.v1.FunctionService/"
_INVOCATIONS: Final = "/atlas.functions.v1.InvocationService/"
_RUNS: Final = "/atlas.runs.v1.RunService/"
_EVENTS: Final = "/atlas.events.v1.EventService/"
_STORAGE: Final = "/atlas.storage.v1.StorageService/"
_DELIVERIES: Final = "/atlas.deliveries.v1.DeliveryService/"
_TRIGGERS: Final = "/atlas.triggers.v1.TriggerService/"
_WORKFLOWS: Final = "/atlas.workflows.v1.WorkflowService/"
_PROJECTS: Final = "/atlas.projects.v1.ProjectService/"

METHODS: Final[Mapping[str, Access]] = {
    _INVOCATIONS + "Invoke": Access.ANY_KEY,
    _INVOCATIONS + "InvokeHttp": Access.ANY_KEY,
    _INVOCATIONS + "GetResult": Access.ANY_KEY,
    _FUNCTIONS + "CreateFunction": Access.SERVICE,
    _FUNCTIONS + "ListFunctions": Access.SERVICE,
    _FUNCTIONS + "GetFunction": Access.SERVICE,
    _FUNCTIONS + "UpdateFunction": Access.SERVICE,
    _FUNCTIONS + "DeleteFunction": Access.SERVICE,
    _FUNCTIONS + "UndeleteFunction": Access.SERVICE,
    _FUNCTIONS + "DeployFunction": Access.SERVICE,
    _FUNCTIONS + "ListFunctionVersions": Access.SERVICE,
    _FUNCTIONS + "GetFunctionVersion": Access.SERVICE,
    _FUNCTIONS + "DownloadFunctionVersion": Access.SERVICE,
    _FUNCTIONS + "ActivateFunctionVersion": Access.SERVICE,
    _FUNCTIONS + "RollbackFunction": Access.SERVICE,
    _RUNS + "ListRuns": Access.SERVICE,
    _RUNS + "GetRun": Access.SERVICE,
    _RUNS + "CancelRun": Access.SERVICE,
    _RUNS + "TailRuns": Access.SERVICE,
    _RUNS + "TailRunsHttp": Access.SERVICE,
    _EVENTS + "PublishEvents": Access.SERVICE,
    _EVENTS + "PublishEventsHttp": Access.SERVICE,
    _STORAGE + "CreateBucket": Access.SERVICE,
    _STORAGE + "ListBuckets": Access.SERVICE,
    _STORAGE + "GetBucket": Access.SERVICE,
    _STORAGE + "UpdateBucket": Access.SERVICE,
    _STORAGE + "DeleteBucket": Access.SERVICE,
    _STORAGE + "PutObject": Access.SERVICE,
    _STORAGE + "PutObjectHttp": Access.SERVICE,
    _STORAGE + "GetObject": Access.ANY_KEY,
    _STORAGE + "GetObjectHttp": Access.ANY_KEY,
    _STORAGE + "GetObjectInfo": Access.ANY_KEY,
    _STORAGE + "ListObjects": Access.SERVICE,
    _STORAGE + "DeleteObject": Access.SERVICE,
    _DELIVERIES + "ListDeliveries": Access.SERVICE,
    _DELIVERIES + "GetDelivery": Access.SERVICE,
    _DELIVERIES + "GetDeliveryHttp": Access.SERVICE,
    _DELIVERIES + "ReplayDelivery": Access.SERVICE,
    _DELIVERIES + "ReplayDeliveries": Access.SERVICE,
    _DELIVERIES + "ReplayDeliveriesHttp": Access.SERVICE,
    _DELIVERIES + "CancelDelivery": Access.SERVICE,
    "/atlas.deliveries.v1.ParkedMessageService/ListParkedMessages": Access.ADMIN,
    _TRIGGERS + "CreateTrigger": Access.SERVICE,
    _TRIGGERS + "CreateTriggerHttp": Access.SERVICE,
    _TRIGGERS + "ListTriggers": Access.SERVICE,
    _TRIGGERS + "ListTriggersHttp": Access.SERVICE,
    _TRIGGERS + "GetTrigger": Access.SERVICE,
    _TRIGGERS + "GetTriggerHttp": Access.SERVICE,
    _TRIGGERS + "UpdateTrigger": Access.SERVICE,
    _TRIGGERS + "UpdateTriggerHttp": Access.SERVICE,
    _TRIGGERS + "DeleteTrigger": Access.SERVICE,
    _TRIGGERS + "PauseTrigger": Access.SERVICE,
    _TRIGGERS + "PauseTriggerHttp": Access.SERVICE,
    _TRIGGERS + "ResumeTrigger": Access.SERVICE,
    _TRIGGERS + "ResumeTriggerHttp": Access.SERVICE,
    _TRIGGERS + "PreviewTrigger": Access.SERVICE,
    _TRIGGERS + "PreviewSchedule": Access.SERVICE,
    _TRIGGERS + "PreviewScheduleHttp": Access.SERVICE,
    _TRIGGERS + "ExplainEvent": Access.SERVICE,
    _TRIGGERS + "ExplainEventHttp": Access.SERVICE,
    _WORKFLOWS + "CreateWorkflow": Access.SERVICE,
    _WORKFLOWS + "CreateWorkflowHttp": Access.SERVICE,
    _WORKFLOWS + "ListWorkflows": Access.SERVICE,
    _WORKFLOWS + "GetWorkflow": Access.SERVICE,
    _WORKFLOWS + "GetWorkflowHttp": Access.SERVICE,
    _WORKFLOWS + "UpdateWorkflow": Access.SERVICE,
    _WORKFLOWS + "UpdateWorkflowHttp": Access.SERVICE,
    _WORKFLOWS + "DeleteWorkflow": Access.SERVICE,
    _WORKFLOWS + "ValidateWorkflow": Access.SERVICE,
    _WORKFLOWS + "ValidateWorkflowHttp": Access.SERVICE,
    _WORKFLOWS + "RunWorkflow": Access.SERVICE,
    _WORKFLOWS + "RunWorkflowHttp": Access.SERVICE,
    _WORKFLOWS + "ListWorkflowRuns": Access.SERVICE,
    _WORKFLOWS + "GetWorkflowRun": Access.SERVICE,
    _WORKFLOWS + "GetWorkflowRunHttp": Access.SERVICE,
    _WORKFLOWS + "GetWorkflowStep": Access.SERVICE,
    _WORKFLOWS + "GetWorkflowStepHttp": Access.SERVICE,
    _WORKFLOWS + "CancelWorkflowRun": Access.SERVICE,
    _WORKFLOWS + "WatchWorkflowRun": Access.SERVICE,
    _WORKFLOWS + "WatchWorkflowRunHttp": Access.SERVICE,
    _PROJECTS + "CreateProject": Access.ADMIN,
    _PROJECTS + "GetProject": Access.ADMIN,
    _PROJECTS + "ListProjects": Access.ADMIN,
    _PROJECTS + "UpdateProject": Access.ADMIN,
    _PROJECTS + "DeleteProject": Access.ADMIN,
    _PROJECTS + "CreateApiKey": Access.ADMIN,
    _PROJECTS + "ListApiKeys": Access.ADMIN,
    _PROJECTS + "RevokeApiKey": Access.ADMIN,
    "/atlas.health.v1.HealthService/CheckHealth": Access.PUBLIC,
    "/atlas.metrics.v1.MetricsService/GetMetrics": Access.ADMIN,
}


class Keys(Protocol):
    """Where keys are looked up: `server.projects.Keyring`."""

    async def authenticate(self, secret: str) -> Principal | None: ...


_principal: ContextVar[Principal] = ContextVar("principal")


def principal() -> Principal:
    """Whose key made the running call. Only inside methods whose access is ANY_KEY or SERVICE."""
    return _principal.get()


def key_of(headers: Mapping[str, str]) -> str | None:
    """The API key among request headers with lower-case names, or None."""
    if key := headers.get("apikey"):
        return key.strip()
    scheme, _, token = headers.get("authorization", "").partition(" ")
    return token.strip() or None if scheme.lower() == "bearer" else None


class Gate:
    """Decides about one call before its method runs."""

    def __init__(self, keys: Keys, admin_key: str) -> None:
        self._keys = keys
        self._admin_key = admin_key.encode()

    async def admit(self, access: Access, headers: Mapping[str, str], project_ids: Sequence[str]) -> None:
        """Let the call through or raise Unauthenticated or PermissionDenied.

        `project_ids` are all that the request names. The one in the decoded message counts whatever the path said: a
        JSON body can override the path.
        """
        if access is Access.PUBLIC:
            return
        key = key_of(headers)
        if key is None:
            raise Unauthenticated(
                f"No API key: send {access.value} as 'Authorization: Bearer KEY' or 'apikey: KEY'", reason="KEY_MISSING"
            )
        if access is Access.ADMIN:
            if not self._is_admin(key):
                raise await self._refusal(key, access)
            return
        found = await self._keys.authenticate(key)
        if found is None:
            raise _wrong_role("admin", access) if self._is_admin(key) else _unknown_key()
        if access is Access.SERVICE:
            if found.role != "service":
                raise _wrong_role(found.role, access)
            if any(named.lower() != found.project_id for named in project_ids):
                raise PermissionDenied(
                    "This key belongs to another project than the request's project_id", reason="WRONG_PROJECT"
                )
        _principal.set(found)

    def _is_admin(self, key: str) -> bool:
        return hmac.compare_digest(key.encode(), self._admin_key)

    async def _refusal(self, key: str, access: Access) -> AtlasError:
        found = await self._keys.authenticate(key)
        return _unknown_key() if found is None else _wrong_role(found.role, access)


def _unknown_key() -> Unauthenticated:
    return Unauthenticated("The API key is unknown or revoked", reason="KEY_UNKNOWN")


def _wrong_role(role: str, access: Access) -> PermissionDenied:
    return PermissionDenied(
        f"A key of role {role} may not do this: it needs {access.value}", reason="WRONG_ROLE", metadata={"role": role}
    )
