"""FunctionService over gRPC: what of a message is absent, empty or given makes a difference, and all comes back."""

from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import grpc
import pytest
from google.rpc import error_details_pb2, status_pb2

from atlas.functions.v1 import functions_pb2
from atlas.functions.v1 import functions_service_pb2 as pb
from atlas.functions.v1.functions_service_pb2_grpc import FunctionServiceStub, add_FunctionServiceServicer_to_server
from server.projects import Principal
from server.rpc.access import Gate
from server.rpc.boundary import Boundary
from server.rpc.functions import FunctionService
from server.rpc.status import DETAILS_KEY
from tests.fix_functions import WASM, Node

SETTINGS = functions_pb2.FunctionSettings
KEY = (("apikey", "the key"),)


class Client:
    """Calls methods by name with the project's key."""

    def __init__(self, channel: grpc.aio.Channel, project_id: str) -> None:
        self._stub = FunctionServiceStub(channel)
        self._project_id = project_id

    def start(self, method: str, **fields: Any) -> Any:
        request = getattr(pb, method + "Request")(project_id=self._project_id, **fields)
        return getattr(self._stub, method)(request, metadata=KEY)

    async def call(self, method: str, **fields: Any) -> Any:
        return await self.start(method, **fields)

    async def deploy(self, source: str = "export default () => 1", **fields: Any) -> functions_pb2.EdgeFunction:
        given = {"name": "Hello", "slug": "hello", "runtime": "quickjs", "source": source} | fields
        deployed: functions_pb2.EdgeFunction = await self.call("DeployFunction", **given)
        return deployed


@pytest.fixture
async def client(node: Node, tmp_path: Path) -> AsyncIterator[Client]:
    class Keys:
        async def authenticate(self, secret: str) -> Principal:
            return Principal(project_id=node.project_id, role="service", tier="free", key_id="k")

    server = grpc.aio.server()
    service = FunctionService(node.registry, node.deployer, node.lifecycle, node.downloads)
    Boundary(server, Gate(Keys(), "a" * 40)).add(add_FunctionServiceServicer_to_server, service)
    address = f"unix:{tmp_path}/s"
    server.add_insecure_port(address)
    await server.start()
    async with grpc.aio.insecure_channel(address) as channel:
        yield Client(channel, node.project_id)
    await server.stop(0)


async def field_of(call: Any) -> str:
    """The field that a refused call names."""
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await call
    assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT, caught.value.details()
    trailers: dict[str, Any] = dict(caught.value.trailing_metadata() or ())
    status = status_pb2.Status.FromString(trailers[DETAILS_KEY])
    bad = error_details_pb2.BadRequest()
    assert any(detail.Unpack(bad) for detail in status.details)
    return str(bad.field_violations[0].field)


async def test_a_deploy_with_everything_comes_back_as_it_was_given(client: Client) -> None:
    made = await client.deploy(
        note="why",
        env={"A": "1"},
        secrets={"S": "hunter2", "R": "r"},
        settings=SETTINGS(timeout_ms=100, memory_mb=8, concurrency=3),
    )
    assert (dict(made.env), [*made.secret_names]) == ({"A": "1"}, ["R", "S"])
    assert made.settings == SETTINGS(timeout_ms=100, memory_mb=8, concurrency=3)
    assert not made.HasField("deleted_at")
    version = await client.call("GetFunctionVersion", function_id=made.id, version=1)
    assert (version.note, version.active, dict(version.env)) == ("why", True, {"A": "1"})
    assert (version.settings, [*version.secret_names]) == (made.settings, ["R", "S"])
    (listed,) = (await client.call("ListFunctionVersions", function_id=made.id)).versions
    assert listed == version
    assert "hunter2" not in str(made) + str(version)


async def test_what_is_absent_stays_and_what_is_empty_is_emptied(client: Client) -> None:
    await client.deploy(env={"A": "1"}, secrets={"S": "s"}, settings=SETTINGS(timeout_ms=100))
    made = await client.deploy()
    assert (dict(made.env), [*made.secret_names], made.settings) == ({"A": "1"}, ["S"], SETTINGS(timeout_ms=100))
    assert not made.settings.HasField("memory_mb")
    emptied = await client.call("UpdateFunction", function_id=made.id, env=pb.Environment(), settings=SETTINGS())
    assert (emptied.version, dict(emptied.env), emptied.settings) == (3, {}, SETTINGS())
    renamed = await client.call("UpdateFunction", function_id=made.id, name="New", secrets={})
    assert (renamed.name, renamed.version, [*renamed.secret_names]) == ("New", 3, ["S"])
    without = await client.call("UpdateFunction", function_id=made.id, remove_secrets=["S"], isolation="fresh")
    assert (without.version, [*without.secret_names], without.isolation) == (4, [], "fresh")


async def test_exactly_once_is_of_the_version_and_stays(client: Client) -> None:
    made = await client.deploy(exactly_once=True)
    assert made.exactly_once
    assert (await client.deploy("export default () => 2")).exactly_once
    assert (await client.call("UpdateFunction", function_id=made.id, note="n")).exactly_once
    off = await client.call("UpdateFunction", function_id=made.id, exactly_once=False)
    assert (off.version, off.exactly_once) == (4, False)
    versions = (await client.call("ListFunctionVersions", function_id=made.id)).versions
    assert [version.exactly_once for version in versions] == [False, True, True, True]
    assert (await client.call("RollbackFunction", function_id=made.id)).exactly_once
    assert await field_of(client.deploy(runtime="wasm")) == "exactly_once"
    (listed,) = (await client.call("ListFunctions")).functions
    assert (listed.version, listed.exactly_once) == (3, True)
    assert not (await client.deploy(runtime="wasm", exactly_once=False)).exactly_once
    assert await field_of(client.call("UpdateFunction", function_id=made.id, exactly_once=True)) == "exactly_once"


async def test_zero_is_a_value_and_not_absence(client: Client) -> None:
    made = await client.deploy()
    for name in ("timeout_ms", "memory_mb", "concurrency"):
        zero = SETTINGS(**{name: 0})
        assert await field_of(client.deploy(settings=zero)) == f"settings.{name}"
    assert await field_of(client.call("UpdateFunction", function_id=made.id, name="")) == "name"
    assert await field_of(client.call("UpdateFunction", function_id=made.id, isolation="")) == "isolation"


async def test_delete_list_undelete_and_rollback(client: Client, node: Node) -> None:
    made = await client.deploy()
    await client.deploy("export default () => 2")
    await client.call("DeleteFunction", function_id=made.id)
    assert [*(await client.call("ListFunctions")).functions] == []
    (deleted,) = (await client.call("ListFunctions", deleted=True)).functions
    assert (deleted.id, deleted.HasField("deleted_at")) == (made.id, True)
    back = await client.call("UndeleteFunction", function_id=made.id)
    assert (back.version, back.HasField("deleted_at")) == (2, False)
    assert (await client.call("RollbackFunction", function_id=made.id)).version == 1
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await client.call("RollbackFunction", function_id=made.id)
    assert caught.value.code() is grpc.StatusCode.FAILED_PRECONDITION
    assert (await client.call("ActivateFunctionVersion", function_id=made.id, version=2)).version == 2
    assert (await node.code()).endswith("=> 2")


async def test_a_module_goes_in_and_comes_out_with_its_name(client: Client) -> None:
    module = WASM + bytes(range(256))
    made = await client.deploy("", runtime="wasm", module=module)
    assert (made.language, made.entrypoint) == ("wasm", "hello.wasm")
    call = client.start("DownloadFunctionVersion", function_id=made.id, version=1, form="standalone")
    body = await call
    assert (body.content_type, body.data) == ("application/wasm", module)
    headers = dict(await call.initial_metadata())
    assert headers["content-disposition"] == 'attachment; filename="hello-v1.wasm"'
    assert headers["x-content-type-options"] == "nosniff"
