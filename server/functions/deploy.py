"""From source text to a version that runs, in an order in which nothing changes until nothing can be wrong.

fields ─▶ compile (esbuild) ─▶ load once (sandbox) ─▶ files on disk ─▶ one transaction ─▶ fence
400       400 with line:column  400                   ╰─ invisible ─╯   visible everywhere
"""

import asyncio
import re
from collections.abc import Mapping
from typing import Final, Protocol, cast, get_args
from uuid import uuid4

from engines.build import Built, CompileError
from engines.contract import Engine, Isolation, Limits, Outcome, Program, Result
from server.errors import InvalidArgument, NotFound, Unavailable, Unimplemented
from server.fields import parse_choice, parse_name, shown
from server.functions.artifacts import Artifacts, FileTooLarge, Kind
from server.functions.catalog import SLUG
from server.functions.refusals import compilation_failed, load_failed
from server.functions.registry import Function, Registry
from server.functions.releases import Language, Release, Runtime
from server.log import logger
from server.settings import Settings
from server.tiers import Tier, limits_of

log = logger("deploy")

MAX_SOURCE_BYTES: Final = 1024 * 1024
CONCURRENCY: Final = 4
"""Compilations and loads at a time in one process; more wait."""

_ENTRYPOINT: Final = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]{0,119}\.(?:js|mjs|ts|mts)")


class Build(Protocol):
    """Compiles one module for an engine: `engines.build.build`. CompileError says what is wrong and where."""

    async def __call__(self, source: str, language: Language, *, filename: str) -> Built: ...


class Deployer:
    def __init__(
        self,
        registry: Registry,
        artifacts: Artifacts,
        *,
        engines: Mapping[str, Engine],
        build: Build,
        settings: Settings,
    ) -> None:
        """`engines` by runtime: the runtimes that work here."""
        self._registry = registry
        self._artifacts = artifacts
        self._engines = engines
        self._build = build
        self._settings = settings
        self._turn = asyncio.Semaphore(CONCURRENCY)

    async def deploy(
        self,
        project_id: str,
        tier: Tier | None,
        *,
        name: str,
        slug: str,
        runtime: str,
        language: str,
        source: str,
        isolation: str,
    ) -> Function:
        """The function, made or with one version more, which every process runs from now on.

        InvalidArgument for bad fields and for source that does not compile or load; Unimplemented for a runtime that
        does not work here. Nothing is changed then.
        """
        parse_name("name", name)
        _check_slug(slug)
        _check_runtime(runtime)
        parsed_language = cast(Language, parse_choice("language", language or "javascript", get_args(Language)))
        parsed_isolation = _isolation(isolation)
        return await self._release(
            project_id,
            tier,
            name=name,
            slug=slug,
            runtime=runtime,
            language=parsed_language,
            isolation=parsed_isolation,
            entrypoint=slug + (".ts" if parsed_language == "typescript" else ".js"),
            source=_checked_source("source", source.encode("utf-8", "surrogatepass")),
        )

    async def create(
        self,
        project_id: str,
        tier: Tier | None,
        *,
        name: str,
        slug: str,
        runtime: str,
        entrypoint: str,
        isolation: str,
    ) -> Function:
        """A new function from a source file that lies in the project's folder already; compiled and loaded like any.

        Errors as for `deploy`; NotFound when there is no such file, AlreadyExists when the slug is taken.
        """
        parse_name("name", name)
        _check_slug(slug)
        _check_runtime(runtime)
        parsed_isolation = _isolation(isolation)
        if not _ENTRYPOINT.fullmatch(entrypoint):
            raise InvalidArgument(
                "entrypoint",
                f"entrypoint is {shown(entrypoint)}; it must be a file name of letters, digits, dots, hyphens and"
                " underscores that ends in .js, .mjs, .ts or .mts, without directories",
                value=entrypoint[:100],
            )
        return await self._release(
            project_id,
            tier,
            name=name,
            slug=slug,
            runtime=runtime,
            language="typescript" if entrypoint.endswith("ts") else "javascript",
            isolation=parsed_isolation,
            entrypoint=entrypoint,
            source=await self._source_file(project_id, entrypoint),
            new=True,
        )

    async def _source_file(self, project_id: str, entrypoint: str) -> bytes:
        try:
            data = await self._artifacts.read_source(project_id, entrypoint, MAX_SOURCE_BYTES)
        except FileTooLarge as why:
            raise _too_large("entrypoint", why.used) from None
        if data is None:
            raise NotFound(
                f"JS source not found: there is no file {shown(entrypoint)} in the project's folder",
                reason="SOURCE_NOT_FOUND",
                metadata={"entrypoint": entrypoint, "project_id": project_id},
            )
        return _checked_source("entrypoint", data)

    async def _release(
        self,
        project_id: str,
        tier: Tier | None,
        *,
        name: str,
        slug: str,
        runtime: str,
        language: Language,
        isolation: Isolation,
        entrypoint: str,
        source: bytes,
        new: bool = False,
    ) -> Function:
        engine = self._engines.get(runtime)
        if engine is None:
            raise Unimplemented(
                f'The runtime "{runtime}" does not work on this server yet; use {" or ".join(self._engines)}',
                reason="RUNTIME_UNAVAILABLE",
                metadata={"runtime": runtime, "available": ", ".join(self._engines)},
                field="runtime",
            )
        async with self._turn:
            field = "entrypoint" if new else "source"
            try:
                built = await self._build(source.decode(), language, filename=entrypoint)
            except CompileError as why:
                raise compilation_failed(field, why) from None
            loaded = await _load_once(engine, project_id, built, limits_of(tier, self._settings))
            if loaded.outcome is not Outcome.OK:
                raise load_failed(field, entrypoint, loaded, built.source_map)
        release = Release(
            name=name,
            slug=slug,
            runtime=cast(Runtime, runtime),
            language=language,
            entrypoint=entrypoint,
            isolation=isolation,
            source=source,
            code=built.code,
            source_map=built.source_map,
        )
        await self._store(project_id, release)
        function = await self._registry.publish(project_id, release, new=new)
        log.info(
            "function.deployed",
            f"{function.slug} is at version {function.version}",
            project_id=project_id,
            function_id=function.id,
            version=function.version,
        )
        return function

    async def _store(self, project_id: str, release: Release) -> None:
        files: dict[Kind, bytes] = {"js": release.code, "source": release.source}
        if release.source_map is not None:
            files["map"] = release.source_map
        try:
            await self._artifacts.store(project_id, files)
        except OSError as why:
            log.error("deploy.disk", f"Artifacts cannot be written: {why}", project_id=project_id)
            raise Unavailable(
                "The server cannot store the function: its disk is full or not writable", reason="ARTIFACT_STORE_FAILED"
            ) from why


def _check_slug(slug: str) -> None:
    if not SLUG.fullmatch(slug):
        raise InvalidArgument(
            "slug",
            f"Slug must be alphanumeric: {shown(slug)} may have letters, digits, hyphens and underscores, 1 to 63",
            reason="INVALID_SLUG",
            value=slug[:100],
        )


def _check_runtime(runtime: str) -> None:
    parse_choice("runtime", runtime, get_args(Runtime))


def _isolation(value: str) -> Isolation:
    return cast(Isolation, parse_choice("isolation", value or "warm", get_args(Isolation)))


def _checked_source(field: str, data: bytes) -> bytes:
    if not data.strip():
        raise InvalidArgument(field, "The source is empty; it must be an ES module with a default export")
    if len(data) > MAX_SOURCE_BYTES:
        raise _too_large(field, len(data))
    try:
        data.decode()
    except UnicodeDecodeError as why:
        raise InvalidArgument(field, f"The source is not UTF-8: byte {why.start} is 0x{data[why.start]:02x}") from None
    return data


def _too_large(field: str, used: int) -> InvalidArgument:
    return InvalidArgument(
        field,
        f"The source has {used} bytes of UTF-8; at most {MAX_SOURCE_BYTES} (1 MiB) are allowed",
        reason="SOURCE_TOO_LARGE",
        used=str(used),
        allowed=str(MAX_SOURCE_BYTES),
    )


async def _load_once(engine: Engine, project_id: str, built: Built, limits: Limits) -> Result:
    program = Program(project_id=project_id, function_id=str(uuid4()), version=0, code=built.code, isolation="fresh")
    return await engine.check(program, limits)
