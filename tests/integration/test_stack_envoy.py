"""The real Envoy with our configuration, in front of services that answer what a test wants to see."""

import json
import shutil
import socket
import subprocess
import time
import uuid
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc
import httpx
import pytest
from google.api import httpbody_pb2
from grpc_health.v1 import health, health_pb2, health_pb2_grpc

from atlas.functions.v1 import (
    functions_pb2,
    functions_service_pb2,
    functions_service_pb2_grpc,
    invocation_service_pb2_grpc,
)
from atlas.functions.v1 import invocation_service_pb2 as invocation
from server.stack import envoy
from server.stack.account import Account, servant
from server.stack.binaries import in_wheel, runnable
from server.stack.nats import free_port
from server.stack.part import start

QUERY = "?x=1&slug=other&rest=r&body=b&body.data=eA&body.contentType=c&body.extensions=z&body.more=1"
PROJECT = "11111111-1111-4111-8111-111111111111"


class Echo(invocation_service_pb2_grpc.InvocationServiceServicer):
    """Answers with what it saw; a `x-want-status` header makes it a function's Response of that status."""

    def InvokeHttp(self, request: invocation.InvokeHttpRequest, context: Any) -> httpbody_pb2.HttpBody:
        seen = dict(context.invocation_metadata())
        if "x-want-wait" in seen:
            time.sleep(float(seen["x-want-wait"]))
        if "x-want-error" in seen:
            context.abort(getattr(grpc.StatusCode, seen["x-want-error"]), 'it "failed"')
        if "x-want-status" in seen:
            context.send_initial_metadata((("x-atlas-status", seen["x-want-status"]), ("set-cookie", "a=b")))
            return httpbody_pb2.HttpBody(content_type="application/json", data=b'{"code":5,"message":"mine"}')
        if "x-want-body" in seen:
            return httpbody_pb2.HttpBody(content_type=request.body.content_type, data=request.body.data)
        answer = {"slug": request.slug, "rest": request.rest, "size": len(request.body.data), "seen": seen}
        left = context.time_remaining()
        answer["seconds"] = left
        return httpbody_pb2.HttpBody(content_type="application/json", data=json.dumps(answer, default=str).encode())


class Functions(functions_service_pb2_grpc.FunctionServiceServicer):
    def DeployFunction(
        self, request: functions_service_pb2.DeployFunctionRequest, context: Any
    ) -> functions_pb2.EdgeFunction:
        return functions_pb2.EdgeFunction(project_id=request.project_id, slug=request.slug)


@dataclass
class Door:
    http: httpx.Client
    port: int
    access_log: Path


@contextmanager
def opened(folder: Path, api: Path, **fields: Any) -> Iterator[Door]:
    """An Envoy in front of whatever serves on the socket `api`."""
    folder.mkdir()
    folder.chmod(0o711)
    front = envoy.Front(
        host="127.0.0.1",
        port=free_port(),
        api_sockets=[api],
        admin_socket=folder / "envoy" / "admin.sock",
        access_log=folder / "access.log",
        descriptors=envoy.descriptors(),
        **fields,
    )
    part = envoy.part(
        front=front, home=folder / "envoy", programs=folder / "bin", log=folder / "envoy.log", account=servant()
    )
    running = start(part, "test")
    try:
        running.wait_ready()
        with httpx.Client(base_url=f"http://127.0.0.1:{front.port}", trust_env=False, timeout=30) as client:
            yield Door(client, front.port, front.access_log)
    finally:
        running.stop()


@pytest.fixture(scope="module")
def api(stack_dir: Path) -> Iterator[Path]:
    """The socket of the services."""
    path = stack_dir / "echo.sock"
    server = grpc.server(ThreadPoolExecutor(4), options=[("grpc.max_receive_message_length", 8 << 20)])
    invocation_service_pb2_grpc.add_InvocationServiceServicer_to_server(Echo(), server)  # type: ignore[abstract]
    functions_service_pb2_grpc.add_FunctionServiceServicer_to_server(Functions(), server)  # type: ignore[abstract]
    serving = health.HealthServicer()
    serving.set("", health_pb2.HealthCheckResponse.SERVING)
    health_pb2_grpc.add_HealthServicer_to_server(serving, server)
    server.add_insecure_port(f"unix:{path}")
    server.start()
    path.chmod(0o777)
    yield path
    server.stop(0).wait()


@pytest.fixture(scope="module")
def door(stack_dir: Path, api: Path) -> Iterator[Door]:
    with opened(stack_dir / "door", api) as door:
        assert door.http.get("/functions/v1/invoke/x").status_code == 200
        yield door


def test_envoy_accepts_the_configuration(tmp_path: Path) -> None:
    front = envoy.Front(
        host="0.0.0.0",
        port=3000,
        api_sockets=[tmp_path / "a.sock", tmp_path / "b.sock"],
        admin_socket=tmp_path / "admin.sock",
        access_log=tmp_path / "access.log",
        descriptors=envoy.descriptors(),
    )
    (tmp_path / "envoy.yaml").write_text(envoy.render(front))
    program = in_wheel(envoy.WHEEL, "envoy")
    checked = subprocess.run(
        [program, "--mode", "validate", "-c", tmp_path / "envoy.yaml", "-l", "warning"], capture_output=True, text=True
    )
    assert checked.returncode == 0, checked.stderr


def error(response: httpx.Response, status: int, code: str) -> str:
    assert response.status_code == status, response.text
    assert response.headers["content-type"] == "application/json"
    body = response.json()["error"]
    assert body["code"] == code
    assert body["details"] == []
    return str(body["message"])


@pytest.mark.parametrize("method", ["GET", "POST", "PUT", "PATCH", "DELETE"])
def test_every_method_reaches_a_function_with_path_and_query(door: Door, method: str) -> None:
    answer = door.http.request(method, f"/functions/v1/invoke/hello/a%20b/c%2Fd{QUERY}").json()
    assert (answer["slug"], answer["rest"], answer["size"]) == ("hello", "a b/c%2Fd", 0)
    assert answer["seen"]["x-envoy-original-method"] == method
    assert answer["seen"]["x-envoy-original-path"] == f"/functions/v1/invoke/hello/a%20b/c%2Fd{QUERY}"
    assert 60 < answer["seconds"] <= 64


@pytest.mark.parametrize("content_type", ["application/json", "text/plain", "application/octet-stream"])
def test_a_body_passes_byte_for_byte(door: Door, content_type: str) -> None:
    body = b'{"n": 1.0, "n": 12345678901234567890}\x00\xff'
    headers = {"content-type": content_type, "x-want-body": "1"}
    answer = door.http.post("/functions/v1/invoke/e", content=body, headers=headers)
    assert answer.content == body
    assert answer.headers["content-type"] == content_type


def test_six_mebibytes_pass_and_one_more_byte_does_not(door: Door) -> None:
    assert door.http.post("/functions/v1/invoke/e", content=b"x" * (6 << 20)).json()["size"] == 6 << 20
    refused = door.http.post("/functions/v1/invoke/e", content=b"x" * ((6 << 20) + 1))
    assert "6 MiB (6291456 bytes)" in error(refused, 413, "invalid_argument")


@pytest.mark.parametrize(
    ("status", "http", "code"),
    [
        ("INVALID_ARGUMENT", 400, "invalid_argument"),
        ("UNAUTHENTICATED", 401, "unauthenticated"),
        ("PERMISSION_DENIED", 403, "permission_denied"),
        ("NOT_FOUND", 404, "not_found"),
        ("ALREADY_EXISTS", 409, "already_exists"),
        ("RESOURCE_EXHAUSTED", 429, "resource_exhausted"),
        ("UNKNOWN", 500, "unknown"),
        ("INTERNAL", 500, "internal"),
        ("UNIMPLEMENTED", 501, "unimplemented"),
        ("UNAVAILABLE", 503, "unavailable"),
        ("DEADLINE_EXCEEDED", 504, "deadline_exceeded"),
    ],
)
def test_a_status_becomes_the_envelope(door: Door, status: str, http: int, code: str) -> None:
    answer = door.http.post("/functions/v1/invoke/e", headers={"x-want-error": status})
    assert error(answer, http, code) == 'it "failed"'
    assert not [name for name in answer.headers if name.startswith("grpc-")]


@pytest.mark.parametrize("status", [201, 404, 500])
def test_a_function_chooses_its_status_and_its_body_is_left_alone(door: Door, status: int) -> None:
    answer = door.http.post("/functions/v1/invoke/e", headers={"x-want-status": str(status)})
    assert answer.status_code == status
    assert answer.content == b'{"code":5,"message":"mine"}'
    assert answer.headers["set-cookie"] == "a=b"
    assert "x-atlas-status" not in answer.headers


def test_a_client_cannot_speak_for_envoy_or_for_us(door: Door) -> None:
    forged = {
        "x-envoy-original-path": "/forged",
        "x-envoy-upstream-rq-timeout-ms": "1",
        "X-Envoy-Max-Retries": "9",
        "x-atlas-status": "418",
    }
    answer = door.http.post("/functions/v1/invoke/e", headers=forged)
    seen = answer.json()["seen"]
    assert seen["x-envoy-original-path"] == "/functions/v1/invoke/e"
    assert not {"x-envoy-upstream-rq-timeout-ms", "x-envoy-max-retries", "x-atlas-status"} & seen.keys()


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("GET", "/"),
        ("GET", "/nothing/here?q=1"),
        ("PUT", f"/v1/projects/{PROJECT}/functions"),
        ("TRACE", "/healthz"),
        ("POST", "/atlas.functions.v1.InvocationService/InvokeHttp"),
    ],
)
def test_what_does_not_exist_is_named(door: Door, method: str, path: str) -> None:
    answer = door.http.request(method, path)
    assert error(answer, 404, "not_found") == f"There is no {method} {path} here"


def test_a_head_request_to_nothing_has_no_body(door: Door) -> None:
    answer = door.http.head("/nothing")
    assert answer.status_code == 404
    assert answer.content == b""


@pytest.mark.parametrize("body", [b"{", b"[]", b'{"slug": 1e999}', b'{"slug": "\xff"}', b"{" * 2000])
def test_bad_json_is_a_400_that_says_so(door: Door, body: bytes) -> None:
    answer = door.http.post(f"/v1/projects/{PROJECT}/functions/deploy", content=body)
    assert error(answer, 400, "invalid_argument")


@pytest.mark.parametrize(
    ("body", "message"),
    [
        (b'{"slug": "s", "secrets": {"S": hunter2}}', "Unexpected token."),
        (b'{"slug": "s", "secrets": {"S": "hun\\nter2" "x"}}', "Expected , or } after key:value pair."),
        (b'{"slug": "s", "secrets": {"S": "hunter2\\ud800"}}', "Missing low surrogate."),
        (b'{"slug": "s", "secrets": {"S": "hunter2\xff"}}', "Encountered non UTF-8 code points."),
        (b'{"slug": "s", "secrets": "hunter2"}', "secrets: invalid value for type "),
        (b'{"slug": "s", "secrets": {"S": ["hunter2"]}}', "Proto fields must have a name."),
        (
            b'{"slug": "s", "settings": {"timeout_ms": "hun\\\\nter2 for type \\" x"}}',
            "settings.timeout_ms: invalid value for",
        ),
        (b'{"slug": "s", "secrets": {"K\\\\n": "", "K\\\\n": "hunter2"}}', "Repeated map key: 'K"),
    ],
)
def test_what_is_said_of_a_bad_body_quotes_nothing_of_it(door: Door, body: bytes, message: str) -> None:
    answer = door.http.post(f"/v1/projects/{PROJECT}/functions/deploy", content=body)
    assert message in error(answer, 400, "invalid_argument")
    assert "ter2" not in answer.text


def test_a_body_cannot_override_the_project_of_the_path(door: Door) -> None:
    path = f"/v1/projects/{PROJECT}/functions/deploy"
    assert door.http.post(path, json={"slug": "s"}).json()["project_id"] == PROJECT
    error(door.http.post(path, json={"slug": "s", "project_id": "other"}), 400, "invalid_argument")
    assert door.http.post(path, json={"slug": "s", "projectId": "other"}).json()["project_id"] == PROJECT
    assert door.http.post(path + "?project_id=other", json={"slug": "s"}).json()["project_id"] == PROJECT


def test_a_browser_of_any_origin_may_call(door: Door) -> None:
    asked = {
        "origin": "https://app.example",
        "access-control-request-method": "PATCH",
        "access-control-request-headers": "authorization,content-type",
    }
    preflight = door.http.options("/functions/v1/invoke/e", headers=asked)
    assert preflight.status_code == 200
    assert preflight.headers["access-control-allow-origin"] == "https://app.example"
    assert "PATCH" in preflight.headers["access-control-allow-methods"]
    assert {"authorization", "apikey"} <= set(preflight.headers["access-control-allow-headers"].split(", "))
    answer = door.http.get("/nothing", headers={"origin": "https://app.example"})
    assert answer.headers["access-control-allow-origin"] == "https://app.example"


def test_native_grpc_on_the_same_port(door: Door) -> None:
    with grpc.insecure_channel(f"127.0.0.1:{door.port}") as channel:
        stub = invocation_service_pb2_grpc.InvocationServiceStub(channel)
        answer = stub.InvokeHttp(invocation.InvokeHttpRequest(slug="native"))
        assert json.loads(answer.data)["slug"] == "native"
        with pytest.raises(grpc.RpcError) as failed:
            stub.InvokeHttp(invocation.InvokeHttpRequest(), metadata=(("x-want-error", "NOT_FOUND"),))
        assert failed.value.code() is grpc.StatusCode.NOT_FOUND
        assert failed.value.details() == 'it "failed"'
        with pytest.raises(grpc.RpcError) as unknown:
            channel.unary_unary("/no.Such/Method", bytes, bytes)(b"")
        assert unknown.value.code() is grpc.StatusCode.UNIMPLEMENTED
        checked = channel.unary_unary("/grpc.health.v1.Health/Check", bytes, health_pb2.HealthCheckResponse.FromString)(
            b""
        )
        assert checked.status == health_pb2.HealthCheckResponse.SERVING


def test_grpc_web(door: Door) -> None:
    message = invocation.InvokeHttpRequest(slug="web").SerializeToString()
    answer = door.http.post(
        "/atlas.functions.v1.InvocationService/InvokeHttp",
        content=b"\0" + len(message).to_bytes(4, "big") + message,
        headers={"content-type": "application/grpc-web+proto"},
    )
    assert answer.status_code == 200
    assert b'"slug": "web"' in answer.content
    assert b"grpc-status:0" in answer.content


def test_without_an_api_process_it_is_a_503(stack_dir: Path) -> None:
    with opened(stack_dir / "deserted", stack_dir / "nobody-serves.sock") as door:
        message = error(door.http.get("/functions/v1/invoke/e"), 503, "unavailable")
        assert message == "No API process can serve now; try again in a second"
        with grpc.insecure_channel(f"127.0.0.1:{door.port}") as channel:
            stub = invocation_service_pb2_grpc.InvocationServiceStub(channel)
            with pytest.raises(grpc.RpcError) as failed:
                stub.InvokeHttp(invocation.InvokeHttpRequest())
        assert failed.value.code() is grpc.StatusCode.UNAVAILABLE
        assert "{" not in (failed.value.details() or "{")


def test_a_service_that_does_not_answer_is_a_504(stack_dir: Path, api: Path) -> None:
    with opened(stack_dir / "impatient", api, invoke_timeout_s=1.2) as door:
        hung = {"x-want-wait": "3", "grpc-timeout": "60S"}  # so that the service itself gives up later
        answer = door.http.get("/functions/v1/invoke/e", headers=hung)
        assert error(answer, 504, "deadline_exceeded") == "The service did not answer in time"


def test_too_many_headers(door: Door) -> None:
    answer = door.http.get("/functions/v1/invoke/e", headers={f"x-{n}": "v" for n in range(200)})
    assert error(answer, 431, "invalid_argument")


def test_an_http_1_0_client_is_served(door: Door) -> None:
    with socket.create_connection(("127.0.0.1", door.port)) as client, client.makefile("rb") as answer:
        client.sendall(b"GET /functions/v1/invoke/old HTTP/1.0\r\n\r\n")
        assert b" 200 OK" in answer.readline()
        assert b'"slug": "old"' in answer.read()


def test_a_request_id_is_kept_and_answered(door: Door) -> None:
    assert door.http.get("/functions/v1/invoke/e", headers={"x-request-id": "mine"}).headers["x-request-id"] == "mine"
    assert door.http.get("/functions/v1/invoke/e").headers["x-request-id"]


@pytest.mark.parametrize("sent", ["x" * 129, "two words", "\xe9", "a\tb"])
@pytest.mark.parametrize(
    ("method", "path"),
    [("GET", "/functions/v1/invoke/e"), ("GET", "/nothing"), ("POST", f"/v1/projects/{PROJECT}/functions/deploy")],
)
def test_a_request_id_that_may_not_go_on_is_replaced_for_all(door: Door, method: str, path: str, sent: str) -> None:
    answer = door.http.request(method, path, headers={b"x-request-id": sent.encode("latin-1")}, content=b"{")
    told = answer.headers["x-request-id"]
    assert str(uuid.UUID(told)) == told
    if answer.status_code == 200:
        assert answer.json()["seen"]["x-request-id"] == told
        assert not [name for name in answer.json()["seen"] if name.startswith("x-atlas")]


def test_the_longest_request_id_goes_on(door: Door) -> None:
    longest = "".join(map(chr, range(ord("!"), ord("~") + 1)))[:128].ljust(128, "x")
    answer = door.http.get("/functions/v1/invoke/e", headers={"x-request-id": longest})
    assert (answer.headers["x-request-id"], answer.json()["seen"]["x-request-id"]) == (longest, longest)


def test_each_request_is_a_line_of_the_access_log(door: Door) -> None:
    door.http.get("/functions/v1/invoke/logged?q=1", headers={"x-request-id": "find-me"})
    deadline_s = time.monotonic() + 15  # Envoy flushes every second
    while not (found := [line for line in door.access_log.read_text().splitlines() if "find-me" in line]):
        assert time.monotonic() < deadline_s
        time.sleep(0.1)
    line = json.loads(found[0])
    assert (line["method"], line["path"], line["status"]) == ("GET", "/functions/v1/invoke/logged?q=1", 200)
    assert isinstance(line["duration_ms"], int)


def test_a_program_that_nobody_cannot_reach_is_linked(tmp_path: Path) -> None:
    hidden = tmp_path / "hidden"
    hidden.mkdir(mode=0o700)
    program = shutil.copy2("/bin/true", hidden / "true")
    linked = runnable(Path(program), hidden, ("true",), Account("nobody", 65534, 65534), tmp_path / "bin")
    assert linked != program
    assert linked.samefile(program)
    assert linked.parent.stat().st_mode & 0o777 == 0o755
