"""Bundling before a deploy: what is put in, what is left out, and whose lines a stack of the result names."""

import json
import subprocess
from pathlib import Path

import pytest

from engines.build import build
from engines.sourcemap import locate
from server.cli.bundle import MAX_SOURCE_BYTES, source_of
from server.cli.commands.init import TEMPLATES
from server.cli.problems import Problem
from server.stack.binaries import in_wheel


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A function of three files, one of a library."""
    library = tmp_path / "node_modules" / "greet"
    library.mkdir(parents=True)
    (library / "package.json").write_text('{"name": "greet", "main": "main.js"}')
    (library / "main.js").write_text("module.exports = (name) => 'Hello, ' + name;\n")
    (tmp_path / "lib").mkdir()
    (tmp_path / "lib" / "fail.ts").write_text(
        "interface X {}\n\nexport function fail(): never {\n  throw new Error('x');\n}\n"
    )
    (tmp_path / "index.ts").write_text(
        "import greet from 'greet';\nimport { fail } from './lib/fail';\n"
        "export default (input: string) => input ? greet(input) : fail();\n"
    )
    return tmp_path


async def test_imports_are_put_in_and_places_are_the_authors(folder: Path) -> None:
    source = source_of(folder / "index.ts", "quickjs")
    assert (source.language, source.bundled, source.mapped) == ("javascript", True, True)
    assert {path.relative_to(folder).as_posix() for path in source.files} == {
        "index.ts",
        "lib/fail.ts",
        "node_modules/greet/main.js",
    }
    built = await build(source.text, "javascript", filename="hello.js")
    line, text = next(
        (number, line) for number, line in enumerate(built.code.decode().split("\n"), 1) if "new Error" in line
    )
    assert built.source_map
    assert locate(built.source_map, line, text.index("new Error") + 1) == ("lib/fail.ts", 4, 9)


def test_a_file_without_imports_is_sent_as_it_is(tmp_path: Path) -> None:
    entry = tmp_path / "-odd name'.mts"
    entry.write_text("import type { X } from './none';\nexport default (x: X) => x; // kept\n")
    source = source_of(entry, "quickjs")
    assert (source.text, source.language, source.bundled) == (entry.read_text(), "typescript", False)


def test_jsx_is_always_compiled(tmp_path: Path) -> None:
    entry = tmp_path / "page.jsx"
    entry.write_text("const h = (name) => name;\n/** @jsx h */\nexport default () => <p/>;\n")
    assert 'h("p"' in source_of(entry, "quickjs").text


@pytest.mark.parametrize("runtime", ["node", "deno"])
def test_modules_of_the_runtime_stay_outside(runtime: str, tmp_path: Path) -> None:
    (tmp_path / "other.js").write_text("export const one = 1;")
    entry = tmp_path / "index.js"
    entry.write_text(
        "import { createHash } from 'crypto';\nimport { Buffer } from 'node:buffer';\nimport { one } from './other';\n"
        "export default () => [createHash, Buffer, one];\n"
    )
    text = source_of(entry, runtime).text
    assert 'from "node:crypto"' in text
    assert 'from "node:buffer"' in text


def test_a_runtime_without_them_says_which_has(tmp_path: Path) -> None:
    entry = tmp_path / "index.js"
    entry.write_text("import { createHash } from 'node:crypto';\nexport default createHash;\n")
    with pytest.raises(Problem, match="cannot be bundled") as caught:
        source_of(entry, "quickjs")
    assert caught.value.exit_code == 3
    assert "index.js:1:27" in caught.value.details
    assert "--runtime node or deno" in caught.value.hint


def test_a_mistake_is_shown_with_its_line(tmp_path: Path) -> None:
    entry = tmp_path / "index.ts"
    entry.write_text("export default () => {\n  return 1 +;\n}\n")
    with pytest.raises(Problem) as caught:
        source_of(entry, "quickjs")
    assert "index.ts:2:12" in caught.value.details
    assert "return 1 +;" in caught.value.details


def test_the_map_stays_behind_where_both_are_too_large(tmp_path: Path) -> None:
    (tmp_path / "large.js").write_text(
        "".join(f"export const name{n} = (a, b) => a + b + {n};\n" for n in range(12_000))
    )
    (tmp_path / "index.js").write_text("import * as large from './large';\nexport default (n) => large[n];\n")
    source = source_of(tmp_path / "index.js", "quickjs")
    assert not source.mapped
    assert source.size_bytes <= MAX_SOURCE_BYTES
    assert "sourceMappingURL" not in source.text


def test_esbuild_that_is_not_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "index.js").write_text("export default 1")
    monkeypatch.setattr("server.cli.bundle.ESBUILD", tmp_path / "none")
    with pytest.raises(Problem, match="esbuild cannot be started") as caught:
        source_of(tmp_path / "index.js", "quickjs")
    assert "make setup" in caught.value.hint


@pytest.mark.parametrize("content", [b"export default '\xff'", None])
def test_a_file_that_is_no_text(content: bytes | None, tmp_path: Path) -> None:
    entry = tmp_path / "index.js"
    if content is not None:
        entry.write_bytes(content)
    with pytest.raises(Problem):
        source_of(entry, "quickjs")


def test_types_are_checked_against_the_functions_that_init_makes(tmp_path: Path) -> None:
    """By the compiler that is in Deno, with the options of tsconfig.json."""
    for path in TEMPLATES.iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    options = json.loads((tmp_path / "tsconfig.json").read_text())["compilerOptions"]
    shared = {name: options[name] for name in ("lib", "strict", "checkJs", "allowJs")}
    config = {"compilerOptions": {**shared, "types": ["./atlas.d.ts"], "skipLibCheck": False}}
    (tmp_path / "deno.json").write_text(json.dumps(config))
    (tmp_path / "use.ts").write_text(USE)
    done = subprocess.run(
        [in_wheel("deno", "deno"), "check", "index.ts", "index.js", "use.ts"],
        cwd=tmp_path,
        env={"DENO_DIR": str(tmp_path / "deno"), "NO_COLOR": "1", "DENO_NO_UPDATE_CHECK": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr


USE = """
const rows = await atlas.db.query<{ id: number }>("SELECT $1", [1n, new Date(), new Uint8Array(2), [1, [2]], { a: 1 }]);
const id: number = rows[0]!.id;
await atlas.kv.set("k", { a: 1 }, { ttl: 3 });
const signal = AbortSignal.timeout(3);
const r: Response = await fetch(new URL("https://x.y"), { timeout: 100, signal, headers: { a: "b" } });
const u: Uint8Array = await r.bytes();
clearTimeout(setTimeout((a: number) => a, 1, 2));
new EventTarget().addEventListener("x", (e: CustomEvent) => e.detail);
// @ts-expect-error
document.title;
// @ts-expect-error
atlas.kv.get(3);
const handler: atlas.Handler<{ a: number }> = async (input, ctx) => {
  if (input.a > 1) throw new DOMException("x", "y");
  // @ts-expect-error
  ctx.env.A = "1";
  return Response.json({ id, u: u.length, token: ctx.env.TOKEN, path: ctx.request.path });
};
export default handler;
"""
