"""Every runtime behind one contract: the battery of tests/contract/test_engine_*.py runs on each of them."""

import json
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import replace
from functools import partial
from itertools import count
from pathlib import Path
from typing import Any, Final

import pytest
import pytest_asyncio

from engines.build import Built, Language, build
from engines.contract import BodyKind, Host, Invocation, Limits, Program, Result
from engines.deno.engine import Deno
from engines.node.engine import Node
from engines.quickjs.engine import QuickJS
from engines.runtimes import Runtime
from engines.sourcemap import translate_stack
from engines.v8.builtins import BUILTINS
from tests.fix_sandbox import Silence
from tests.fix_wasm_engine import REAL_JAVY, wasm_engine

MIB: Final = 1024 * 1024
LIMITS: Final = Limits(wall_ms=5_000, cpu_ms=5_000, memory_bytes=64 * MIB, fetch_calls=5, fuel=10_000_000_000)
PROJECT: Final = "00000000-0000-4000-8000-000000000001"
CONTEXT: Final = {"request": {"method": "POST", "path": "", "query": {}, "headers": {}}, "project_id": PROJECT}
EVAL: Final = "export default async (source) => await (0, eval)(source)"
"""A function whose input is the program."""

_ids = count(1)


class Deployed:
    """A function on an engine, as a deploy leaves it."""

    def __init__(self, site: "Site", program: Program, built: Built) -> None:
        self._site = site
        self.program = program
        self.built = built

    async def __call__(
        self,
        value: object = None,
        *,
        raw: bytes | None = None,
        kind: BodyKind = "json",
        host: Host | None = None,
        limits: Limits = LIMITS,
        context: dict[str, Any] | None = None,
    ) -> Result:
        """One invocation: `value` as JSON, or `raw` as it is."""
        data = json.dumps(value).encode() if raw is None else raw
        told = json.dumps(context or CONTEXT).encode()
        invocation = Invocation(id=str(next(_ids)), input=data, input_kind=kind, context=told)
        return await self._site.runtime.engine.invoke(self.program, invocation, limits, host or Silence())

    def stack_of(self, result: Result) -> str:
        """The stack in terms of the deployed source."""
        assert result.error is not None
        assert self.built.source_map is not None
        return translate_stack(result.error.stack, self.built.source_map)


class Site:
    """One runtime, started."""

    def __init__(self, name: str, runtime: Runtime) -> None:
        self.name = name
        self.runtime = runtime

    def __repr__(self) -> str:
        return f"<Site {self.name}>"

    @property
    def is_wasm(self) -> bool:
        return self.name in ("wasm", "javy")

    async def deploy(
        self, source: str, *, language: Language = "javascript", project: str = PROJECT, fresh: bool = False
    ) -> Deployed:
        """Compile and keep; CompileError as for an author. Nothing is loaded yet."""
        filename = "main.ts" if language == "typescript" else "main.js"
        built = await self.runtime.build(source, language, filename=filename)
        program = Program(
            project_id=project,
            function_id=f"f{next(_ids)}",
            version=1,
            code=built.code,
            script=built.script,
            isolation="fresh" if fresh else "warm",
        )
        return Deployed(self, program, built)

    async def run(self, source: str, value: object = None, **options: Any) -> Result:
        """Deploy and invoke once."""
        return await (await self.deploy(source))(value, **options)

    async def check(self, source: str, limits: Limits = LIMITS) -> Result:
        """What a deploy learns by loading it."""
        program = (await self.deploy(source)).program
        return await self.runtime.engine.check(replace(program, version=0, isolation="fresh"), limits)


def _quickjs(cache: Path) -> Runtime:
    return Runtime(engine=QuickJS(spares=1, max_children=8, max_children_per_project=6, queue_ms=5_000), build=build)


def _wasm(cache: Path, javy: str = "") -> Runtime:
    engine = wasm_engine(max_children=8, max_children_per_project=6, javy=javy)
    return Runtime(engine=engine, build=engine.build, accept=engine.accept, standalone=engine.standalone)


def _node(cache: Path) -> Runtime:
    return Runtime(engine=Node(max_children=8, max_children_per_project=6), build=partial(build, builtins=BUILTINS))


def _deno(cache: Path) -> Runtime:
    return Runtime(engine=Deno(max_children=8, max_children_per_project=6), build=partial(build, builtins=BUILTINS))


RUNTIMES: Final[dict[str, Callable[[Path], Runtime]]] = {
    "quickjs": _quickjs,
    "wasm": _wasm,
    "node": _node,
    "deno": _deno,
}
WITH_HOST: Final = [name for name in RUNTIMES if name != "wasm"]
"""Runtimes that have `atlas.*`."""
BATTERY: Final[dict[str, Callable[[Path], Runtime]]] = {
    **RUNTIMES,
    **({"javy": partial(_wasm, javy=REAL_JAVY)} if REAL_JAVY else {}),
}
"""What the battery runs on: Javy's modules too, where there is a Javy."""


async def _started(name: str, cache: Path) -> AsyncIterator[Site]:
    runtime = BATTERY[name](cache)
    await runtime.engine.start()
    try:
        yield Site(name, runtime)
    finally:
        await runtime.engine.close()


@pytest_asyncio.fixture(scope="module", loop_scope="module", params=list(BATTERY))
async def site(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Site]:
    """What the battery runs on in turn, one engine a module."""
    async for started in _started(request.param, tmp_path_factory.mktemp("compiled")):
        yield started


@pytest_asyncio.fixture(scope="module", loop_scope="module", params=WITH_HOST)
async def hosted(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Site]:
    """Each runtime that has the host API."""
    async for started in _started(request.param, tmp_path_factory.mktemp("compiled")):
        yield started


Evaluate = Callable[[str], Awaitable[Result]]


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def evaluate(site: Site) -> Evaluate:
    """Run a program that is one expression, in a function that stays warm."""
    return await site.deploy(EVAL)
