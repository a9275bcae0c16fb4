"""From source text to a version that runs, in an order in which nothing changes until nothing can be wrong.

fields ─▶ compile ─▶ load once (sandbox) ─▶ files on disk ─▶ one transaction ─▶ fence
400       400 with line:column  400         ╰─ invisible ─╯   visible everywhere
"""

from collections.abc import Mapping
from dataclasses import replace
from typing import Final

from engines.contract import Isolation, Limits
from engines.runtimes import Runtime
from server.errors import NotFound, Unavailable
from server.fields import parse_name, shown
from server.functions.artifacts import Artifacts, FileTooLarge, Kind
from server.functions.compiling import Compiler
from server.functions.configuration import UNCHANGED, Reconfiguration
from server.functions.fields import (
    Source,
    checked,
    most_bytes,
    parse_entrypoint,
    parse_isolation,
    parse_note,
    parse_runtime,
    parse_slug,
    parse_source,
    too_large,
)
from server.functions.lifecycle import Amendment, Lifecycle
from server.functions.records import Function, Language
from server.functions.releases import Release
from server.functions.settings import parse_settings
from server.log import logger
from server.settings import Settings
from server.tiers import MIB, Tier, limits_of

log = logger("deploy")

DEFAULT_ISOLATION: Final[Isolation] = "warm"


class Deployer:
    def __init__(
        self, lifecycle: Lifecycle, artifacts: Artifacts, *, runtimes: Mapping[str, Runtime], settings: Settings
    ) -> None:
        """`runtimes` by name: those that work here."""
        self._lifecycle = lifecycle
        self._artifacts = artifacts
        self._compiler = Compiler(runtimes)
        self._settings = settings

    async def deploy(
        self,
        project_id: str,
        tier: Tier | None,
        *,
        name: str,
        slug: str,
        runtime: str,
        language: str = "",
        source: str = "",
        module: bytes = b"",
        isolation: str = "",
        note: str = "",
        change: Reconfiguration = UNCHANGED,
    ) -> Function:
        """The function, made or with one version more, which every process runs from now on.

        Exactly one of `source` and `module`. InvalidArgument for bad fields and for source that does not compile or
        load; Unimplemented for a runtime that does not work here, Unavailable for one that is not ready yet. Nothing
        is changed then.
        """
        parse_name("name", name)
        parse_slug(slug)
        given = parse_source(slug, language, source, module)
        release = Release(
            name=name,
            slug=slug,
            runtime=parse_runtime(runtime, given.language),
            language=given.language,
            entrypoint=f"{slug}.wasm" if runtime == "wasm" else given.filename,
            isolation=parse_isolation(isolation or DEFAULT_ISOLATION),
            note=parse_note(note),
            source=given.data,
        )
        return await self._release(project_id, tier, release, given, change)

    async def create(
        self,
        project_id: str,
        tier: Tier | None,
        *,
        name: str,
        slug: str,
        runtime: str,
        entrypoint: str,
        isolation: str = "",
    ) -> Function:
        """A new function from a file that lies in the project's folder already; compiled and loaded like any.

        Errors as for `deploy`; NotFound when there is no such file, AlreadyExists when the slug is taken.
        """
        parse_name("name", name)
        parse_slug(slug)
        language = parse_entrypoint(entrypoint)
        parsed_runtime = parse_runtime(runtime, language)
        parsed_isolation = parse_isolation(isolation or DEFAULT_ISOLATION)
        given = await self._file(project_id, entrypoint, language)
        release = Release(
            name=name,
            slug=slug,
            runtime=parsed_runtime,
            language=language,
            entrypoint=entrypoint,
            isolation=parsed_isolation,
            note="",
            source=given.data,
        )
        return await self._release(project_id, tier, release, given, UNCHANGED, new=True)

    async def update(
        self,
        project_id: str,
        tier: Tier | None,
        function_id: str,
        *,
        name: str | None = None,
        isolation: str | None = None,
        note: str = "",
        change: Reconfiguration = UNCHANGED,
    ) -> Function:
        """The function with a new version of the same code, or only with a new name. None leaves what there is.

        The code is not loaded again: with less memory it may no longer load, which its next run says.
        """
        amendment = Amendment(
            name=None if name is None else parse_name("name", name),
            isolation=None if isolation is None else parse_isolation(isolation),
            note=parse_note(note),
            change=change,
        )
        _check(change, limits_of(tier, self._settings))
        function = await self._lifecycle.amend(project_id, function_id, amendment)
        log.info("function.updated", f"{function.slug} is at version {function.version}", **_names(function))
        return function

    async def _file(self, project_id: str, entrypoint: str, language: Language) -> Source:
        try:
            data = await self._artifacts.read_source(project_id, entrypoint, most_bytes(language))
        except FileTooLarge as why:
            raise too_large("entrypoint", language, why.used) from None
        if data is None:
            what = "Wasm module" if language == "wasm" else "JS source"
            raise NotFound(
                f"{what} not found: there is no file {shown(entrypoint)} in the project's folder",
                reason="SOURCE_NOT_FOUND",
                metadata={"entrypoint": entrypoint, "project_id": project_id},
            )
        return checked(Source(data=data, language=language, filename=entrypoint, field="entrypoint"))

    async def _release(
        self,
        project_id: str,
        tier: Tier | None,
        release: Release,
        given: Source,
        change: Reconfiguration,
        *,
        new: bool = False,
    ) -> Function:
        limits = limits_of(tier, self._settings)
        _check(change, limits)
        await self._lifecycle.check(project_id, release, change, new=new)
        built = await self._compiler.compile(project_id, release.runtime, given, _to_load(limits, change))
        release = replace(release, code=built.code, source_map=built.source_map, script=built.script or None)
        await self._store(project_id, release)
        function = await self._lifecycle.publish(project_id, release, change, new=new)
        log.info("function.deployed", f"{function.slug} is at version {function.version}", **_names(function))
        return function

    async def _store(self, project_id: str, release: Release) -> None:
        code_kind: Kind = "wasm" if release.runtime == "wasm" else "js"
        files: dict[Kind, bytes] = {code_kind: release.code, "source": release.source}
        if release.source_map is not None:
            files["map"] = release.source_map
        if release.script is not None:
            files["script"] = release.script
        try:
            await self._artifacts.store(project_id, files)
        except OSError as why:
            log.error("deploy.disk", f"Artifacts cannot be written: {why}", project_id=project_id)
            raise Unavailable(
                "The server cannot store the function: its disk is full or not writable", reason="ARTIFACT_STORE_FAILED"
            ) from why


def _check(change: Reconfiguration, limits: Limits) -> None:
    change.check()
    if change.settings is not None:
        parse_settings(change.settings, limits)


def _to_load(limits: Limits, change: Reconfiguration) -> Limits:
    """The limits of loading once: the new version's memory, but the tier's time, of which a busy server needs more."""
    if change.settings is None or change.settings.memory_mb is None:
        return limits
    return replace(limits, memory_bytes=min(limits.memory_bytes, change.settings.memory_mb * MIB))


def _names(function: Function) -> dict[str, object]:
    return {"project_id": function.project_id, "function_id": function.id, "version": function.version}
