"""ProjectService: messages in and out of `server.projects`; the rules live there."""

from google.protobuf.empty_pb2 import Empty

from atlas.projects.v1 import projects_pb2, projects_service_pb2_grpc
from atlas.projects.v1 import projects_service_pb2 as pb
from server.projects import ApiKey, Project, Projects
from server.rpc.boundary import Context
from server.rpc.values import timestamp


class ProjectService(projects_service_pb2_grpc.ProjectServiceServicer):
    def __init__(self, projects: Projects) -> None:
        self._projects = projects

    async def CreateProject(self, request: pb.CreateProjectRequest, context: Context) -> projects_pb2.Project:
        tier = request.tier if request.HasField("tier") else None
        return _project(await self._projects.create(request.name, tier))

    async def GetProject(self, request: pb.GetProjectRequest, context: Context) -> projects_pb2.Project:
        return _project(await self._projects.get(request.project_id))

    async def ListProjects(self, request: pb.ListProjectsRequest, context: Context) -> pb.ListProjectsResponse:
        page = await self._projects.list(request.page_size, request.page_token)
        return pb.ListProjectsResponse(
            projects=[_project(item) for item in page.items], next_page_token=page.next_page_token
        )

    async def UpdateProject(self, request: pb.UpdateProjectRequest, context: Context) -> projects_pb2.Project:
        changes = {name: getattr(request, name) for name in ("name", "tier") if request.HasField(name)}
        return _project(await self._projects.update(request.project_id, **changes))

    async def DeleteProject(self, request: pb.DeleteProjectRequest, context: Context) -> Empty:
        await self._projects.delete(request.project_id)
        return Empty()

    async def CreateApiKey(self, request: pb.CreateApiKeyRequest, context: Context) -> pb.CreateApiKeyResponse:
        key, secret = await self._projects.create_key(request.project_id, request.role, request.name)
        return pb.CreateApiKeyResponse(api_key=_key(key), key=secret)

    async def ListApiKeys(self, request: pb.ListApiKeysRequest, context: Context) -> pb.ListApiKeysResponse:
        page = await self._projects.list_keys(request.project_id, request.page_size, request.page_token)
        return pb.ListApiKeysResponse(keys=[_key(item) for item in page.items], next_page_token=page.next_page_token)

    async def RevokeApiKey(self, request: pb.RevokeApiKeyRequest, context: Context) -> projects_pb2.ApiKey:
        return _key(await self._projects.revoke_key(request.project_id, request.key_id))


def _project(project: Project) -> projects_pb2.Project:
    return projects_pb2.Project(
        id=project.id,
        name=project.name,
        tier=project.tier,
        schema=project.schema,
        created_at=timestamp(project.created_at),
        updated_at=timestamp(project.updated_at),
    )


def _key(key: ApiKey) -> projects_pb2.ApiKey:
    return projects_pb2.ApiKey(
        id=key.id,
        project_id=key.project_id,
        role=key.role,
        name=key.name,
        prefix=key.prefix,
        created_at=timestamp(key.created_at),
        revoked_at=timestamp(key.revoked_at) if key.revoked_at else None,
    )
