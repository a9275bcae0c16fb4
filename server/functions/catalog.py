"""What runs under a slug, in memory: resolved from the database once, read from disk once, kept while it is true."""

import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from engines.contract import Program
from server.clock import Clock
from server.errors import Internal, NotFound
from server.fields import shown
from server.functions.artifacts import Artifacts, Kind, sha256_of
from server.functions.registry import Active, Function, Registry
from server.log import logger
from server.postgres.cache import Cache
from server.postgres.changes import Changes

log = logger("catalog")

CAPACITY_BYTES: Final = 128 * 1024 * 1024
OVERHEAD_BYTES: Final = 2048
"""Of an entry beside its code and source map."""

SLUG: Final = re.compile(r"[A-Za-z0-9_-]{1,63}")


@dataclass(frozen=True, slots=True, kw_only=True)
class Resolved:
    """Code ready to be handed to an engine; it stays what it is whatever is deployed meanwhile."""

    program: Program
    function: Function
    source_map: bytes | None


class Catalog:
    def __init__(
        self,
        registry: Registry,
        artifacts: Artifacts,
        changes: Changes,
        *,
        retire: Callable[[str, str | None], None],
        capacity_bytes: int = CAPACITY_BYTES,
        clock: Clock | None = None,
    ) -> None:
        """Subscribes to `changes`: make it before they start.

        `retire(project_id, function_id)` is told what was replaced or deleted, with None of a project that changed, so
        that nothing is kept warm for it. Not told of code that has left the cache: that is not warm for long either.
        """
        self._registry = registry
        self._artifacts = artifacts
        self._retire = retire
        self._cache: Cache[tuple[str, str], Resolved] = Cache(
            self._load, trusted=lambda: changes.connected, capacity=capacity_bytes, weigh=_weight, clock=clock
        )
        changes.subscribe("function", self._function_changed, self._cache.clear)
        changes.subscribe("project", self._project_changed, self._cache.clear)

    def __repr__(self) -> str:
        return f"<Catalog {self._cache!r}>"

    async def resolve(self, project_id: str, slug: str) -> Resolved:
        """The active version of the project's function. NotFound when there is none."""
        key = (project_id, slug)
        found = self._cache.kept(key)
        if found is None and SLUG.fullmatch(slug):
            found = await self._cache.get(key)
        if found is None:
            raise NotFound(
                f"JS source not found: no function {shown(slug)} in this project",
                reason="FUNCTION_NOT_FOUND",
                metadata={"slug": slug[:100]},
            )
        return found

    def _function_changed(self, key: str) -> None:
        project_id, _, slug = key.partition("/")
        if (outdated := self._cache.forget((project_id, slug))) is not None:
            self._retire(project_id, outdated.function.id)

    def _project_changed(self, project_id: str) -> None:
        self._cache.forget_where(_belongs_to(project_id))
        self._retire(project_id, None)

    async def _load(self, key: tuple[str, str], kept: Resolved | None) -> Resolved | None:
        project_id, slug = key
        active = await self._registry.active(project_id, slug)
        if active is None:
            return None
        if kept is not None and _is_version_of(kept, active):
            return Resolved(program=kept.program, function=active.function, source_map=kept.source_map)
        function = active.function
        code = await self._bytes(project_id, active.sha256, "js")
        source_map = None if active.map_sha256 is None else await self._bytes(project_id, active.map_sha256, "map")
        program = Program(
            project_id=project_id,
            function_id=function.id,
            version=function.version,
            code=code,
            isolation=function.isolation,
        )
        return Resolved(program=program, function=function, source_map=source_map)

    async def _bytes(self, project_id: str, sha256: str, kind: Kind) -> bytes:
        """From this machine's disk, else from the copy that all nodes share, which is put on the disk."""
        if (data := await self._artifacts.read(project_id, sha256, kind)) is not None:
            return data
        data = await self._registry.shared_copy(project_id, sha256)
        if data is None or sha256_of(data) != sha256:
            raise Internal(
                "The code of this function is missing; deploy it again",
                reason="ARTIFACT_MISSING",
                metadata={"sha256": sha256},
            )
        try:
            await self._artifacts.store(project_id, {kind: data})
        except OSError as why:
            log.warning("catalog.disk", f"An artifact cannot be kept on disk: {why}", project_id=project_id)
        return data


def _weight(resolved: Resolved) -> int:
    return len(resolved.program.code) + len(resolved.source_map or b"") + OVERHEAD_BYTES


def _is_version_of(kept: Resolved, active: Active) -> bool:
    return (kept.function.id, kept.function.version) == (active.function.id, active.function.version)


def _belongs_to(project_id: str) -> Callable[[Resolved], bool]:
    return lambda resolved: resolved.function.project_id == project_id
