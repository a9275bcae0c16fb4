# ruff: noqa: E501 (programs in strings)
"""Well-known libraries, bundled with esbuild by their user, deployed as one file and run in the sandbox."""

import subprocess
from pathlib import Path

import pytest

from engines.build import ESBUILD, build
from tests.fix_quickjs_child import Child

ROOT = Path(__file__).parents[2]


def bundled(entry: str) -> str:
    """The entry and what it imports from node_modules as one file, as an author would make it."""
    return subprocess.run(
        [ESBUILD, "--bundle", "--format=esm", "--platform=neutral", "--main-fields=module,main"],
        input=entry,
        capture_output=True,
        text=True,
        cwd=ROOT,
        check=True,
        timeout=60,
    ).stdout


async def load(child: Child, entry: str) -> None:
    """Deploy the bundle of `entry`."""
    built = await build(bundled(entry), "javascript", filename="bundle.js")
    answer = child.bind(built.code.decode()[1:], memory_mib=16)
    assert answer.outcome == "ok", answer.meta


async def test_lodash(child: Child) -> None:
    await load(
        child,
        """import _ from "lodash";
        export default (rows) => ({
          byTeam: _.mapValues(_.groupBy(rows, "team"), (members) => _.sumBy(members, "score")),
          top: _.chain(rows).orderBy(["score", "name"], ["desc", "asc"]).take(2).map("name").value(),
          deep: _.isEqual(_.cloneDeep(rows), rows), merged: _.merge({a: {b: 1}}, {a: {c: [2]}}),
          template: _.template("hi <%= name %>!")({name: "Ann"}), words: _.kebabCase("fooBar bazQux"),
        })""",
    )
    rows = [
        {"name": "b", "team": "x", "score": 2},
        {"name": "a", "team": "y", "score": 5},
        {"name": "c", "team": "x", "score": 5},
    ]
    assert child.invoke(rows).value == {
        "byTeam": {"x": 7, "y": 5},
        "top": ["a", "c"],
        "deep": True,
        "merged": {"a": {"b": 1, "c": [2]}},
        "template": "hi Ann!",
        "words": "foo-bar-baz-qux",
    }


async def test_uuid(child: Child) -> None:
    await load(
        child,
        """import { v1, v3, v4, v5, v6, v7, validate, version, parse, stringify } from "uuid";
        export default () => {
          const made = [v1(), v4(), v6(), v7()];
          return {versions: made.map(version), valid: made.every(validate), round: made.every((id) => stringify(parse(id)) === id),
                  different: new Set(Array.from({length: 100}, () => v4())).size, five: v5("hello.example.com", v5.DNS), three: v3("hello.example.com", v3.DNS)} }""",
    )
    assert child.invoke().value == {
        "versions": [1, 4, 6, 7],
        "valid": True,
        "round": True,
        "different": 100,
        "five": "fdda765f-fc57-5604-a269-52a7df8164ec",
        "three": "9125a8dc-52ee-365b-a5aa-81b0b3681cf6",
    }


async def test_zod(child: Child) -> None:
    await load(
        child,
        """import { z } from "zod";
        const Order = z.object({id: z.uuid(), total: z.coerce.number().positive(), lines: z.array(z.object({sku: z.string().min(2), n: z.int()})).nonempty(),
                                when: z.iso.datetime().optional(), site: z.url().default("https://example.com/")}).strict();
        export default (input) => {
          const result = Order.safeParse(input);
          return result.success ? result.data : result.error.issues.map((issue) => [issue.path.join("."), issue.code]) }""",
    )
    good = {"id": "fdda765f-fc57-5604-a269-52a7df8164ec", "total": "12.5", "lines": [{"sku": "ab", "n": 1}]}
    assert child.invoke(good).value == {**good, "total": 12.5, "site": "https://example.com/"}
    bad = {"id": "x", "total": -1, "lines": [{"sku": "a", "n": 1.5}], "when": "yesterday", "extra": 1}
    assert sorted(child.invoke(bad).value) == [
        ["", "unrecognized_keys"],
        ["id", "invalid_format"],
        ["lines.0.n", "invalid_type"],
        ["lines.0.sku", "too_small"],
        ["total", "too_small"],
        ["when", "invalid_format"],
    ]


@pytest.mark.parametrize("library", ["lodash", "uuid", "zod"])
async def test_a_library_loads_anew_after_a_limit(child: Child, library: str) -> None:
    await load(
        child,
        f"import * as all from '{library}'; export default (spin) => {{ while (spin); return Object.keys(all).length > 5 }}",
    )
    assert child.invoke(True, cpu_ms=50).outcome == "cpu_limit"
    assert child.invoke(False).value is True
