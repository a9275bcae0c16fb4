"""Compile one module, JavaScript or TypeScript, into the one script an engine loads, by esbuild.

esbuild runs in its transform mode: source in, code out, and no file system at all. Nothing the source says (imports,
tsconfig, source map comments) can make it read a file. A function is therefore one file: an import is a CompileError
that names it, and libraries are bundled by the author before deploying.

TypeScript is stripped, not checked. Decorators are the standard ones of TypeScript 5 (`experimentalDecorators` is off).
Top-level await works. The code begins on line 2: line 1 of "<input>" is the prelude's, see engines.sourcemap.
"""

import asyncio
import base64
import contextlib
import platform
import re
import resource
import sys
from asyncio.subprocess import PIPE, Process
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Literal

from engines.sourcemap import finish_map

Language = Literal["javascript", "typescript"]

TIME_LIMIT_S: Final = 10.0
MEMORY_LIMIT_BYTES: Final = 1024 * 1024 * 1024
OUTPUT_LIMIT_BYTES: Final = 16 * 1024 * 1024
DIAGNOSTICS_LIMIT: Final = 20

_MACHINES = {"x86_64": "x64", "amd64": "x64", "aarch64": "arm64", "arm64": "arm64"}
_BINARY = (
    Path(__file__).resolve().parent.parent
    / "node_modules"
    / "@esbuild"
    / f"{sys.platform}-{_MACHINES.get(platform.machine().lower(), 'unknown')}"
    / "bin"
    / "esbuild"
)
_MAP_MARK = b"//# sourceMappingURL=data:application/json;base64,"
_CLAUSE = r"(?:[\w$]+|(?:[\w$]+, )?(?:\* as [\w$]+|\{[^}]*\}))"
_STATIC_IMPORT = re.compile(
    rf'^(?:import (?:{_CLAUSE} from )?|export (?:\*(?: as (?:[\w$]+|"[^"\n]*"))?|\{{[^}}]*\}}) from )'
    r'"((?:[^"\\\n]|\\.)*)"',
    re.MULTILINE,
)
_DEFAULT_EXPORT = re.compile(r"^export (?:default\b|\{[^}]*\bdefault\b[^}]*\})", re.MULTILINE)
_PROBLEM = re.compile(r"^\S+ \[(ERROR|WARNING)\] (.+)$")
_PROBLEM_PLACE = re.compile(r"^    .*?:(\d+):(\d+):$")
_NO_REQUIRE = "[unsupported-require-call]"


@dataclass(frozen=True, slots=True)
class Diagnostic:
    """One problem at a place of the author's source: line and column count from 1, the column in characters."""

    line: int
    column: int
    message: str
    line_text: str


class CompileError(Exception):
    """The source cannot be compiled. `diagnostics` holds at least one, in the order of the compiler."""

    def __init__(self, diagnostics: tuple[Diagnostic, ...]) -> None:
        first = diagnostics[0]
        super().__init__(f"{first.line}:{first.column}: {first.message}")
        self.diagnostics = diagnostics


class BuildFault(Exception):
    """The compiler itself is missing or broken; the source is not to blame."""


@dataclass(frozen=True, slots=True)
class Built:
    """`code` is UTF-8 text of one ES module; `source_map` is for engines.sourcemap."""

    code: bytes
    source_map: bytes | None


async def build(source: str, language: Language, *, filename: str) -> Built:
    """Compile one module that has a default export. `filename` is what stacks and diagnostics call it.

    Raises CompileError for every fault of the source, also when compiling it takes more than TIME_LIMIT_S or
    MEMORY_LIMIT_BYTES, and BuildFault when esbuild cannot run. When cancelled, the compiler is killed and reaped first.
    """
    loader = "ts" if language == "typescript" else "js"
    text, problems = await _transform(source, f"--loader={loader}", f"--sourcefile={filename}", "--sourcemap=inline")
    code, mark, encoded_map = text.rpartition(_MAP_MARK)
    if not mark:
        raise BuildFault("esbuild gave no source map")
    module = code.decode()

    refused = [_require_refused(source, *problem) for problem in problems if _is_require(source, *problem)]
    if _STATIC_IMPORT.search(module):
        # What looks like an import may be text in a template literal; without those it cannot.
        plain, _ = await _transform(source, f"--loader={loader}", "--supported:template-literal=false")
        refused += [_import_refused(source, match[1]) for match in _STATIC_IMPORT.finditer(plain.decode())]
    if refused:
        raise CompileError(tuple(refused[:DIAGNOSTICS_LIMIT]))
    if not _DEFAULT_EXPORT.search(module):
        raise CompileError((_at(source, "The module has no default export; " + _HINT, 1, 0),))
    source_map = await asyncio.to_thread(finish_map, base64.b64decode(encoded_map), shift_lines=1)
    return Built(code=b"\n" + code, source_map=source_map)


_HINT = "write `export default function (input, ctx) { … }`"
_Problem = tuple[str, int, int]


async def _transform(source: str, *options: str) -> tuple[bytes, list[_Problem]]:
    """esbuild's output and its warnings. Raises CompileError with its errors."""
    fixed = ("--format=esm", "--target=es2024", "--charset=utf8", "--legal-comments=none", "--tsconfig-raw={}")
    told = ("--color=false", "--log-level=warning", f"--log-limit={DIAGNOSTICS_LIMIT}")
    try:
        process = await asyncio.create_subprocess_exec(
            _BINARY, *fixed, *told, *options, stdin=PIPE, stdout=PIPE, stderr=PIPE, cwd="/", env={"GOMAXPROCS": "2"}
        )
    except OSError as why:
        raise BuildFault(f"esbuild cannot be started: {why.strerror}") from why
    try:
        with contextlib.suppress(ProcessLookupError):
            resource.prlimit(process.pid, resource.RLIMIT_DATA, (MEMORY_LIMIT_BYTES, MEMORY_LIMIT_BYTES))
        async with asyncio.timeout(TIME_LIMIT_S):
            output, errors = await _converse(process, source.encode("utf-8", "replace"))
            status = await process.wait()
    except TimeoutError:
        raise CompileError((_at(source, f"Compiling takes longer than {TIME_LIMIT_S:g} s", 1, 0),)) from None
    finally:
        await _reap(process)
    problems = list(_problems(errors.decode("utf-8", "replace")))
    if status == 0:
        return output, [(message, line, column) for level, message, line, column in problems if level == "WARNING"]
    told_errors = [_at(source, message, line, column) for level, message, line, column in problems if level == "ERROR"]
    raise CompileError(tuple(told_errors) or (_at(source, "The source is too deeply nested or too large", 1, 0),))


async def _converse(process: Process, source: bytes) -> tuple[bytes, bytes]:
    """Feed the source and read both outputs at once, each up to its limit."""
    assert process.stdin is not None
    assert process.stdout is not None
    assert process.stderr is not None

    async def feed(stdin: asyncio.StreamWriter) -> None:
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):
            stdin.write(source)
            await stdin.drain()
        stdin.close()

    async with asyncio.TaskGroup() as group:
        group.create_task(feed(process.stdin))
        output = group.create_task(_read(process.stdout, OUTPUT_LIMIT_BYTES))
        errors = group.create_task(_read(process.stderr, OUTPUT_LIMIT_BYTES))
    return output.result(), errors.result()


async def _read(stream: asyncio.StreamReader, limit_bytes: int) -> bytes:
    """Everything, of which what is past the limit is dropped."""
    kept = bytearray()
    while chunk := await stream.read(1 << 18):
        kept += chunk[: limit_bytes - len(kept)]
    return bytes(kept)


async def _reap(process: Process) -> None:
    if process.returncode is None:
        with contextlib.suppress(ProcessLookupError):
            process.kill()
    await asyncio.shield(process.wait())


def _problems(report: str) -> list[tuple[str, str, int, int]]:
    """(level, message, line from 1, column in bytes from 0) of each problem in esbuild's report for people."""
    found: list[tuple[str, str, int, int]] = []
    open_problem: tuple[str, str] | None = None
    for line in report.splitlines():
        if (head := _PROBLEM.match(line)) is not None:
            open_problem = (head[1], head[2])
        elif open_problem is not None and (place := _PROBLEM_PLACE.match(line)) is not None:
            found.append((*open_problem, int(place[1]), int(place[2])))
            open_problem = None
    return found


def _line_text(source: str, line: int) -> str:
    lines = re.split(r"\r\n|[\r\n\u2028\u2029]", source)
    return lines[line - 1] if 1 <= line <= len(lines) else ""


def _at(source: str, message: str, line: int, column_bytes: int) -> Diagnostic:
    text = _line_text(source, line)
    column = len(text.encode("utf-8", "replace")[:column_bytes].decode("utf-8", "ignore")) + 1
    return Diagnostic(line, column, message, text[:500])


def _is_require(source: str, message: str, line: int, _: int) -> bool:
    """A call of require that nothing guards. Libraries ask `typeof require` first, and get by without it."""
    return message.endswith(_NO_REQUIRE) and "typeof require" not in _line_text(source, line)


def _require_refused(source: str, _: str, line: int, column_bytes: int) -> Diagnostic:
    here = _at(source, "", line, column_bytes)
    called = re.match(r"require\s*\(\s*(['\"])(.{1,200}?)\1", here.line_text[here.column - 1 :])
    what = f'"{called[2]}"' if called else "a module"
    message = f"Cannot require {what}: a function is one ES module; bundle its libraries into it before deploying"
    return _at(source, message, line, column_bytes)


def _import_refused(source: str, specifier: str) -> Diagnostic:
    name = specifier[:200]
    found = re.search(rf"""['"]{re.escape(specifier)}['"]""", source)
    before = source[: found.start()] if found else ""
    line = len(re.findall(r"\r\n|[\r\n\u2028\u2029]", before)) + 1
    column_bytes = len(re.split(r"[\r\n\u2028\u2029]", before)[-1].encode("utf-8", "replace"))
    message = f'Cannot import "{name}": a function is one file; bundle its libraries into it before deploying'
    return _at(source, message, line, column_bytes)
