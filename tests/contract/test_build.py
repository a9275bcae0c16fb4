# ruff: noqa: E501 (programs in strings)
"""The compiler: what it accepts, what it refuses and where, and what it can never do."""

import asyncio
import time
from pathlib import Path
from typing import Any

import pytest

from engines import build as compiler
from engines.build import Built, CompileError, Diagnostic, build
from engines.sourcemap import translate_stack
from tests.fix_quickjs_child import Answer, Child


async def compiled(source: str, language: compiler.Language = "typescript") -> Built:
    return await build(source, language, filename="orders.ts")


async def diagnostics(source: str, language: compiler.Language = "typescript") -> tuple[Diagnostic, ...]:
    with pytest.raises(CompileError) as caught:
        await compiled(source, language)
    return caught.value.diagnostics


async def outcome_of(child: Child, source: str, body: Any = None) -> Answer:
    """Compile, load and call."""
    code = (await compiled(source)).code.decode()
    assert code.startswith("\n")
    bound = child.bind(code[1:])
    return child.invoke(body) if bound.outcome == "ok" else bound


@pytest.mark.parametrize(
    ("source", "value"),
    [
        ("export default function (n: number): number { return n + 1 }", 6),
        ("const f = async (n: number) => n; export default f", 5),
        ("const f = (n: number) => n; export { f as default, f as other }", 5),
        ("export default class {} ; ", None),
        ("enum E { A = 2, B }\nexport default () => [E.A, E.B, E[2]]", [2, 3, "A"]),
        ("const enum E { A = 7 }\nexport default () => E.A", 7),
        ("namespace N { export const x = 3; export namespace M { export const y = 4 } }\nexport default () => N.x + N.M.y", 7),
        ("import type { T } from './t'; import { type U } from './u'; export default (t: T | U) => t", 5),
        ("import { OnlyAType } from './types'; export default (t: OnlyAType) => t", 5),
        ("const x = { a: 1 } satisfies Record<string, number>; export default () => x.a!", 1),
        ("abstract class A { constructor(private x = 1, readonly y = 2) {} sum() { return this.x + this.y } }\n"
         "class B extends A { declare z: number }\nexport default () => new B().sum()", 3),
        ("function twice(f: any, c: any) { return function (this: any, ...a: any[]) { return f.apply(this, a) * 2 } }\n"
         "class A { @twice m() { return 4 } }\nexport default () => new A().m()", 8),
        ("class A { accessor v = 3; static { (A as any).s = 1 } #p = 2; get p() { return this.#p } }\n"
         "export default () => [new A().v, new A().p, (A as any).s]", [3, 2, 1]),
        ("module.exports = (n) => n", 5),
        ("const v = await Promise.resolve(9); export default () => v", 9),
        ("export default (t: unknown) => (<any>t) as number ?? 0", 5),
        ("let log = ''; { using r = { [Symbol.dispose]() { log += 'd' } }; log += 'u' } export default () => log", "ud"),
        ("export default (x: number) => `é😀 ${x}\nimport y from 'z';`", "é😀 5\nimport y from 'z';"),
        ("export default () => typeof require === 'function' ? require('fs') : 'none'", "none"),
        ("export default () => { try { return require('fs') } catch (e) { return (e as Error).name } }", "ReferenceError"),
        ("type A = { [K in keyof B]?: B[K] }; interface B { x: 1 }; export default function <T extends A>(t: T) { return t }", 5),
    ],
)  # fmt: skip
async def test_modules_compile_and_run(child: Child, source: str, value: Any) -> None:
    answer = await outcome_of(child, source, 5)
    if "class {}" in source:
        assert answer.error["name"] == "TypeError"
    else:
        assert answer.value == value


@pytest.mark.parametrize(
    ("source", "line", "column", "message"),
    [
        ("let a = 1;\n  let b = ;\nexport default a", 2, 11, 'Unexpected ";"'),
        ("/* é😀 */ let x = ;", 1, 18, 'Unexpected ";"'),
        ("\r\n\r\n\tlet = = 2", 3, 8, 'Unexpected "="'),
        ("const a = 1;\nconst a = 2;\nexport default a", 2, 7, 'The symbol "a" has already been declared'),
        ("export default 'unterminated", 1, 29, "Unterminated string literal"),
        ("import fs from 'fs'; export default () => fs", 1, 16, 'Cannot import "fs"'),
        ("\nimport '/etc/passwd'\nexport default 1", 2, 8, 'Cannot import "/etc/passwd"'),
        ("export * from './secrets.json'; export default 1", 1, 15, 'Cannot import "./secrets.json"'),
        ("export { default } from 'lodash'", 1, 25, 'Cannot import "lodash"'),
        ("import {\n  a,\n  b,\n} from 'é';\nexport default () => [a, b]", 4, 8, 'Cannot import "é"'),
        ("import * as all from 'x'; export default () => all", 1, 22, 'Cannot import "x"'),
        ("import d, { e } from 'x'; export default () => [d, e]", 1, 22, 'Cannot import "x"'),
        ("const fs = require('node:fs');\nexport default () => fs", 1, 12, 'Cannot require "node:fs"'),
        ("function notExported() {}", 1, 1, "The module has no default export"),
        ("export const x = 'export default'", 1, 1, "The module has no default export"),
        ("", 1, 1, "The module has no default export"),
        ("class A { constructor(@dec x: number) {} }\nexport default A", 1, 23, "Parameter decorators only work"),
        ("export default 1; export default 2", 1, 26, 'Multiple exports with the same name "default"'),
        ("export default <div/>", 1, 20, 'Expected ">" but found "/"'),
        ("export default " + "(" * 100_000, 1, 1, ""),
    ],
)  # fmt: skip
async def test_faults_are_told_with_their_place(source: str, line: int, column: int, message: str) -> None:
    first = (await diagnostics(source))[0]
    assert first.message.startswith(message)
    if message:
        assert (first.line, first.column) == (line, column), first
    assert len(first.line_text) <= 500


async def test_javascript_is_not_typescript() -> None:
    assert (await diagnostics("export default (n: number) => n", "javascript"))[0].column == 18


async def test_several_faults_are_all_told() -> None:
    found = await diagnostics("import a from 'a'; import b from 'b'; import 'c'; export default () => a + b")
    assert [item.message.split('"')[1] for item in found] == ["a", "b", "c"]


async def test_no_file_is_ever_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither what the source names nor what lies around changes the output."""
    secret = tmp_path / "secret.js"
    secret.write_text("export default 'secret'")
    (tmp_path / "tsconfig.json").write_text(
        '{"compilerOptions": {"jsx": "preserve", "experimentalDecorators": true}} broken'
    )
    (tmp_path / "m.map").write_text('{"version":3,"sources":["stolen.ts"],"names":[],"mappings":"AAAA"}')
    source = "export default () => 1\n//# sourceMappingURL={}"
    plain = await compiled(source.format("x"))
    monkeypatch.chdir(tmp_path)
    for url in ("m.map", str(tmp_path / "m.map"), f"file://{tmp_path}/m.map"):
        assert await compiled(source.format(url)) == plain
    for text in (f"import('{secret}')", f"new URL('{secret}', import.meta.url)", f"import(`{tmp_path}/${{x}}.js`)"):
        built = await compiled(f"const x = 'secret'; export default () => {text}")
        assert b"'secret'" not in built.code.replace(b'"secret"', b"")
        assert b"export default 'secret'" not in built.code


async def test_stacks_point_into_the_source(child: Child) -> None:
    source = "type T = {\n  a: number\n}\nenum E { A }\n\nfunction deep(t: T) {\n  throw new Error('x' + t)\n}\nexport default (t: T) => {\n  return deep(t)\n}"
    built = await compiled(source)
    assert built.source_map is not None
    child.bind(built.code.decode()[1:])
    stack = translate_stack(child.invoke().error["stack"], built.source_map)
    deep, default = stack.strip().split("\n")
    assert deep.startswith("at deep (orders.ts:7:")
    assert "default (orders.ts:10:" in default


async def test_cancelling_kills_the_compiler() -> None:
    task = asyncio.create_task(compiled("export default () => [" + "{a: 1}," * 100_000 + "]"))
    await asyncio.sleep(0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task


async def test_a_compiler_that_hangs_is_ended(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    slow = tmp_path / "esbuild"
    slow.write_text("#!/bin/sh\nexec sleep 60\n")
    slow.chmod(0o700)
    monkeypatch.setattr(compiler, "ESBUILD", slow)
    monkeypatch.setattr(compiler, "TIME_LIMIT_S", 0.1)
    started = time.monotonic()
    assert (await diagnostics("export default 1"))[0].message == "Compiling takes longer than 0.1 s"
    assert time.monotonic() - started < 10


async def test_a_missing_compiler_is_our_fault(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(compiler, "ESBUILD", tmp_path / "none")
    with pytest.raises(compiler.BuildFault, match="esbuild cannot be started"):
        await compiled("export default 1")


async def test_a_megabyte_compiles() -> None:
    built = await compiled("export default () => [" + "'éa',\n" * 150_000 + "]")
    assert built.source_map is not None
    assert len(built.code) > 1_000_000


@pytest.mark.parametrize("line", ["export {default ", "export {", "import {", 'import "'])
async def test_text_full_of_half_statements_costs_no_more_than_its_length(line: str) -> None:
    """Searched with backtracking, the first of these took two minutes of the event loop."""
    started = time.monotonic()
    built = await compiled("export default `\n" + f"{line}\n" * 4_000 + "`")
    assert len(built.code) > 4_000 * len(line)
    assert time.monotonic() - started < 20


async def test_a_source_of_nothing_but_imports_is_told_of_the_first_ones() -> None:
    source = "".join(f'import "a{number}"\n' for number in range(20_000)) + "export default 1"
    started = time.monotonic()
    found = await diagnostics(source)
    assert [(problem.line, problem.column) for problem in found] == [(line, 8) for line in range(1, 21)]
    assert found[19].message.startswith('Cannot import "a19"')
    assert time.monotonic() - started < 20
