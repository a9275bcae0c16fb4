"""The wire as clients meet it: keys and roles, the error envelope, methods and paths, CORS, gRPC and gRPC-web."""

import json
import struct
import subprocess
import sys
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any

import grpc
import httpx
import pytest
from google.protobuf import json_format, struct_pb2
from google.rpc import error_details_pb2, status_pb2
from grpc_health.v1 import health_pb2

from atlas.functions.v1 import functions_service_pb2 as functions_pb
from atlas.functions.v1 import functions_service_pb2_grpc, invocation_service_pb2_grpc
from atlas.functions.v1 import invocation_service_pb2 as invocation_pb
from tests.fix_clients import Rest, RunningStack

ECHO = "export default (input, ctx) => ({ input, ...ctx.request })"


def error(response: httpx.Response) -> Any:
    body = response.json()
    assert set(body) == {"error"}, body
    assert {"code", "message", "details"} >= set(body["error"]) >= {"code", "message"}, body
    return body["error"]


@pytest.fixture(scope="module")
def echo(rest: Rest) -> str:
    assert rest.deploy(ECHO, slug="echo").status_code == 200
    return "echo"


class TestKeys:
    def paths(self, rest: Rest) -> list[tuple[str, str]]:
        functions = f"/v1/projects/{rest.project_id}/functions"
        one = f"{functions}/{uuid.uuid4()}"
        return [
            ("GET", functions),
            ("POST", functions),
            ("POST", f"{functions}/deploy"),
            ("GET", one),
            ("DELETE", one),
            ("GET", f"{one}/versions"),
            ("POST", f"{one}/versions/1:activate"),
        ]

    def admin_paths(self, rest: Rest) -> list[tuple[str, str]]:
        one = f"/v1/projects/{rest.project_id}"
        return [
            ("POST", "/v1/projects"),
            ("GET", "/v1/projects"),
            ("GET", one),
            ("PATCH", one),
            ("POST", f"{one}/keys"),
            ("GET", f"{one}/keys"),
            ("DELETE", f"{one}/keys/{uuid.uuid4()}"),
        ]

    def test_no_key_is_401_everywhere(self, rest: Rest, echo: str) -> None:
        for method, path in [*self.paths(rest), *self.admin_paths(rest), ("POST", f"/functions/v1/invoke/{echo}")]:
            answer = rest.request(method, path)
            assert (answer.status_code, error(answer)["code"]) == (401, "unauthenticated"), (method, path)

    def test_an_unknown_key_is_401_everywhere(self, rest: Rest, echo: str) -> None:
        for method, path in [*self.paths(rest), *self.admin_paths(rest), ("POST", f"/functions/v1/invoke/{echo}")]:
            answer = rest.request(method, path, key="atlas_service_" + "x" * 43)
            assert (answer.status_code, error(answer)["code"]) == (401, "unauthenticated"), (method, path)

    def test_an_anon_key_may_only_invoke(self, rest: Rest) -> None:
        for method, path in [*self.paths(rest), *self.admin_paths(rest)]:
            answer = rest.request(method, path, key=rest.anon_key)
            assert (answer.status_code, error(answer)["code"]) == (403, "permission_denied"), (method, path)

    def test_a_service_key_is_no_admin_key_and_the_admin_key_no_service_key(self, rest: Rest) -> None:
        for method, path in self.admin_paths(rest):
            assert rest.request(method, path, key=rest.service_key).status_code == 403, (method, path)
        for method, path in self.paths(rest):
            assert rest.request(method, path, key=rest.admin_key).status_code == 403, (method, path)

    def test_both_headers_are_understood(self, rest: Rest, echo: str) -> None:
        path = f"/functions/v1/invoke/{echo}"
        for headers in ({"apikey": rest.anon_key}, {"authorization": f"Bearer {rest.anon_key}"}):
            assert rest.request("POST", path, headers=headers, json=1).status_code == 200

    def test_another_projects_id_is_refused_in_path_body_and_query(
        self, rest: Rest, new_project: Callable[..., Rest]
    ) -> None:
        other = new_project()
        theirs = f"/v1/projects/{other.project_id}/functions"
        ours = f"/v1/projects/{rest.project_id}/functions"
        deploy = {"name": "x", "slug": "stolen", "runtime": "quickjs", "source": "export default () => 1"}
        attempts = [
            rest.request("GET", theirs, key=rest.service_key),
            rest.request("POST", f"{theirs}/deploy", key=rest.service_key, json=deploy),
            rest.request(
                "POST", f"{ours}/deploy", key=rest.service_key, json={**deploy, "project_id": other.project_id}
            ),
            rest.request("GET", f"{ours}?project_id={other.project_id}", key=rest.service_key),
        ]
        assert {answer.status_code for answer in attempts} <= {400, 403}, [answer.text for answer in attempts]
        camel = {**deploy, "projectId": other.project_id}
        assert (
            rest.request("POST", f"{ours}/deploy", key=rest.service_key, json=camel).json()["project_id"]
            == rest.project_id
        )
        assert other.request("GET", theirs, key=other.service_key).json()["functions"] == []

    def test_a_function_of_another_project_is_not_found(self, rest: Rest, new_project: Callable[..., Rest]) -> None:
        other = new_project()
        function_id = other.deploy("export default () => 'theirs'", slug="private").json()["id"]
        assert rest.invoke("private").status_code == 404
        for method in ("GET", "DELETE"):
            path = f"/v1/projects/{rest.project_id}/functions/{function_id}"
            assert rest.request(method, path, key=rest.service_key).status_code == 404
        assert other.invoke("private").json()["result"] == "theirs"

    def test_a_revoked_key_stops_working(self, rest: Rest, new_project: Callable[..., Rest]) -> None:
        other = new_project()
        keys = f"/v1/projects/{other.project_id}/keys"
        listed = other.request("GET", keys, key=rest.admin_key).json()["keys"]
        assert all("key" not in item for item in listed)
        service = next(item for item in listed if item["role"] == "service")
        functions = f"/v1/projects/{other.project_id}/functions"
        assert other.request("GET", functions, key=other.service_key).status_code == 200
        assert other.request("DELETE", f"{keys}/{service['id']}", key=rest.admin_key).status_code == 200
        assert other.request("GET", functions, key=other.service_key).status_code == 401


class TestErrors:
    def test_an_unknown_path_is_404_in_the_envelope(self, rest: Rest) -> None:
        answer = rest.request("GET", "/no/such/path", key=rest.service_key)
        assert (answer.status_code, error(answer)["code"]) == (404, "not_found")
        assert answer.headers["content-type"].startswith("application/json")

    def test_malformed_json_is_400(self, rest: Rest, echo: str) -> None:
        headers = {"content-type": "application/json"}
        path = f"/v1/projects/{rest.project_id}/functions/deploy"
        bad = rest.request("POST", path, key=rest.service_key, content=b"{", headers=headers)
        assert (bad.status_code, error(bad)["code"]) == (400, "invalid_argument")
        bad = rest.request("POST", f"/functions/v1/invoke/{echo}", key=rest.anon_key, content=b"{oops", headers=headers)
        assert (bad.status_code, error(bad)["code"]) == (400, "invalid_argument")
        assert "not valid JSON" in error(bad)["message"]

    def test_six_mebibytes_pass_and_more_is_413(self, rest: Rest) -> None:
        assert rest.deploy("export default (input) => input.length", slug="length").status_code == 200
        limit = 6 * 1024 * 1024
        fits = rest.invoke("length", "x" * (limit - 1024))
        assert fits.json()["result"] == limit - 1024, fits.text[:200]
        large = rest.invoke("length", "x" * (limit + 1024))
        assert (large.status_code, error(large)["code"]) == (413, "invalid_argument")
        assert "6" in error(large)["message"]

    def test_details_name_field_and_reason(self, rest: Rest) -> None:
        refused = error(rest.deploy("export default () => 1", slug="not a slug"))
        info, bad = refused["details"]
        assert info["@type"] == "type.googleapis.com/google.rpc.ErrorInfo"
        assert info["domain"] == "functions.atlas"
        assert bad["fieldViolations" if "fieldViolations" in bad else "field_violations"][0]["field"] == "slug"

    def test_a_missing_function_is_404_in_the_specifications_words(self, rest: Rest) -> None:
        answer = rest.invoke("nowhere")
        assert answer.status_code == 404
        assert error(answer)["message"].startswith("JS source not found")

    def test_an_exception_tells_message_and_stack(self, rest: Rest) -> None:
        source = "function inner() { throw new TypeError('kaputt') }\n\nexport default () => inner()\n"
        assert rest.deploy(source, slug="thrower").status_code == 200
        answer = rest.invoke("thrower")
        assert answer.status_code == 500
        thrown = error(answer)
        assert thrown["code"] == "unknown"
        assert thrown["message"] == "The function threw TypeError: kaputt"
        metadata = thrown["details"][0]["metadata"]
        assert thrown["details"][0]["reason"] == "FUNCTION_EXCEPTION"
        assert "thrower.js:1:" in metadata["stack"]
        assert "thrower.js:3:" in metadata["stack"]
        assert float(metadata["wall_ms"]) > 0


class TestHttp:
    @pytest.mark.parametrize("method", ["GET", "POST", "PUT", "PATCH", "DELETE"])
    def test_every_method_reaches_the_function_with_path_query_and_headers(
        self, rest: Rest, echo: str, method: str
    ) -> None:
        answer = rest.request(
            method, f"/functions/v1/invoke/{echo}/a/b?x=1&slug=other&rest=z", key=rest.anon_key, headers={"x-mine": "7"}
        )
        seen = answer.json()["result"]
        assert (seen["method"], seen["path"]) == (method, "/a/b")
        assert seen["query"] == {"x": "1", "slug": "other", "rest": "z"}
        assert seen["headers"]["x-mine"] == "7"
        assert "authorization" not in seen["headers"]
        assert seen["input"] is None

    def test_clients_cannot_forge_what_envoy_says(self, rest: Rest, echo: str) -> None:
        forged = {"x-envoy-original-path": "/functions/v1/invoke/echo/forged", "x-envoy-original-method": "TRACE"}
        seen = rest.invoke(echo, 1, headers=forged).json()["result"]
        assert (seen["method"], seen["path"]) == ("POST", "")

    def test_text_and_bytes_arrive_as_such(self, rest: Rest) -> None:
        source = "export default (input) => typeof input === 'string' ? input : [...input]"
        assert rest.deploy(source, slug="bodies").status_code == 200
        path = "/functions/v1/invoke/bodies"
        text = rest.request("POST", path, key=rest.anon_key, content="grüße", headers={"content-type": "text/plain"})
        assert text.json()["result"] == "grüße"
        raw = {"content-type": "application/octet-stream"}
        data = rest.request("POST", path, key=rest.anon_key, content=bytes(range(256)), headers=raw)
        assert data.json()["result"] == list(range(256))

    def test_json_passes_byte_for_byte(self, rest: Rest) -> None:
        assert rest.deploy("export default (input) => input", slug="identity").status_code == 200
        text = '{"unicode":"\u2028 \U0001f600 é","float":0.1,"nested":[[[{}]]],"empty":"","null":null}'
        answer = rest.request(
            "POST",
            "/functions/v1/invoke/identity",
            key=rest.anon_key,
            content=text.encode(),
            headers={"content-type": "application/json"},
        )
        assert answer.text.startswith('{"result":' + text + ',"metrics":{"wall_ms":')

    def test_a_response_answers_with_exactly_its_status_headers_and_body(self, rest: Rest) -> None:
        source = """export default () => new Response("<h1>tea</h1>", {
            status: 418, headers: [["content-type", "text/html"], ["set-cookie", "a=1"], ["set-cookie", "b=2"]] })"""
        assert rest.deploy(source, slug="teapot").status_code == 200
        answer = rest.invoke("teapot")
        assert (answer.status_code, answer.text) == (418, "<h1>tea</h1>")
        assert answer.headers["content-type"] == "text/html"
        assert answer.headers.get_list("set-cookie") == ["a=1", "b=2"]
        assert not [name for name in answer.headers if name.startswith(("x-atlas", "grpc-"))]

    def test_an_empty_response_and_a_json_error_of_the_functions_own_stay_as_they_are(self, rest: Rest) -> None:
        assert rest.deploy("export default () => new Response(null, {status: 204})", slug="empty").status_code == 200
        answer = rest.invoke("empty")
        assert (answer.status_code, answer.content) == (204, b"")
        source = "export default () => Response.json({code: 5, message: 'mine'}, {status: 404})"
        assert rest.deploy(source, slug="own-error").status_code == 200
        answer = rest.invoke("own-error")
        assert (answer.status_code, answer.json()) == (404, {"code": 5, "message": "mine"})

    def test_cors_preflight_and_answer(self, rest: Rest, echo: str) -> None:
        asking = {
            "origin": "https://app.example",
            "access-control-request-method": "POST",
            "access-control-request-headers": "authorization,apikey,content-type,x-client-info",
        }
        preflight = rest.request("OPTIONS", f"/functions/v1/invoke/{echo}", headers=asking)
        assert preflight.status_code in (200, 204)
        assert preflight.headers["access-control-allow-origin"] in ("*", "https://app.example")
        allowed = preflight.headers["access-control-allow-headers"].lower()
        assert "authorization" in allowed
        assert "apikey" in allowed
        assert "PATCH" in preflight.headers["access-control-allow-methods"]
        answer = rest.invoke(echo, 1, headers={"origin": "https://app.example"})
        assert answer.headers["access-control-allow-origin"] in ("*", "https://app.example")

    def test_healthz_names_every_part_and_the_layers_of_the_sandbox(self, rest: Rest) -> None:
        answer = rest.request("GET", "/healthz")
        assert answer.status_code == 200, answer.text
        body = answer.json()
        assert set(body["parts"]) == {"control_database", "tenants_database", "key_value", "event_bus", "sandbox"}
        assert "seccomp" in json.dumps(body["sandbox"])


class TestGrpc:
    async def test_typed_invoke_on_the_same_port(self, rest: Rest, echo: str, channel: grpc.aio.Channel) -> None:
        stub = invocation_service_pb2_grpc.InvocationServiceStub(channel)
        value = struct_pb2.Value()
        json_format.ParseDict({"n": 1, "list": [True, None, "x"]}, value)
        request = invocation_pb.InvokeRequest(slug=echo, input=value, path="/p")
        answer = await stub.Invoke(request, metadata=(("apikey", rest.anon_key),))
        result = json_format.MessageToDict(answer.result)
        assert result["input"] == {"n": 1, "list": [True, None, "x"]}
        assert result["path"] == "/p"
        assert answer.metrics.wall_ms > 0
        assert answer.metrics.memory_bytes > 0
        assert not answer.metrics.HasField("fuel_consumed")

    async def test_errors_carry_details(self, rest: Rest, channel: grpc.aio.Channel) -> None:
        stub = functions_service_pb2_grpc.FunctionServiceStub(channel)
        request = functions_pb.DeployFunctionRequest(
            project_id=rest.project_id, name="x", slug="x", runtime="quickjs", source="export default ("
        )
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await stub.DeployFunction(request, metadata=(("authorization", f"Bearer {rest.service_key}"),))
        assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT
        trailers = dict(caught.value.trailing_metadata() or ())
        status = status_pb2.Status.FromString(trailers["grpc-status-details-bin"])
        info = error_details_pb2.ErrorInfo()
        assert status.details[0].Unpack(info)
        assert info.reason == "COMPILATION_FAILED"
        assert info.metadata["line"] == "1"

    async def test_roles_hold_for_native_grpc_too(self, rest: Rest, channel: grpc.aio.Channel) -> None:
        stub = functions_service_pb2_grpc.FunctionServiceStub(channel)
        for key, project_id, code in [
            (None, rest.project_id, grpc.StatusCode.UNAUTHENTICATED),
            (rest.anon_key, rest.project_id, grpc.StatusCode.PERMISSION_DENIED),
            (rest.service_key, str(uuid.uuid4()), grpc.StatusCode.PERMISSION_DENIED),
        ]:
            with pytest.raises(grpc.aio.AioRpcError) as caught:
                await stub.ListFunctions(
                    functions_pb.ListFunctionsRequest(project_id=project_id),
                    metadata=(("apikey", key),) if key else (),
                )
            assert caught.value.code() is code

    async def test_health_needs_no_key(self, channel: grpc.aio.Channel) -> None:
        check = channel.unary_unary(
            "/grpc.health.v1.Health/Check",
            request_serializer=health_pb2.HealthCheckRequest.SerializeToString,
            response_deserializer=health_pb2.HealthCheckResponse.FromString,
        )
        assert (await check(health_pb2.HealthCheckRequest())).status == health_pb2.HealthCheckResponse.SERVING

    def test_buf_curl_debugs_by_reflection(
        self, running_stack: RunningStack, rest: Rest, echo: str, tmp_path: Path
    ) -> None:
        buf = Path(sys.executable).parent / "buf"
        base = [str(buf), "curl", "--http2-prior-knowledge", "--protocol", "grpc"]
        method = f"{running_stack.url}/atlas.functions.v1.InvocationService/Invoke"
        environment = {"HOME": str(tmp_path), "PATH": "/usr/bin:/bin"}
        listed = subprocess.run(
            [*base, "--list-methods", running_stack.url], capture_output=True, text=True, timeout=60, env=environment
        )
        assert "atlas.functions.v1.FunctionService/DeployFunction" in listed.stdout, listed.stderr
        data = json.dumps({"slug": echo, "input": {"hello": "buf"}})
        called = subprocess.run(
            [*base, "-H", f"apikey: {rest.anon_key}", "-d", data, method],
            capture_output=True,
            text=True,
            timeout=60,
            env=environment,
        )
        assert called.returncode == 0, called.stderr
        assert json.loads(called.stdout)["result"]["input"] == {"hello": "buf"}

    def test_grpc_web_on_the_same_port(self, rest: Rest, echo: str) -> None:
        message = invocation_pb.InvokeRequest(slug=echo, input=struct_pb2.Value(string_value="web")).SerializeToString()
        framed = b"\0" + struct.pack(">I", len(message)) + message
        answer = rest.request(
            "POST",
            "/atlas.functions.v1.InvocationService/Invoke",
            content=framed,
            headers={"content-type": "application/grpc-web+proto", "apikey": rest.anon_key, "x-grpc-web": "1"},
        )
        assert answer.status_code == 200
        length = struct.unpack(">I", answer.content[1:5])[0]
        result = invocation_pb.InvokeResponse.FromString(answer.content[5 : 5 + length])
        assert json_format.MessageToDict(result.result)["input"] == "web"
