"""The bytes of a version, for its author: the source as deployed, the artifact, or a module that runs anywhere."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final, Literal, cast, get_args

from engines.contract import Program
from engines.runtimes import EngineNotReady, ModuleRefused, Runtime
from server.errors import InvalidArgument
from server.fields import parse_choice
from server.functions.compiling import not_ready, runtime_of
from server.functions.records import Hashes, Language, Version
from server.functions.registry import Registry

Form = Literal["source", "artifact", "standalone"]

_SUFFIX: Final[Mapping[Language, str]] = {"javascript": "js", "typescript": "ts", "wasm": "wasm"}
_TYPE: Final[Mapping[str, str]] = {
    "js": "text/javascript; charset=utf-8",
    "ts": "application/typescript; charset=utf-8",
    "wasm": "application/wasm",
}


@dataclass(frozen=True, slots=True)
class Download:
    filename: str  # letters, digits, hyphens, underscores and dots
    content_type: str
    data: bytes


class Downloads:
    def __init__(self, registry: Registry, runtimes: Mapping[str, Runtime]) -> None:
        """`runtimes` by name: those that work here."""
        self._registry = registry
        self._runtimes = runtimes

    async def get(self, project_id: str, function_id: str, version: int, form: str) -> Download:
        """NotFound for an unknown version; InvalidArgument for a form that the version does not have.

        Unimplemented and Unavailable as for a deploy, of the form `standalone` alone.
        """
        parsed = cast(Form, parse_choice("form", form or "source", get_args(Form)))
        function = await self._registry.get(project_id, function_id)
        found, hashes = await self._registry.version_with_hashes(project_id, function_id, version)
        suffix = _SUFFIX[found.language] if parsed == "source" else "wasm" if found.runtime == "wasm" else "js"
        data = await self._bytes(project_id, found, hashes, parsed)
        return Download(f"{function.slug}-v{version}.{suffix}", _TYPE[suffix], data)

    async def _bytes(self, project_id: str, version: Version, hashes: Hashes, form: Form) -> bytes:
        if form == "source" or (form == "standalone" and version.language == "wasm"):
            return await self._registry.artifact(project_id, hashes.source, "source")
        code = await self._registry.artifact(project_id, hashes.code, "wasm" if version.runtime == "wasm" else "js")
        return code if form == "artifact" else await self._standalone(project_id, version, hashes, code)

    async def _standalone(self, project_id: str, version: Version, hashes: Hashes, code: bytes) -> bytes:
        if version.runtime != "wasm":
            raise InvalidArgument(
                "form", f'A version of runtime "{version.runtime}" has no form "standalone"', value="standalone"
            )
        standalone = runtime_of(self._runtimes, version.runtime).standalone
        if standalone is None:
            raise InvalidArgument("form", 'The compiler of this server makes no form "standalone"', value="standalone")
        script = b"" if hashes.script is None else await self._registry.artifact(project_id, hashes.script, "script")
        program = Program(
            project_id=project_id,
            function_id=version.function_id,
            version=version.version,
            code=code,
            script=script,
            isolation=version.isolation,
        )
        try:
            return await standalone(program)
        except ModuleRefused as why:
            raise InvalidArgument("form", f'The version has no form "standalone". {why}', value="standalone") from None
        except EngineNotReady as why:
            raise not_ready(version.runtime, why) from None
