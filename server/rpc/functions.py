"""FunctionService: messages in and out of `server.functions`; the rules live there."""

from google.protobuf.empty_pb2 import Empty

from atlas.functions.v1 import functions_pb2, functions_service_pb2_grpc
from atlas.functions.v1 import functions_service_pb2 as pb
from server.functions.deploy import Deployer
from server.functions.downloads import Downloads
from server.functions.lifecycle import Lifecycle
from server.functions.records import Function, Version
from server.functions.registry import Registry
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
            isolation=request.isolation,
        )
        return _function(deployed)

    async def ListFunctions(self, request: pb.ListFunctionsRequest, context: Context) -> pb.ListFunctionsResponse:
        page = await self._registry.list(principal().project_id, request.page_size, request.page_token)
        return pb.ListFunctionsResponse(
            functions=[_function(item) for item in page.items], next_page_token=page.next_page_token
        )

    async def GetFunction(self, request: pb.GetFunctionRequest, context: Context) -> functions_pb2.EdgeFunction:
        return _function(await self._registry.get(principal().project_id, request.function_id))

    async def DeleteFunction(self, request: pb.DeleteFunctionRequest, context: Context) -> Empty:
        await self._lifecycle.delete(principal().project_id, request.function_id)
        return Empty()

    async def ListFunctionVersions(
        self, request: pb.ListFunctionVersionsRequest, context: Context
    ) -> pb.ListFunctionVersionsResponse:
        page = await self._registry.versions(
            principal().project_id, request.function_id, request.page_size, request.page_token
        )
        return pb.ListFunctionVersionsResponse(
            versions=[_version(item) for item in page.items], next_page_token=page.next_page_token
        )

    async def ActivateFunctionVersion(
        self, request: pb.ActivateFunctionVersionRequest, context: Context
    ) -> functions_pb2.EdgeFunction:
        return _function(await self._lifecycle.activate(principal().project_id, request.function_id, request.version))


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
    )
