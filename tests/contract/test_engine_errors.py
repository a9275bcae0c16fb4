"""What is thrown, where it happened, and what of a module cannot be loaded."""

import re

import pytest

from engines.build import CompileError
from engines.contract import Outcome
from tests.fix_engines import Evaluate, Site

pytestmark = pytest.mark.asyncio(loop_scope="module")

THROWS = [
    ("(() => { throw new Error('plain') })()", "Error", "plain"),
    ("(() => { throw new TypeError('typed') })()", "TypeError", "typed"),
    ("Promise.reject(new RangeError('later'))", "RangeError", "later"),
    ("(async () => { await null; throw new URIError('much later') })()", "URIError", "much later"),
    ("(() => { throw new (class Mine extends Error { name = 'Mine' })('own') })()", "Mine", "own"),
    ("Promise.any([Promise.reject(1)])", "AggregateError", ""),
    ("(() => { throw 'text' })()", "Error", "Thrown value: 'text'"),
    ("(() => { throw null })()", "Error", "Thrown value: null"),
    ("Promise.reject(undefined)", "Error", "Thrown value: undefined"),
    ("(() => { throw {a: 1} })()", "Error", "Thrown value: { a: 1 }"),
    ("(() => { throw new Error('😀 é \\0') })()", "Error", "😀 é \0"),
]


@pytest.mark.parametrize(("source", "name", "message"), THROWS, ids=[row[0][:40] for row in THROWS])
async def test_what_is_thrown_is_told(evaluate: Evaluate, source: str, name: str, message: str) -> None:
    result = await evaluate(source)
    assert result.outcome is Outcome.EXCEPTION, result
    assert result.error is not None
    assert result.error.name == name
    assert result.error.message == message or (name == "AggregateError")


@pytest.mark.parametrize(
    "source",
    ["undefined.x", "nothing", "null()", "new 3", "decodeURIComponent('%')", "JSON.parse('{')", "'x'.repeat(-1)"],
)
async def test_the_engines_own_errors_have_their_standard_names(evaluate: Evaluate, source: str) -> None:
    names = {
        "nothing": "ReferenceError",
        "decodeURIComponent('%')": "URIError",
        "JSON.parse('{')": "SyntaxError",
        "'x'.repeat(-1)": "RangeError",
    }
    result = await evaluate(source)
    assert result.outcome is Outcome.EXCEPTION
    assert result.error is not None
    assert result.error.name == names.get(source, "TypeError")


async def test_a_code_is_told(evaluate: Evaluate) -> None:
    result = await evaluate("(() => { throw Object.assign(new Error('x'), {code: 'E_MINE'}) })()")
    assert result.error is not None
    assert result.error.code == "E_MINE"


TYPESCRIPT = """\
interface Input { depth: number }

enum Depth { Shallow = 1 }

function deeper(depth: number): never {
  if (depth > Depth.Shallow) return deeper(depth - 1);
  throw new RangeError(`at ${depth}`);
}

export default async function handler(input: Input): Promise<void> {
  await null;
  deeper(input.depth);
}
"""


async def test_stacks_point_into_the_authors_typescript(site: Site) -> None:
    deployed = await site.deploy(TYPESCRIPT, language="typescript")
    result = await deployed({"depth": 2})
    assert result.outcome is Outcome.EXCEPTION
    stack = deployed.stack_of(result)
    places = re.findall(r"at (?:async )?(\w+) \(main\.ts:(\d+):\d+\)", stack)
    assert places == [("deeper", "7"), ("deeper", "6"), ("handler", "12")], stack


async def test_stacks_show_nothing_but_the_authors_source(site: Site) -> None:
    deployed = await site.deploy("export default function main() {\n  [1].map(() => { throw new Error('x') })\n}")
    stack = deployed.stack_of(await deployed())
    lines = [line for line in stack.splitlines() if line.strip().startswith("at ")]
    assert lines
    foreign = [line for line in lines if "main.js:2" not in line and "native" not in line and "<anonymous>" not in line]
    assert not foreign, stack


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("throw new TypeError('no start'); export default () => 1", "no start"),
        ("await Promise.reject(new Error('late')); export default () => 1", "late"),
        ("export default 5", "a default export that is not a function"),
        ("export default undefined", "no default export"),
        ("export default nothing", "nothing"),
    ],
)
async def test_a_module_that_does_not_load_is_told_at_deploy_and_at_every_call(
    site: Site, source: str, message: str
) -> None:
    checked = await site.check(source)
    assert checked.outcome is Outcome.LOAD_FAILED, checked
    assert checked.error is not None
    assert message in checked.error.message
    deployed = await site.deploy(source)
    for _ in range(2):
        result = await deployed()
        assert result.outcome is Outcome.LOAD_FAILED
        assert result.error is not None
        assert message in result.error.message


async def test_a_good_module_passes_the_check(site: Site) -> None:
    checked = await site.check("const started = await Promise.resolve(1); export default () => started")
    assert checked.outcome is Outcome.OK, checked


@pytest.mark.parametrize(
    ("source", "place"),
    [("export default function (\n  {", (2, 4)), ("let a = 1;\nlet a = 2;\nexport default () => a", (2, 5))],
)
async def test_syntax_errors_are_refused_with_their_place(site: Site, source: str, place: tuple[int, int]) -> None:
    with pytest.raises(CompileError) as refused:
        await site.deploy(source)
    first = refused.value.diagnostics[0]
    assert (first.line, first.column) == place, first


async def test_a_module_without_a_default_export_is_refused(site: Site) -> None:
    with pytest.raises(CompileError, match="no default export"):
        await site.deploy("export const main = () => 1")


async def test_other_modules_cannot_be_imported(site: Site) -> None:
    with pytest.raises(CompileError, match='Cannot import "left-pad"'):
        await site.deploy('import pad from "left-pad"; export default () => pad(1)')
    deployed = await site.deploy("export default async (name) => Object.keys(await import(name))")
    for name in ("left-pad", "./other.js", "file:///etc/passwd", "https://example.com/x.js"):
        result = await deployed(name)
        assert result.outcome is Outcome.EXCEPTION, (name, result)


async def test_unhandled_rejections_of_a_run_do_not_reach_the_next(site: Site) -> None:
    deployed = await site.deploy("export default (bad) => { if (bad) Promise.reject(new Error('lost')); return 1 }")
    await deployed(True)
    assert (await deployed(False)).outcome is Outcome.OK
