"""What runs under a slug, in memory: resolved from the database once, read from disk once, kept while it is true."""

import re
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Final

import orjson

from engines.contract import Limits, Program
from server.clock import Clock
from server.errors import Internal, NotFound
from server.fields import shown
from server.functions.records import Active, Function
from server.functions.registry import Registry
from server.functions.secrets import SealBroken, Vault
from server.functions.settings import FunctionSettings
from server.host.transaction import MAX_TOLD_BYTES
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
    env_json: bytes = field(repr=False)  # `ctx.env`: plain variables and opened secrets
    _bounded: dict[Limits, Limits] = field(default_factory=dict, repr=False, compare=False)

    @property
    def settings(self) -> FunctionSettings:
        return self.function.settings

    def limits_for(self, limits: Limits) -> Limits:
        """The limits of an invocation, given its tier's; computed once a tier."""
        bounded = self._bounded.get(limits)
        if bounded is None:
            bounded = self.function.settings.bound(limits)
            if self.function.exactly_once:  # its answer is kept with what it did
                bounded = replace(bounded, result_bytes=min(bounded.result_bytes, MAX_TOLD_BYTES))
            self._bounded[limits] = bounded
        return bounded


class Catalog:
    def __init__(
        self,
        registry: Registry,
        changes: Changes,
        *,
        vault: Vault,
        retire: Callable[[str, str | None], None],
        capacity_bytes: int = CAPACITY_BYTES,
        clock: Clock | None = None,
    ) -> None:
        """Subscribes to `changes`: make it before they start.

        `retire(project_id, function_id)` is told what was replaced or deleted, with None of a project that changed, so
        that nothing is kept warm for it. Not told of code that has left the cache: that is not warm for long either.
        """
        self._registry = registry
        self._vault = vault
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
        if found is None:
            require_slug(slug)
            found = await self._cache.get(key)
        if found is None:
            raise _unknown(slug)
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
            return replace(kept, function=active.function)
        function, hashes = active.function, active.hashes
        env_json = self._opened(active)
        code = await self._registry.artifact(project_id, hashes.code, "wasm" if function.runtime == "wasm" else "js")
        script = b"" if hashes.script is None else await self._registry.artifact(project_id, hashes.script, "script")
        source_map = None if hashes.map is None else await self._registry.artifact(project_id, hashes.map, "map")
        program = Program(
            project_id=project_id,
            function_id=function.id,
            version=function.version,
            code=code,
            script=script,
            isolation=function.isolation,
        )
        return Resolved(program=program, function=function, source_map=source_map, env_json=env_json)

    def _opened(self, active: Active) -> bytes:
        """The environment as JSON text. Internal, for this function alone, when a secret cannot be opened."""
        function = active.function
        env = dict(function.env)
        for name, sealed in active.secrets.items():
            try:
                env[name] = self._vault.open(function.project_id, function.id, name, sealed)
            except SealBroken as why:
                where = {"project_id": function.project_id, "function_id": function.id, "name": name}
                log.error("catalog.secret", f"The secret {name} of {function.slug} cannot be opened: {why}", **where)
                raise Internal(
                    f"The secret {name} of this function cannot be opened: {why}; set it again",
                    reason="SECRET_UNREADABLE",
                    metadata=where,
                ) from None
        return orjson.dumps(env)


def require_slug(slug: str) -> None:
    """NotFound for what no function can have as its slug."""
    if not SLUG.fullmatch(slug):
        raise _unknown(slug)


def _unknown(slug: str) -> NotFound:
    return NotFound(
        f"JS source not found: no function {shown(slug)} in this project",
        reason="FUNCTION_NOT_FOUND",
        metadata={"slug": slug[:100]},
    )


def _weight(resolved: Resolved) -> int:
    program = resolved.program
    code_bytes = len(program.code) + len(program.script) + len(resolved.source_map or b"")
    return code_bytes + 2 * len(resolved.env_json) + OVERHEAD_BYTES  # plain variables are there twice


def _is_version_of(kept: Resolved, active: Active) -> bool:
    return (kept.function.id, kept.function.version) == (active.function.id, active.function.version)


def _belongs_to(project_id: str) -> Callable[[Resolved], bool]:
    return lambda resolved: resolved.function.project_id == project_id
