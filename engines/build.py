"""Compile one module, JavaScript or TypeScript, into the one script an engine loads, by esbuild.

esbuild runs in its transform mode: source in, code out, and no file system at all. Nothing the source says (imports,
tsconfig, source map comments) can make it read a file. A function is therefore one file: an import is a CompileError
that names it, unless it is of a built-in module that the engine lets a function have; libraries are bundled by the
author before deploying.

TypeScript is stripped, not checked. Decorators are the standard ones of TypeScript 5 (`experimentalDecorators` is off).
Top-level await works. The code begins on line 2: line 1 of "<input>" is the prelude's, see engines.sourcemap.
"""

import asyncio
import base64
import contextlib
import os
import platform
import re
import resource
import sys
from bisect import bisect_right
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import islice
from pathlib import Path
from subprocess import Popen
from typing import IO, Final, Literal

from engines.sourcemap import finish_map

Language = Literal["javascript", "typescript"]

TIME_LIMIT_S: Final = 10.0
MEMORY_LIMIT_BYTES: Final = 1024 * 1024 * 1024
OUTPUT_LIMIT_BYTES: Final = 16 * 1024 * 1024
DIAGNOSTICS_LIMIT: Final = 20

_MACHINES = {"x86_64": "x64", "amd64": "x64", "aarch64": "arm64", "arm64": "arm64"}
ESBUILD: Final = (
    Path(__file__).resolve().parent.parent
    / "node_modules"
    / "@esbuild"
    / f"{sys.platform}-{_MACHINES.get(platform.machine().lower(), 'unknown')}"
    / "bin"
    / "esbuild"
)
"""Of this checkout; `make setup` puts it there."""

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
_LINE_END = re.compile(r"\r\n|[\r\n\u2028\u2029]")
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
    """`code` is UTF-8 text of one ES module, or a Wasm module; `source_map` is for engines.sourcemap."""

    code: bytes
    source_map: bytes | None
    script: bytes = b""  # of a Wasm module: the text it was made of


async def build(source: str, language: Language, *, filename: str, builtins: frozenset[str] = frozenset()) -> Built:
    """Compile one module that has a default export. `filename` is what stacks and diagnostics call it.

    `builtins` names the modules that may be imported, without `node:`, which may stand before each of them.

    Raises CompileError for every fault of the source, also when compiling it takes more than TIME_LIMIT_S or
    MEMORY_LIMIT_BYTES, and BuildFault when esbuild cannot run. When cancelled, the compiler is killed and reaped first.
    """
    loader = f"--loader={'ts' if language == 'typescript' else 'js'}"
    text, problems = await _transform(source, loader, f"--sourcefile={filename}", "--sourcemap=inline")
    code, mark, encoded_map = text.rpartition(_MAP_MARK)
    if not mark:
        raise BuildFault("esbuild gave no source map")
    module = code
    if b"`" in code:
        # Text in a template literal may look like an import, or like a thousand of them; without those literals,
        # whatever begins a line is a statement, and the patterns take time in proportion to the text.
        module, _ = await _transform(source, loader, "--supported:template-literal=false")
    await asyncio.to_thread(_refuse_unloadable, source, module.decode(), problems, builtins)
    source_map = await asyncio.to_thread(finish_map, base64.b64decode(encoded_map), shift_lines=1)
    return Built(code=b"\n" + code, source_map=source_map)


async def as_global(script: bytes, name: str) -> bytes:
    """What `build` made, as a script that declares `name`, whose `default` is the default export.

    Raises CompileError for what only a module can do: await at its top level.
    """
    options = ("--loader=js", "--format=iife", f"--global-name={name}")
    return (await _transform(script.decode(), *options))[0]


_HINT = "write `export default function (input, ctx) { … }`"
_Problem = tuple[str, int, int]


def _refuse_unloadable(source: str, module: str, problems: list[_Problem], builtins: frozenset[str]) -> None:
    """CompileError for a module that asks for others than `builtins`, or that exports no default."""
    text = _Source(source)
    refused = [_require_refused(text, *problem) for problem in problems if _is_require(text, *problem)]
    imports = (match[1] for match in _STATIC_IMPORT.finditer(module))
    foreign = (specifier for specifier in imports if specifier.removeprefix("node:") not in builtins)
    refused += [_import_refused(text, specifier, builtins) for specifier in islice(foreign, DIAGNOSTICS_LIMIT)]
    if refused:
        raise CompileError(tuple(refused[:DIAGNOSTICS_LIMIT]))
    if not _DEFAULT_EXPORT.search(module):
        raise CompileError((text.diagnostic("The module has no default export; " + _HINT, 1, 0),))


async def _transform(source: str, *options: str) -> tuple[bytes, list[_Problem]]:
    """esbuild's output and its warnings. Raises CompileError with its errors."""
    fixed = ("--format=esm", "--target=es2024", "--charset=utf8", "--legal-comments=none", "--tsconfig-raw={}")
    told = ("--color=false", "--log-level=warning", f"--log-limit={DIAGNOSTICS_LIMIT}")
    with _memory_file(source.encode("utf-8", "replace")) as stdin, _memory_file() as stdout, _memory_file() as stderr:
        status = await _run([ESBUILD, *fixed, *told, *options], stdin, stdout, stderr)
        if status is None:
            raise CompileError((_Source(source).diagnostic(f"Compiling takes longer than {TIME_LIMIT_S:g} s", 1, 0),))
        output, errors = (_content(file) for file in (stdout, stderr))
    problems = list(_problems(errors.decode("utf-8", "replace")))
    if status == 0:
        return output, [(message, line, column) for level, message, line, column in problems if level == "WARNING"]
    raise await asyncio.to_thread(_errors_of, source, problems)


def _errors_of(source: str, problems: list[tuple[str, str, int, int]]) -> CompileError:
    text = _Source(source)
    errors = [text.diagnostic(message, line, column) for level, message, line, column in problems if level == "ERROR"]
    return CompileError(tuple(errors) or (text.diagnostic("The source is too deeply nested or too large", 1, 0),))


async def _run(command: list[Path | str], stdin: IO[bytes], stdout: IO[bytes], stderr: IO[bytes]) -> int | None:
    """The exit status, or None for one killed at TIME_LIMIT_S. No process is left, also when cancelled."""
    process = _start(command, stdin, stdout, stderr)
    try:
        async with asyncio.timeout(TIME_LIMIT_S):
            return await _exit_of(process)
    except TimeoutError:
        return None
    finally:
        if process.poll() is None:
            process.kill()
            await asyncio.shield(_exit_of(process))


def _start(command: list[Path | str], stdin: IO[bytes], stdout: IO[bytes], stderr: IO[bytes]) -> "Popen[bytes]":
    """Popen and not the loop's own subprocess, because it does not fork.

    uvloop does, and a fork of a process that serves gRPC runs gRPC's fork handlers in the child, which abort it about
    one time in twenty. Popen uses vfork, which runs none.
    """
    try:
        process = Popen(command, stdin=stdin, stdout=stdout, stderr=stderr, cwd="/", env={"GOMAXPROCS": "2"})
    except OSError as why:
        raise BuildFault(f"esbuild cannot be started: {why.strerror}") from why
    with contextlib.suppress(ProcessLookupError):
        resource.prlimit(process.pid, resource.RLIMIT_DATA, (MEMORY_LIMIT_BYTES, MEMORY_LIMIT_BYTES))
        resource.prlimit(process.pid, resource.RLIMIT_FSIZE, (OUTPUT_LIMIT_BYTES, OUTPUT_LIMIT_BYTES))
    return process


async def _exit_of(process: "Popen[bytes]") -> int:
    loop = asyncio.get_running_loop()
    gone = asyncio.Event()
    pidfd = os.pidfd_open(process.pid)
    loop.add_reader(pidfd, gone.set)
    try:
        await gone.wait()
    finally:
        loop.remove_reader(pidfd)
        os.close(pidfd)
    return process.wait()


def _memory_file(content: bytes = b"") -> IO[bytes]:
    file = os.fdopen(os.memfd_create("esbuild"), "w+b")
    file.write(content)
    file.seek(0)
    return file


def _content(file: IO[bytes]) -> bytes:
    file.seek(0)
    return file.read()


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


class _Source:
    """The author's text with its lines, which are found once, however many diagnostics quote them."""

    def __init__(self, text: str) -> None:
        self.text = text

    @cached_property
    def _starts(self) -> list[int]:
        return [0, *(end.end() for end in _LINE_END.finditer(self.text))]

    def line_at(self, offset: int) -> int:
        return bisect_right(self._starts, offset)

    def line(self, number: int) -> str:
        if not 1 <= number <= len(self._starts):
            return ""
        start = self._starts[number - 1]
        end = _LINE_END.search(self.text, start)
        return self.text[start : end.start() if end else len(self.text)]

    def diagnostic(self, message: str, line: int, column_bytes: int) -> Diagnostic:
        text = self.line(line)
        column = len(text.encode("utf-8", "replace")[:column_bytes].decode("utf-8", "ignore")) + 1
        return Diagnostic(line, column, message, text[:500])

    def diagnostic_at(self, message: str, offset: int) -> Diagnostic:
        line = self.line_at(offset)
        return Diagnostic(line, offset - self._starts[line - 1] + 1, message, self.line(line)[:500])


def _is_require(source: _Source, message: str, line: int, _: int) -> bool:
    """A call of require that nothing guards. Libraries ask `typeof require` first, and get by without it."""
    return message.endswith(_NO_REQUIRE) and "typeof require" not in source.line(line)


def _require_refused(source: _Source, _: str, line: int, column_bytes: int) -> Diagnostic:
    here = source.diagnostic("", line, column_bytes)
    called = re.match(r"require\s*\(\s*(['\"])(.{1,200}?)\1", here.line_text[here.column - 1 :])
    what = f'"{called[2]}"' if called else "a module"
    message = f"Cannot require {what}: a function is one ES module; bundle its libraries into it before deploying"
    return replace(here, message=message)


def _import_refused(source: _Source, specifier: str, builtins: frozenset[str]) -> Diagnostic:
    if builtins and specifier.startswith("node:"):
        why = f"a function may import {', '.join(sorted(builtins))}"
    else:
        why = "a function is one file; bundle its libraries into it before deploying"
    message = f'Cannot import "{specifier[:200]}": {why}'
    offsets = (source.text.find(quote + specifier + quote) for quote in "\"'")
    return source.diagnostic_at(message, min((offset for offset in offsets if offset >= 0), default=0))
