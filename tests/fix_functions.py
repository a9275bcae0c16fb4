"""A project with all that deploys and resolves functions on a real Postgres, around a compiler and an engine that
read their orders from the source: `SYNTAX` does not compile, `THROWS` does not load."""

import asyncio
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest

from engines.build import Built, CompileError, Diagnostic, Language
from engines.contract import (
    Host,
    Invocation,
    LimitHit,
    Limits,
    Outcome,
    Program,
    Result,
    ScriptError,
)
from engines.runtimes import EngineNotReady, ModuleRefused, Runtime
from server.functions.artifacts import Artifacts
from server.functions.catalog import Catalog
from server.functions.deploy import Deployer
from server.functions.downloads import Downloads
from server.functions.lifecycle import Lifecycle
from server.functions.records import Function
from server.functions.registry import Registry
from server.functions.secrets import Vault
from server.postgres.changes import Changes
from server.postgres.control import Pool, transaction
from server.postgres.tenants import schema_of
from server.settings import Settings

LOADS: dict[str, Result] = {
    "THROWS": Result(outcome=Outcome.LOAD_FAILED, error=ScriptError(name="TypeError", message="no default export")),
    "LOOPS": Result(
        outcome=Outcome.WALL_LIMIT, limit=LimitHit(limit="wall_clock", used=5003.2, allowed=5000, unit="ms")
    ),
    "CROWDED": Result(outcome=Outcome.OVERLOADED, limit=LimitHit(limit="queue", used=5000, allowed=5000, unit="ms")),
}


MASTER_KEY = bytes(range(32))
WASM = b"\0asm\x01\0\0\0"


class FakeCompiler:
    """Compiles by wrapping; notes how many compile at the same time."""

    def __init__(self) -> None:
        self.running = 0
        self.peak = 0
        self.gate = asyncio.Event()
        self.gate.set()

    async def __call__(self, source: str, language: Language, *, filename: str) -> Built:
        self.running += 1
        self.peak = max(self.peak, self.running)
        try:
            await self.gate.wait()
        finally:
            self.running -= 1
        if "SYNTAX" in source:
            count = int(source.partition("SYNTAX")[2] or 1)
            raise CompileError(
                tuple(Diagnostic(number, 14, f"Unexpected {number}", "let x = = 1") for number in range(3, 3 + count))
            )
        return Built(code=f"/* {language} {filename} */ {source}".encode(), source_map=b'{"version":3,"mappings":""}')


class FakeWasmCompiler:
    """Makes a module that holds the source, of a script that does; `BUILDING` finds no engine yet."""

    async def __call__(self, source: str, language: Language, *, filename: str) -> Built:
        if "BUILDING" in source:
            raise EngineNotReady("Its engine is being built")
        script = f"/* {language} {filename} */ {source}".encode()
        return Built(code=WASM + script, source_map=b'{"version":3,"mappings":"wasm"}', script=script)


async def accept(module: bytes) -> Built:
    """Takes what begins like a module and wraps it."""
    if not module.startswith(WASM):
        raise ModuleRefused("It does not begin with \\0asm")
    return Built(code=module + b" accepted", source_map=None)


async def standalone(program: Program) -> bytes:
    if b"DYNAMIC" in program.script:
        raise ModuleRefused("Its engine is another one")
    if b"ABSENT" in program.script:
        raise EngineNotReady("Its engine is being built")
    return WASM + b"alone: " + program.script + program.code


class FakeEngine:
    """Loads anything but what LOADS says."""

    def __init__(self) -> None:
        self.checked: list[tuple[Program, Limits]] = []
        self.retired: list[tuple[str, str | None]] = []

    async def start(self) -> None: ...

    async def invoke(self, program: Program, invocation: Invocation, limits: Limits, host: Host) -> Result:
        raise AssertionError("a deploy invokes nothing")

    async def check(self, program: Program, limits: Limits) -> Result:
        self.checked.append((program, limits))
        for order, result in LOADS.items():
            if order.encode() in program.code:
                return result
        return Result(outcome=Outcome.OK)

    def retire(self, project_id: str, function_id: str | None = None) -> None:
        self.retired.append((project_id, function_id))

    async def close(self) -> None: ...

    def report(self) -> dict[str, object]:
        return {}


@dataclass(kw_only=True)
class Node:
    """One API process as far as functions are concerned, with a disk of its own."""

    project_id: str
    pool: Pool
    changes: Changes
    artifacts: Artifacts
    registry: Registry
    lifecycle: Lifecycle
    downloads: Downloads
    deployer: Deployer
    catalog: Catalog
    root: Path
    compiler: FakeCompiler
    engine: FakeEngine

    async def deploy(self, source: str = "export default () => 1", **fields: Any) -> Function:
        defaults: dict[str, Any] = {
            "name": "Hello",
            "slug": "hello",
            "runtime": "quickjs",
        }
        return await self.deployer.deploy(self.project_id, "free", **defaults | {"source": source} | fields)

    async def create(self, entrypoint: str, **fields: Any) -> Function:
        defaults: dict[str, Any] = {"name": "Hello", "slug": "hello", "runtime": "quickjs", "isolation": ""}
        return await self.deployer.create(self.project_id, None, **defaults | {"entrypoint": entrypoint} | fields)

    async def code(self, slug: str = "hello") -> str:
        return (await self.catalog.resolve(self.project_id, slug)).program.code.decode()

    async def count(self, table: str) -> int:
        async with transaction(self.pool) as conn:
            cursor = await conn.execute(f"SELECT count(*) FROM {table}".encode())
            ((count,),) = await cursor.fetchall()
        return int(count)

    def files(self) -> set[str]:
        folder = self.root / self.project_id
        return {path.name for path in folder.iterdir()} if folder.exists() else set()


async def add_project(pool: Pool) -> str:
    project_id = str(uuid4())
    async with transaction(pool) as conn:
        await conn.execute(
            "INSERT INTO projects (id, name, tier, schema) VALUES (%s, 'Shop', 'free', %s)",
            [project_id, schema_of(project_id)],
        )
    return project_id


async def start_node(
    project_id: str, pool: Pool, changes: Changes, root: Path, *, master_key: bytes = MASTER_KEY
) -> Node:
    compiler, engine = FakeCompiler(), FakeEngine()
    runtimes = {
        "quickjs": Runtime(engine=engine, build=compiler),
        "wasm": Runtime(engine=engine, build=FakeWasmCompiler(), accept=accept, standalone=standalone),
    }
    artifacts, vault = Artifacts(root), Vault(master_key)
    registry = Registry(pool, artifacts)
    lifecycle = Lifecycle(pool, changes, artifacts, vault)
    deployer = Deployer(lifecycle, artifacts, runtimes=runtimes, settings=Settings())
    catalog = Catalog(registry, changes, vault=vault, retire=engine.retire)
    await changes.start()
    return Node(
        project_id=project_id,
        pool=pool,
        changes=changes,
        artifacts=artifacts,
        registry=registry,
        lifecycle=lifecycle,
        downloads=Downloads(registry, runtimes),
        deployer=deployer,
        catalog=catalog,
        root=root,
        compiler=compiler,
        engine=engine,
    )


@pytest.fixture
async def node(pool: Pool, changes: Changes, tmp_path: Path) -> Node:
    return await start_node(await add_project(pool), pool, changes, tmp_path / "node")


@pytest.fixture
async def other_node(node: Node, pool: Pool, control_url: str, tmp_path: Path) -> AsyncIterator[Node]:
    """A second process for the same project, on another machine: its disk is empty."""
    changes = Changes(control_url)
    yield await start_node(node.project_id, pool, changes, tmp_path / "other")
    await changes.close()
