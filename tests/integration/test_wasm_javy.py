"""Javy's command line and envelope, by a stand-in that is no JavaScript engine.

It checks how it is called, and what it makes answers as modules of Javy do. A real javy, where there is one, is tested
at the end; the header of the test report says whether there is.
"""

import base64
import stat
import sys
from pathlib import Path

import pytest

from engines.build import BuildFault, CompileError
from engines.contract import Outcome
from engines.wasm import javy
from engines.wasm.engine import Wasm
from tests.fix_wasm_engine import REAL_JAVY, Bench, command, said, wasm_engine

_STAND_IN = """#!{python} -I
import base64, os, sys
assert not os.environ.keys() - {{"LC_CTYPE"}}, os.environ
assert sys.argv[1:] == ["build", *{options!r}, "-o", sys.argv[-2], sys.argv[-1]], sys.argv
script = open(sys.argv[-1]).read()
assert "__atlas_user" in script and "Javy.IO" in script
if "REFUSE" in script:
    sys.exit("SyntaxError: expecting ';' at function.js:3")
open(sys.argv[-2], "wb").write(base64.b64decode({module!r}))
"""


def stand_in(folder: Path, envelope: str) -> Path:
    module = base64.b64encode(command(said(envelope), imports=("fd_write",))).decode()
    path = folder / "javy"
    path.write_text(_STAND_IN.format(python=sys.executable, options=list(javy.OPTIONS), module=module))
    path.chmod(path.stat().st_mode | stat.S_IXUSR)
    return path


async def run(tmp_path: Path, envelope: str) -> object:
    engine = wasm_engine(javy=str(stand_in(tmp_path, envelope)))
    try:
        result = await Bench(engine).run("return input")
        assert str(engine.report()["compiler"]).startswith("javy: /")
        error = result.error
        return result.value if result.outcome is Outcome.OK else error and (error.name, error.message)
    finally:
        await engine.close()


@pytest.mark.parametrize(
    ("envelope", "ended"),
    [
        ('{"status":0,"value":{"a":[1,"\\u00e4"]}}', '{"a":[1,"ä"]}'.encode()),
        ('{"status":0,"value":null}', b"null"),
        ('{"status":1,"error":{"name":"TypeError","message":"bad","stack":""}}', ("TypeError", "bad")),
    ],
)
async def test_what_javy_makes_is_run_and_its_envelope_opened(tmp_path: Path, envelope: str, ended: object) -> None:
    assert await run(tmp_path, envelope) == ended


@pytest.mark.parametrize("envelope", ["7", "{}", '{"status":1,"error":5}', '{"status":true}'])
async def test_an_envelope_that_is_none_is_an_error(tmp_path: Path, envelope: str) -> None:
    ended = await run(tmp_path, envelope)
    assert isinstance(ended, tuple)
    assert ended[0] == "OutputError"


async def test_what_javy_refuses_is_the_authors_error(tmp_path: Path) -> None:
    engine = Wasm(cache_dir=tmp_path, secret=b"s", javy=str(stand_in(tmp_path, "1")))
    with pytest.raises(CompileError, match="javy: SyntaxError: expecting ';'"):
        await engine.build("export default () => 'REFUSE'", "javascript", filename="main.js")
    with pytest.raises(CompileError, match="Top-level await"):
        await engine.build("await 1; export default () => 1", "javascript", filename="main.js")


async def test_a_javy_that_is_not_there_is_a_fault_of_ours(tmp_path: Path) -> None:
    engine = Wasm(cache_dir=tmp_path, secret=b"s", javy=str(tmp_path / "none"))
    with pytest.raises(BuildFault, match="javy cannot be started: No such file or directory"):
        await engine.build("export default () => 1", "javascript", filename="main.js")


async def test_our_own_compiler_is_named_where_there_is_no_javy(tmp_path: Path) -> None:
    assert Wasm(cache_dir=tmp_path, secret=b"s").report()["compiler"] == "atlas; there is no javy"


if REAL_JAVY:

    @pytest.mark.parametrize(
        ("source", "value", "ended"),
        [
            ("export default (input) => ({ sum: input.a + input.b })", {"a": 1, "b": 2}, b'{"sum":3}'),
            ("export default async (input) => { await null; return input }", "\u00e4", '"ä"'.encode()),
            ("export default (input, ctx) => ctx.x", None, b"5"),
            ("export default () => { throw new TypeError('bad') }", None, ("TypeError", "bad")),
        ],
    )
    async def test_a_real_javy(source: str, value: object, ended: object) -> None:
        engine = wasm_engine(javy=REAL_JAVY)
        try:
            result = await Bench(engine).run(source, value, context=b'{"x":5}')
        finally:
            await engine.close()
        error = result.error
        assert (error.name, error.message) == ended if error else result.value == ended
