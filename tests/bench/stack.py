"""The stack under test: what `python -m server up` starts, with one API process that has the no-op service as well."""

import contextlib
import shutil
import sys
import tempfile
from collections.abc import AsyncIterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

import httpx

from server.settings import Settings
from server.stack import api, bootstrap, envoy
from server.stack.address import shown_url, wait_healthy
from server.stack.credentials import credentials
from server.stack.launch import start_servers
from server.stack.nats import free_port
from server.stack.orphans import marked
from server.stack.places import Places, places
from server.stack.supervisor import Supervisor
from tests.bench import noop

SOURCE: Final = "export default (input) => input.n + 1"


@dataclass(frozen=True, slots=True)
class Site:
    """The stack under test."""

    api_socket: str
    front: tuple[str, int]
    api_pid: int
    key: str
    service_key: str
    control_url: str


@contextlib.asynccontextmanager
async def running(cpu: int) -> AsyncIterator[Site]:
    """On a state of its own, with the function `bench` deployed; the API process and its sandboxes run on `cpu`."""
    async with state_of_its_own() as (settings, home, supervisor):
        with contextlib.redirect_stdout(sys.stderr):
            site = await start(settings, home, supervisor, cpu)
        yield site


@contextlib.asynccontextmanager
async def state_of_its_own() -> AsyncIterator[tuple[Settings, Places, Supervisor]]:
    """For servers that end, and whose state goes, with it."""
    folder = new_folder()
    settings = Settings(
        port=free_port(),
        state_dir=folder / "state",
        run_dir=folder / "run",
        functions_dir=folder / "functions",
        storage_dir=folder / "storage",
    )
    home = places(settings)
    home.make()
    supervisor = Supervisor(home.mark, lambda said: print(said, file=sys.stderr))
    try:
        yield settings, home, supervisor
    finally:
        await supervisor.stop()
        shutil.rmtree(folder)


def new_folder() -> Path:
    """An empty directory with a path short enough for sockets, which `nobody` can pass."""
    folder = Path(tempfile.mkdtemp(prefix="atlas-bench-", dir="/tmp"))
    folder.chmod(0o711)
    return folder


async def start(settings: Settings, home: Places, supervisor: Supervisor, cpu: int) -> Site:
    secrets = credentials(home.state, settings)
    settings = replace(settings, admin_key=secrets.admin_key, master_key=secrets.master_key)
    settings = await start_servers(settings, home, secrets, supervisor)
    env, _ = await bootstrap.prepare(
        control_url=settings.database_url,
        tenants_url=settings.tenant_database_url,
        credentials=secrets,
        kept={},
        url=shown_url(settings),
    )
    socket, account = home.run / "api" / "0.sock", envoy.front_account(settings.port)
    part = api.part("api-0", replace(settings, api_socket=socket), home.log("api-0"), account)
    await supervisor.start(replace(part, argv=(sys.executable, "-m", "tests.bench.noop", str(cpu))))
    front = envoy.Front(
        host=settings.host,
        port=settings.port,
        api_sockets=[socket],
        admin_socket=home.run / "envoy" / "admin.sock",
        access_log=home.log("access"),
        descriptors=noop.with_noop(envoy.descriptors()),
        services=(*envoy.SERVICES, noop.SERVICE),
    )
    door = envoy.part(
        front=front, home=home.run / "envoy", programs=home.programs, log=home.log("envoy"), account=account
    )
    await supervisor.start(door)
    await wait_healthy(settings)
    await deploy(env)
    return Site(
        str(socket), (settings.host, settings.port), api_pid(home), env.ANON_KEY, env.SERVICE_KEY, settings.database_url
    )


async def deploy(env: bootstrap.Env) -> None:
    function = {"name": "bench", "slug": "bench", "runtime": "quickjs", "language": "javascript", "source": SOURCE}
    async with httpx.AsyncClient(base_url=env.ATLAS_URL, trust_env=False, timeout=30) as client:
        answer = await client.post(
            f"/v1/projects/{env.PROJECT_ID}/functions/deploy",
            headers={"authorization": f"Bearer {env.SERVICE_KEY}"},
            json=function,
        )
        answer.raise_for_status()


def api_pid(home: Places) -> int:
    """The process that runs the module `noop`."""
    commands = {pid: Path(f"/proc/{pid}/cmdline").read_bytes() for pid in marked(home.mark)}
    (pid,) = (pid for pid, command in commands.items() if noop.__name__.encode() in command.split(b"\0"))
    return pid
