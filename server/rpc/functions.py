"""FunctionService: messages in and out of `server.functions`; the rules live there."""

from google.api import httpbody_pb2
from google.protobuf.empty_pb2 import Empty

from atlas.functions.v1 import functions_pb2, functions_service_pb2_grpc
from atlas.functions.v1 import functions_service_pb2 as pb
from server.functions.configuration import Reconfiguration
from server.functions.deploy import Deployer
from server.functions.downloads import Downloads
from server.functions.lifecycle import Lifecycle
from server.functions.records import Function, Version
from server.functions.registry import Registry
from server.functions.settings import FunctionSettings
from server.rpc.access import principal
from server.rpc.boundary import Context
from server.rpc.values import timestamp


class FunctionService(functions_service_pb2_grpc.FunctionServiceServicer):
    def __init__(self, registry: Registry, deployer: Deployer, lifecycle: Lifecycle, downloads: Downloads) -> None:
        self._registry = registry
        self._deployer = deployer
        self._lifecycle = lifecycle
        self._downloads = downloads

    async def CreateFunction(self, request: pb.CreateFunctionRequest, context: Context) -> functions_pb2.EdgeFunction:
        caller = principal()
        made = await self._deployer.create(
            caller.project_id,
            caller.tier,
            name=request.name,
            slug=request.slug,
            runtime=request.runtime,
            entrypoint=request.entrypoint,
            isolation=request.isolation,
        )
        return _function(made)

    async def DeployFunction(self, request: pb.DeployFunctionRequest, context: Context) -> functions_pb2.EdgeFunction:
        caller = principal()
        deployed = await self._deployer.deploy(
            caller.project_id,
            caller.tier,
            name=request.name,
            slug=request.slug,
            runtime=request.runtime,
            language=request.language,
            source=request.source,
            module=request.module,
            isolation=request.isolation,
            note=request.note,
            change=Reconfiguration(
                settings=_parsed(request.settings) if request.HasField("settings") else None,
                exactly_once=request.exactly_once if request.HasField("exactly_once") else None,
                env=dict(request.env) or None,
                secrets=dict(request.secrets),
            ),
        )
        return _function(deployed)

    async def UpdateFunction(self, request: pb.UpdateFunctionRequest, context: Context) -> functions_pb2.EdgeFunction:
        caller = principal()
        updated = await self._deployer.update(
            caller.project_id,
            caller.tier,
            request.function_id,
            name=request.name if request.HasField("name") else None,
            isolation=request.isolation if request.HasField("isolation") else None,
            note=request.note,
            change=Reconfiguration(
                settings=_parsed(request.settings) if request.HasField("settings") else None,
                exactly_once=request.exactly_once if request.HasField("exactly_once") else None,
                env=dict(request.env.variables) if request.HasField("env") else None,
                secrets=dict(request.secrets),
                remove_secrets=tuple(request.remove_secrets),
            ),
        )
        return _function(updated)

    async def ListFunctions(self, request: pb.ListFunctionsRequest, context: Context) -> pb.ListFunctionsResponse:
        page = await self._registry.list(
            principal().project_id, request.page_size, request.page_token, deleted=request.deleted
        )
        return pb.ListFunctionsResponse(
            functions=[_function(item) for item in page.items], next_page_token=page.next_page_token
        )

    async def GetFunction(self, request: pb.GetFunctionRequest, context: Context) -> functions_pb2.EdgeFunction:
        return _function(await self._registry.get(principal().project_id, request.function_id))

    async def DeleteFunction(self, request: pb.DeleteFunctionRequest, context: Context) -> Empty:
        await self._lifecycle.delete(principal().project_id, request.function_id)
        return Empty()

    async def UndeleteFunction(
        self, request: pb.UndeleteFunctionRequest, context: Context
    ) -> functions_pb2.EdgeFunction:
        return _function(await self._lifecycle.undelete(principal().project_id, request.function_id))

    async def ListFunctionVersions(
        self, request: pb.ListFunctionVersionsRequest, context: Context
    ) -> pb.ListFunctionVersionsResponse:
        page = await self._registry.versions(
            principal().project_id, request.function_id, request.page_size, request.page_token
        )
        return pb.ListFunctionVersionsResponse(
            versions=[_version(item) for item in page.items], next_page_token=page.next_page_token
        )

    async def GetFunctionVersion(
        self, request: pb.GetFunctionVersionRequest, context: Context
    ) -> functions_pb2.FunctionVersion:
        return _version(await self._registry.version(principal().project_id, request.function_id, request.version))

    async def DownloadFunctionVersion(
        self, request: pb.DownloadFunctionVersionRequest, context: Context
    ) -> httpbody_pb2.HttpBody:
        download = await self._downloads.get(principal().project_id, request.function_id, request.version, request.form)
        await context.send_initial_metadata(
            (
                ("content-disposition", f'attachment; filename="{download.filename}"'),
                ("x-content-type-options", "nosniff"),
            )
        )
        return httpbody_pb2.HttpBody(content_type=download.content_type, data=download.data)

    async def RollbackFunction(
        self, request: pb.RollbackFunctionRequest, context: Context
    ) -> functions_pb2.EdgeFunction:
        return _function(await self._lifecycle.rollback(principal().project_id, request.function_id))

    async def ActivateFunctionVersion(
        self, request: pb.ActivateFunctionVersionRequest, context: Context
    ) -> functions_pb2.EdgeFunction:
        return _function(await self._lifecycle.activate(principal().project_id, request.function_id, request.version))


def _parsed(settings: functions_pb2.FunctionSettings) -> FunctionSettings:
    return FunctionSettings(
        timeout_ms=settings.timeout_ms if settings.HasField("timeout_ms") else None,
        memory_mb=settings.memory_mb if settings.HasField("memory_mb") else None,
        concurrency=settings.concurrency if settings.HasField("concurrency") else None,
    )


def _settings(settings: FunctionSettings) -> functions_pb2.FunctionSettings:
    return functions_pb2.FunctionSettings(
        timeout_ms=settings.timeout_ms, memory_mb=settings.memory_mb, concurrency=settings.concurrency
    )


def _function(function: Function) -> functions_pb2.EdgeFunction:
    return functions_pb2.EdgeFunction(
        id=function.id,
        project_id=function.project_id,
        name=function.name,
        slug=function.slug,
        runtime=function.runtime,
        entrypoint=function.entrypoint,
        language=function.language,
        version=function.version,
        isolation=function.isolation,
        created_at=timestamp(function.created_at),
        updated_at=timestamp(function.updated_at),
        settings=_settings(function.settings),
        exactly_once=function.exactly_once,
        env=function.env,
        secret_names=function.secret_names,
        deleted_at=None if function.deleted_at is None else timestamp(function.deleted_at),
    )


def _version(version: Version) -> functions_pb2.FunctionVersion:
    return functions_pb2.FunctionVersion(
        function_id=version.function_id,
        version=version.version,
        runtime=version.runtime,
        language=version.language,
        entrypoint=version.entrypoint,
        isolation=version.isolation,
        sha256=version.sha256,
        source_bytes=version.source_bytes,
        active=version.active,
        created_at=timestamp(version.created_at),
        note=version.note,
        settings=_settings(version.settings),
        exactly_once=version.exactly_once,
        env=version.env,
        secret_names=version.secret_names,
    )
