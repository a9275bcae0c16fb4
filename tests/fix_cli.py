"""The command line: in this process with a small API of gRPC to talk to, and as a program with a running stack."""

import io
import json
import os
import subprocess
import sys
import uuid
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NoReturn

import grpc
import pytest
from google.api import httpbody_pb2
from google.protobuf import empty_pb2

from atlas.functions.v1 import (
    functions_pb2,
    functions_service_pb2,
    functions_service_pb2_grpc,
    invocation_service_pb2_grpc,
)
from atlas.runs.v1 import runs_pb2, runs_service_pb2, runs_service_pb2_grpc
from server.cli.main import status
from server.errors import AtlasError, NotFound
from server.rpc.status import status_of
from tests.fix_clients import RunningStack

PROGRAM = Path(sys.executable).parent / "atlas"
KEY = "atlas_service_test"
PROJECT_ID = str(uuid.UUID(int=7))
RUN_ID = str(uuid.UUID(int=8))


class FakeApi(
    functions_service_pb2_grpc.FunctionServiceServicer,
    invocation_service_pb2_grpc.InvocationServiceServicer,
    runs_service_pb2_grpc.RunServiceServicer,
):
    """Keeps functions by slug and runs by id; `failure` is raised by every call, `asked` are the requests so far."""

    def __init__(self) -> None:
        self.url = ""
        self.failure: AtlasError | None = None
        self.asked: list[Any] = []
        self.functions: dict[str, functions_pb2.EdgeFunction] = {}
        self.deleted: dict[str, functions_pb2.EdgeFunction] = {}
        self.versions: list[functions_pb2.FunctionVersion] = []
        self.runs: dict[str, runs_pb2.Run] = {}
        self.headers: dict[str, Any] = {}  # of the last invocation
        self.answer: tuple[int | None, bytes] = (None, b'{"result":null,"metrics":{}}')
        self.results: list[tuple[int | None, bytes]] = []
        self.file = b""

    def add(self, slug: str, **fields: Any) -> functions_pb2.EdgeFunction:
        number = uuid.UUID(int=len(self.functions) + 1)
        self.functions[slug] = functions_pb2.EdgeFunction(
            id=str(number), slug=slug, name=slug, runtime="quickjs", version=1, **fields
        )
        return self.functions[slug]

    def DeployFunction(self, request: Any, context: grpc.ServicerContext) -> functions_pb2.EdgeFunction:
        self._see(request, context)
        known = self.functions.get(request.slug)
        made = self.add(request.slug, env=request.env)
        made.version = known.version + 1 if known else 1
        return made

    def ListFunctions(self, request: Any, context: grpc.ServicerContext) -> Any:
        """One a page."""
        self._see(request, context)
        found = list((self.deleted if request.deleted else self.functions).values())
        at = int(request.page_token or 0)
        token = str(at + 1) if at + 1 < len(found) else ""
        return functions_service_pb2.ListFunctionsResponse(functions=found[at : at + 1], next_page_token=token)

    def UpdateFunction(self, request: Any, context: grpc.ServicerContext) -> functions_pb2.EdgeFunction:
        self._see(request, context)
        function = next(item for item in self.functions.values() if item.id == request.function_id)
        function.version += 1
        if request.HasField("env"):
            function.env.clear()
            function.env.update(request.env.variables)
        names = {*function.secret_names, *request.secrets} - set(request.remove_secrets)
        function.secret_names[:] = sorted(names)
        return function

    def DeleteFunction(self, request: Any, context: grpc.ServicerContext) -> empty_pb2.Empty:
        self._see(request, context)
        slug = next(slug for slug, item in self.functions.items() if item.id == request.function_id)
        self.deleted[slug] = self.functions.pop(slug)
        return empty_pb2.Empty()

    def UndeleteFunction(self, request: Any, context: grpc.ServicerContext) -> functions_pb2.EdgeFunction:
        self._see(request, context)
        slug = next(slug for slug, item in self.deleted.items() if item.id == request.function_id)
        self.functions[slug] = self.deleted.pop(slug)
        return self.functions[slug]

    def ListFunctionVersions(self, request: Any, context: grpc.ServicerContext) -> Any:
        self._see(request, context)
        return functions_service_pb2.ListFunctionVersionsResponse(versions=self.versions)

    def RollbackFunction(self, request: Any, context: grpc.ServicerContext) -> functions_pb2.EdgeFunction:
        return self._at(request, context, 1)

    def ActivateFunctionVersion(self, request: Any, context: grpc.ServicerContext) -> functions_pb2.EdgeFunction:
        return self._at(request, context, request.version)

    def DownloadFunctionVersion(self, request: Any, context: grpc.ServicerContext) -> httpbody_pb2.HttpBody:
        self._see(request, context)
        return httpbody_pb2.HttpBody(content_type="application/octet-stream", data=self.file)

    def InvokeHttp(self, request: Any, context: grpc.ServicerContext) -> httpbody_pb2.HttpBody:
        self._see(request, context)
        self.headers = dict(context.invocation_metadata())
        return self._http(context, *self.answer)

    def GetResult(self, request: Any, context: grpc.ServicerContext) -> httpbody_pb2.HttpBody:
        self._see(request, context)
        return self._http(context, *self.results.pop(0))

    def ListRuns(self, request: Any, context: grpc.ServicerContext) -> Any:
        self._see(request, context)
        listed = [runs_pb2.Run.FromString(run.SerializeToString()) for run in self.runs.values()]
        for run in listed:
            run.ClearField("logs")
        return runs_service_pb2.ListRunsResponse(runs=listed)

    def GetRun(self, request: Any, context: grpc.ServicerContext) -> runs_pb2.Run:
        self._see(request, context)
        return self.runs[request.run_id]

    def CancelRun(self, request: Any, context: grpc.ServicerContext) -> runs_pb2.Run:
        self._see(request, context)
        run = self.runs[request.run_id]
        run.state, run.outcome = "finished", "cancelled"
        return run

    def TailRuns(self, request: Any, context: grpc.ServicerContext) -> Iterator[Any]:
        """What there is, and then the end of the server's patience."""
        self._see(request, context)
        for run in self.runs.values():
            yield runs_service_pb2.TailRunsResponse(run=run, dropped=3)
        self.refuse(NotFound("The project is gone", reason="PROJECT_NOT_FOUND"), context)

    def _http(self, context: grpc.ServicerContext, number: int | None, body: bytes) -> httpbody_pb2.HttpBody:
        """As the server answers over gRPC; the number is a status that is not the usual one."""
        status = () if number is None else (("x-atlas-status", str(number)),)
        context.send_initial_metadata((("atlas-run-id", RUN_ID), *status))
        return httpbody_pb2.HttpBody(content_type="application/json", data=body)

    def _at(self, request: Any, context: grpc.ServicerContext, version: int) -> functions_pb2.EdgeFunction:
        self._see(request, context)
        function = next(item for item in self.functions.values() if item.id == request.function_id)
        function.version = version
        return function

    def _see(self, request: Any, context: grpc.ServicerContext) -> None:
        assert dict(context.invocation_metadata())["apikey"] == KEY
        self.asked.append(request)
        if self.failure is not None:
            self.refuse(self.failure, context)

    def _unasked(self, request: Any, context: grpc.ServicerContext) -> NoReturn:
        raise AssertionError(f"the command line asked for {request}")

    CreateFunction = GetFunction = GetFunctionVersion = Invoke = TailRunsHttp = _unasked

    def refuse(self, error: AtlasError, context: grpc.ServicerContext) -> NoReturn:
        """As the server does."""
        code, message, details = status_of(error)
        context.set_trailing_metadata((("grpc-status-details-bin", details),))
        context.abort(code, message)


@contextmanager
def serving(fake: FakeApi, *more: Callable[[Any, grpc.Server], None]) -> Iterator[None]:
    """On a port of its own; `more` add further services."""
    with ThreadPoolExecutor(4) as threads:
        server = grpc.server(threads)
        functions_service_pb2_grpc.add_FunctionServiceServicer_to_server(fake, server)
        invocation_service_pb2_grpc.add_InvocationServiceServicer_to_server(fake, server)
        runs_service_pb2_grpc.add_RunServiceServicer_to_server(fake, server)
        for add in more:
            add(fake, server)
        fake.url = f"http://127.0.0.1:{server.add_insecure_port('127.0.0.1:0')}"
        server.start()
        yield
        server.stop(None).wait()


@pytest.fixture
def api() -> Iterator[FakeApi]:
    fake = FakeApi()
    with serving(fake):
        yield fake


@dataclass(frozen=True)
class Ran:
    code: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        return json.loads(self.out)

    @property
    def error(self) -> Any:
        return json.loads(self.err)["error"]


Atlas = Callable[..., Ran]


@pytest.fixture
def atlas(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Atlas:
    """Runs command lines in an empty folder, without any variables: `atlas("functions", stdin="…")`."""
    for name in ("ATLAS_URL", "PROJECT_ID", "SERVICE_KEY", "ANON_KEY", "ADMIN_KEY", "NO_COLOR"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.chdir(tmp_path)

    def run(*arguments: str, stdin: str = "") -> Ran:
        monkeypatch.setattr("sys.stdin", io.StringIO(stdin))
        capsys.readouterr()
        code = status(list(arguments))
        said = capsys.readouterr()
        return Ran(code, said.out, said.err)

    return run


@pytest.fixture
def to_api(api: FakeApi, atlas: Atlas, monkeypatch: pytest.MonkeyPatch) -> Atlas:
    """The same, with variables that point at `api`."""
    for name, value in (("ATLAS_URL", api.url), ("PROJECT_ID", PROJECT_ID), ("SERVICE_KEY", KEY)):
        monkeypatch.setenv(name, value)
    return atlas


@dataclass(frozen=True)
class Program:
    """The installed `atlas` in a process of its own; `make setup` has put it there."""

    folder: Path
    variables: Mapping[str, str] = field(repr=False)

    def run(self, *arguments: str, code: int = 0, stdin: str = "") -> "subprocess.CompletedProcess[str]":
        done = subprocess.run(
            [PROGRAM, *arguments],
            cwd=self.folder,
            env=self.variables,
            input=stdin,
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
        assert done.returncode == code, done.stdout + done.stderr
        return done

    def json(self, *arguments: str, stdin: str = "") -> Any:
        return json.loads(self.run(*arguments, "--json", stdin=stdin).stdout)


def program_in(folder: Path, stack: RunningStack) -> Program:
    """In a folder below which nothing but the variables of the file `env` says where the stack is."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("ATLAS_")}
    return Program(folder, {**kept, **stack.env})


@pytest.fixture
def program(running_stack: RunningStack, tmp_path: Path) -> Program:
    """In an empty folder."""
    return program_in(tmp_path, running_stack)
