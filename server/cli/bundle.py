"""From an entry file to the one source that is deployed: esbuild puts its imports into it, on the author's machine.

A file without imports is sent as it is. A bundle carries a source map, which the server composes with its own, so that
stacks name the author's files and lines; where both do not fit into the limit of a source, the map stays behind.
"""

import base64
import json
import os
import subprocess
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from engines.build import ESBUILD
from server.cli.problems import REFUSED, USAGE, Problem

MAX_SOURCE_BYTES: Final = 1024 * 1024
LANGUAGES: Final[Mapping[str, str]] = {
    ".js": "javascript",
    ".mjs": "javascript",
    ".ts": "typescript",
    ".mts": "typescript",
}
NODE_BUILTINS: Final = (
    *("assert", "async_hooks", "buffer", "crypto", "diagnostics_channel", "events", "os", "path", "perf_hooks"),
    *("punycode", "querystring", "stream", "string_decoder", "timers", "url", "util", "zlib"),
)
"""Libraries ask for these by their bare names, too."""

_CONDITIONS: Final = {"quickjs": "worker,browser", "wasm": "worker,browser", "node": "node", "deno": "deno,node"}
_MAP_MARK: Final = "//# sourceMappingURL=data:application/json;base64,"
_UNRESOLVED_BUILTIN: Final = "but is built into node"


@dataclass(frozen=True, slots=True, kw_only=True)
class Source:
    """What is sent, and `files`, all that it was made of. `text` or `module` (Wasm), never both."""

    language: str
    files: tuple[Path, ...]
    text: str = ""
    module: bytes = b""
    bundled: bool = False
    mapped: bool = True

    @property
    def size_bytes(self) -> int:
        return len(self.module) or len(self.text.encode())


def source_of(entry: Path, runtime: str, *, colour: bool = False) -> Source:
    """Read and bundle. Raises Problem with esbuild's report when that fails."""
    if entry.suffix == ".wasm":
        return Source(language="", files=(entry,), module=_read(entry))
    bundle = _esbuild(entry, runtime, colour)
    if bundle.files == (entry,) and entry.suffix in LANGUAGES:
        return Source(language=LANGUAGES[entry.suffix], files=bundle.files, text=_text(entry, _read(entry)))
    whole = bundle.code + _MAP_MARK + base64.b64encode(bundle.source_map).decode() + "\n"
    mapped = len(whole.encode()) <= MAX_SOURCE_BYTES
    text = whole if mapped else bundle.code
    return Source(language="javascript", files=bundle.files, text=text, bundled=True, mapped=mapped)


def command(entry: Path, runtime: str) -> list[str]:
    """esbuild's arguments; it runs in the folder of `entry`."""
    arguments = [
        f"./{entry.name}",
        *("--bundle", "--format=esm", "--platform=neutral", "--target=es2024", "--charset=utf8"),
        *("--sourcemap=external", "--sources-content=false", "--legal-comments=none", "--log-level=warning"),
        f"--conditions={_CONDITIONS.get(runtime, 'worker')}",
        "--main-fields=module,main" if runtime in ("node", "deno") else "--main-fields=browser,module,main",
    ]
    if runtime in ("node", "deno"):
        arguments += ["--external:node:*", *(f"--alias:{name}=node:{name}" for name in NODE_BUILTINS)]
    return arguments


@dataclass(frozen=True, slots=True, kw_only=True)
class _Bundle:
    code: str
    source_map: bytes
    files: tuple[Path, ...]


def _esbuild(entry: Path, runtime: str, colour: bool) -> _Bundle:
    with tempfile.TemporaryDirectory(prefix="atlas-") as name:
        folder = Path(name).resolve()
        meta, code = folder / "meta.json", folder / "out.js"
        told = [f"--metafile={meta}", f"--outfile={code}", f"--color={str(colour).lower()}"]
        arguments = [str(ESBUILD), *command(entry, runtime), *told]
        try:
            done = subprocess.run(arguments, cwd=entry.parent, capture_output=True, check=False)
        except OSError as why:
            raise Problem(f"esbuild cannot be started: {why}", USAGE, hint="run `make setup` in the checkout") from why
        if done.returncode != 0:
            raise _refused(entry, runtime, done.stderr.decode("utf-8", "replace"))
        inputs = json.loads(meta.read_bytes())["inputs"]
        source_map = _beside(entry, folder, json.loads((folder / "out.js.map").read_bytes()))
        return _Bundle(
            code=code.read_text(), source_map=source_map, files=tuple(entry.parent / name for name in inputs)
        )


def _beside(entry: Path, folder: Path, source_map: dict[str, Any]) -> bytes:
    """The map with its sources named from the folder of `entry`, in place of esbuild's output folder."""
    here = entry.parent.resolve()
    source_map["sources"] = [os.path.relpath(folder / name, here) for name in source_map["sources"]]
    return json.dumps(source_map, separators=(",", ":")).encode()


def _refused(entry: Path, runtime: str, report: str) -> Problem:
    hint = ""
    if _UNRESOLVED_BUILTIN in report and runtime not in ("node", "deno"):
        hint = f"the runtime {runtime} has no modules of Node.js; choose --runtime node or deno, or another library"
    return Problem(f"{entry} cannot be bundled", REFUSED, hint=hint, reason="BUNDLE_FAILED", details=report.strip())


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as why:
        raise Problem(f"{path} cannot be read: {why.strerror}", USAGE) from why


def _text(path: Path, data: bytes) -> str:
    try:
        return data.decode()
    except UnicodeDecodeError as why:
        raise Problem(f"{path} is not UTF-8: byte {why.start} is 0x{data[why.start]:02x}", USAGE) from why
