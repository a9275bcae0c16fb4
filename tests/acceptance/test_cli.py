"""The program `atlas` against a running stack, as a person runs it."""

import json
import re
from pathlib import Path

from server.cli.commands.init import TEMPLATES
from tests.fix_cli import Program
from tests.fix_clients import RunningStack


def test_a_function_from_nothing(program: Program) -> None:
    program.run("init", "hello-cli")
    assert "Deployed hello-cli version 1 (quickjs" in program.run("deploy", "hello-cli").stdout
    ran = program.run("invoke", "hello-cli", "--data", '{"name": "Ada"}')
    assert json.loads(ran.stdout)["message"] == "Hello, Ada!"
    told = program.json("invoke", "hello-cli")
    assert told["result"]["message"] == "Hello, world!"
    assert told["metrics"]["wall_ms"] > 0


def test_javascript_too(program: Program) -> None:
    program.run("init", "hello-js", "--javascript")
    program.run("deploy", "hello-js")
    assert json.loads(program.run("invoke", "hello-js").stdout)["message"] == "Hello, world!"


def test_the_file_of_the_stack_is_found_in_a_folder_above(
    program: Program, running_stack: RunningStack, tmp_path: Path
) -> None:
    (tmp_path / ".atlas").mkdir()
    lines = [f"export {name}='{value}'" for name, value in running_stack.env.items()]
    (tmp_path / ".atlas" / "env").write_text("\n".join(lines))
    (tmp_path / "below").mkdir()
    inherited = {name: value for name, value in program.variables.items() if name not in running_stack.env}
    below = Program(tmp_path / "below", inherited)
    assert "functions" in below.json("functions")


def test_files_are_bundled_and_a_stack_names_them(program: Program) -> None:
    (program.folder / "lib").mkdir()
    (program.folder / "lib" / "fail.ts").write_text(
        "interface Unused {}\n\nexport function fail(what: string): never {\n  throw new RangeError(what);\n}\n"
    )
    (program.folder / "index.ts").write_text(
        "import { fail } from './lib/fail';\nexport default (what: string) => fail(what);\n"
    )
    program.run("deploy", "index.ts", "--slug", "bundled")
    ran = program.run("invoke", "bundled", "--data", '"on purpose"', code=1)
    assert "RangeError: on purpose" in ran.stderr
    assert "lib/fail.ts:4:" in ran.stderr
    assert "index.ts:2:" in ran.stderr
    told = json.loads(program.run("invoke", "bundled", "--data", '"x"', "--json", code=1).stderr)["error"]
    assert (told["reason"], told["exit_code"]) == ("FUNCTION_EXCEPTION", 1)


def test_what_the_server_refuses_is_shown_at_its_place(program: Program) -> None:
    (program.folder / "none.js").write_text("const a = 1;\nexport const b = a;\n")
    ran = program.run("deploy", "none.js", code=3)
    assert ran.stderr.startswith("none.js:1:1: error: The module has no default export")
    assert "const a = 1;\n    │ ^" in ran.stderr


def test_exit_codes(program: Program) -> None:
    assert "JS source not found" in program.run("invoke", "no-such-function", code=3).stderr
    assert "error" in program.run("functions", "--key", "atlas_service_wrong", code=3).stderr
    assert "cannot be reached" in program.run("functions", "--url", "http://127.0.0.1:1", code=4).stderr
    program.run("deploy", "no-such-folder", code=2)


def test_versions_back_and_forth(program: Program) -> None:
    for number in (1, 2):
        (program.folder / "moving.js").write_text(f"export default () => {number}\n")
        assert program.json("deploy", "moving.js")["version"] == number
    assert [item["active"] for item in program.json("versions", "moving")["versions"]] == [True, False]
    assert program.json("rollback", "moving", "--to", "1")["version"] == 1
    assert program.json("invoke", "moving")["result"] == 1
    program.run("functions", "delete", "moving")
    assert "moving" not in program.run("functions").stdout


PROBE = """
export default ({ declared, known }) => {
  const missing = Object.entries(declared).flatMap(([name, members]) => {
    if (!(name in globalThis)) return [name];
    const value = globalThis[name];
    const has = (key) => key in Object(value) || key in (value.prototype ?? {});
    return members.filter((key) => !has(key)).map((key) => name + "." + key);
  });
  const globals = Object.getOwnPropertyNames(globalThis);
  const undeclared = globals.filter((name) => !(name in declared) && !known.includes(name));
  return { missing, undeclared };
};
"""
LANGUAGE = """
AggregateError Array ArrayBuffer Atomics BigInt BigInt64Array BigUint64Array Boolean DataView Date Error EvalError
FinalizationRegistry Float16Array Float32Array Float64Array Function Infinity Int16Array Int32Array Int8Array
InternalError Iterator JSON Map Math NaN Number Object Promise Proxy RangeError ReferenceError Reflect RegExp Set
SharedArrayBuffer String Symbol SyntaxError TypeError URIError Uint16Array Uint32Array Uint8Array Uint8ClampedArray
WeakMap WeakRef WeakSet decodeURI decodeURIComponent encodeURI encodeURIComponent escape eval globalThis isFinite
isNaN parseFloat parseInt undefined unescape AsyncDisposableStack DisposableStack SuppressedError
"""


def test_the_types_of_init_are_what_a_function_finds(program: Program) -> None:
    (program.folder / "probe.js").write_text(PROBE)
    program.run("deploy", "probe.js")
    types = {name: sorted(members) for name, members in declared((TEMPLATES / "atlas.d.ts").read_text()).items()}
    types |= {"atlas": ["db", "kv", "fetch"]}
    found = program.json("invoke", "probe", "--data", json.dumps({"declared": types, "known": LANGUAGE.split()}))[
        "result"
    ]
    assert found == {"missing": [], "undeclared": []}


def declared(types: str) -> dict[str, set[str]]:
    """Names of the values that a file of types declares, each with the names of its members."""
    kinds: dict[str, set[str]] = {}
    for kind, name, body in re.findall(_KIND, types):
        members = set(re.findall(r"^  (?:static |readonly )*(\w+)\??[<(:]", body, re.MULTILINE)) - {"constructor"}
        kinds.setdefault(name if kind != "interface" else f"interface {name}", set()).update(members)
    values = {name: members for name, members in kinds.items() if not name.startswith("interface")}
    for name in ("Request", "Response"):
        values[name] |= kinds["interface Body"]
    functions = re.findall(r"^declare function (\w+)", types, re.MULTILINE)
    return {**values, **{name: set() for name in functions}, "self": set()}


_KIND = re.compile(r"^(?:declare )?(class|const|interface) (\w+)[^\n;]*\{(?:\}|\n(.*?)^\})", re.MULTILINE | re.DOTALL)
