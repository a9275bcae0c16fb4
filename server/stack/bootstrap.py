"""What a stack needs before it can serve: the two databases, the schema, a first project, and the file `env`.

The file is for people and tests: `source .atlas/env`. Where it is lost or its keys do not work any more, the same
project gets new ones.
"""

import shlex
from collections.abc import Mapping
from contextlib import AsyncExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import psycopg
from psycopg import sql

from server.errors import InvalidArgument, NotFound
from server.postgres.changes import Changes
from server.postgres.control import open_pool
from server.postgres.migrate import migrate
from server.postgres.tenants import Tenants
from server.projects import Keyring, Project, Projects
from server.stack.account import private_file
from server.stack.credentials import Credentials

CONTROL: Final = "altbase"
TENANTS: Final = "tenants"
DEFAULT_PROJECT: Final = "default"


@dataclass(frozen=True, slots=True, kw_only=True)
class Env:
    """The file `.atlas/env`."""

    ATLAS_URL: str
    PROJECT_ID: str
    SERVICE_KEY: str
    ANON_KEY: str
    ADMIN_KEY: str
    TENANT_DATABASE_URL: str

    def text(self) -> str:
        lines = [f"export {name}={shlex.quote(getattr(self, name))}" for name in self.__slots__]
        return "\n".join(["# Made by `python -m server up`. Use it with: source .atlas/env", *lines, ""])


def read_env(path: Path) -> dict[str, str]:
    """The variables of an `env` file; empty when there is none."""
    if not path.exists():
        return {}
    words = [shlex.split(line, comments=True) for line in path.read_text().splitlines()]
    pairs = (word.partition("=") for line in words for word in line if "=" in word)
    return {name: value for name, _, value in pairs}


async def create_databases(server_url: str) -> None:
    """Make the two databases unless they are there. `server_url` is a superuser's of the embedded Postgres."""
    async with await psycopg.AsyncConnection.connect(server_url, autocommit=True) as connection:
        for name in (CONTROL, TENANTS):
            there = await connection.execute("SELECT FROM pg_database WHERE datname = %s", [name])
            if not there.rowcount:
                await connection.execute(sql.SQL("CREATE DATABASE {}").format(sql.Identifier(name)))


async def prepare(
    *, control_url: str, tenants_url: str, credentials: Credentials, kept: Mapping[str, str], url: str
) -> tuple[Env, list[str]]:
    """Migrate and make sure of the default project; the file `env`, and the names of the migrations applied.

    Safe beside other stacks on the same databases: at worst each makes keys of its own.
    """
    applied = await migrate(control_url)
    async with AsyncExitStack() as stack:
        pool = await stack.enter_async_context(open_pool(control_url, max_size=2, timeout_s=30.0))
        changes = Changes(control_url)
        keyring = Keyring(pool, changes)
        await changes.start()
        stack.push_async_callback(changes.close)
        tenants = Tenants(tenants_url, secret=bytes.fromhex(credentials.master_key))
        await tenants.start()
        projects = Projects(pool, changes, tenants)
        project = await _default_project(projects, kept.get("PROJECT_ID", ""))
        await tenants.provision(project.id)  # its role's password follows the master key
        keys = {
            role: await _working_key(projects, keyring, project, role, kept.get(f"{role.upper()}_KEY", ""))
            for role in ("service", "anon")
        }
    env = Env(
        ATLAS_URL=url,
        PROJECT_ID=project.id,
        SERVICE_KEY=keys["service"],
        ANON_KEY=keys["anon"],
        ADMIN_KEY=credentials.admin_key,
        TENANT_DATABASE_URL=tenants.psql_url(project.id),
    )
    return env, applied


def write_env(path: Path, env: Env) -> None:
    private_file(path, env.text())


async def _default_project(projects: Projects, kept_id: str) -> Project:
    """The project of the kept id, else the oldest one named `default`, else a new one."""
    if kept_id:
        try:
            return await projects.get(kept_id)
        except (NotFound, InvalidArgument):
            pass
    found: Project | None = None
    token = ""
    while True:
        page = await projects.list(200, token)
        found = next((item for item in reversed(page.items) if item.name == DEFAULT_PROJECT), found)
        token = page.next_page_token
        if not token:
            return found or await projects.create(DEFAULT_PROJECT, None)


async def _working_key(projects: Projects, keyring: Keyring, project: Project, role: str, kept: str) -> str:
    principal = await keyring.authenticate(kept) if kept else None
    if principal and principal.project_id == project.id and principal.role == role:
        return kept
    _, secret = await projects.create_key(project.id, role, "made by `up`")
    return secret
