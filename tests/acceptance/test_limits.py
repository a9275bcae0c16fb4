"""Every limit ends in its own clear error over REST, and the next invocation of anybody works at once.

The stack under test runs with small defaults for projects without a tier (tests/fix_up.py), so that this is quick.
"""

from collections.abc import Callable
from typing import Any

import pytest

from server.tiers import TABLE
from tests.fix_clients import Rest

RUNAWAYS = {
    "endless-loop": ("export default () => { for (;;); }", {"CPU_LIMIT", "WALL_CLOCK_LIMIT"}),
    "endless-microtasks": (
        "export default async () => { for (;;) await null; }",
        {"CPU_LIMIT", "WALL_CLOCK_LIMIT", "MEMORY_LIMIT"},
    ),
    "never-settles": ("export default () => new Promise(() => {})", {"NEVER_SETTLES"}),
    "sleeper": ("export default () => new Promise((done) => setTimeout(done, 600_000))", {"WALL_CLOCK_LIMIT"}),
    "allocation-bomb": (
        "export default () => { const a = []; for (;;) a.push('x'.repeat(1e5) + a.length); }",
        {"MEMORY_LIMIT"},
    ),
    "deep-recursion": ("export default function f(n) { return 1 + f(n + 1); }", {"FUNCTION_EXCEPTION"}),
    "catastrophic-regex": (
        "export default () => /^(a+)+$/.test('a'.repeat(40) + 'b')",
        {"CPU_LIMIT", "WALL_CLOCK_LIMIT"},
    ),
    "huge-result": ("export default () => 'x'.repeat(20e6)", {"RESULT_SIZE_LIMIT", "MEMORY_LIMIT"}),
}


@pytest.fixture(scope="module")
def neighbour(rest: Rest) -> Callable[[], None]:
    assert rest.deploy("export default () => 'fine'", slug="neighbour").status_code == 200

    def check() -> None:
        answer = rest.invoke("neighbour")
        assert answer.json().get("result") == "fine", answer.text

    return check


def refusal(rest: Rest, slug: str, source: str) -> Any:
    assert rest.deploy(source, slug=slug).status_code == 200
    answer = rest.invoke(slug)
    assert answer.status_code >= 400, answer.text[:300]
    return answer.json()["error"]


@pytest.mark.parametrize("name", RUNAWAYS)
def test_a_runaway_ends_in_its_own_error(rest: Rest, neighbour: Callable[[], None], name: str) -> None:
    source, reasons = RUNAWAYS[name]
    info = refusal(rest, name, source)["details"][0]
    assert info["reason"] in reasons
    if info["reason"].endswith("_LIMIT"):
        assert {"limit", "used", "allowed", "unit"} <= set(info["metadata"])
    neighbour()


def test_a_log_flood_is_cut_and_the_function_still_answers(rest: Rest, neighbour: Callable[[], None]) -> None:
    source = """export default () => {
        for (let i = 0; i < 20_000; i++) console.log("line", i, "x".repeat(100));
        return "done";
    }"""
    assert rest.run(source, slug="log-flood") == "done"
    neighbour()


def test_fetch_calls_are_counted_and_the_limit_is_the_tiers(new_project: Callable[..., Rest]) -> None:
    free = new_project(tier="free")
    source = """export default async (n) => {
        const seen = [];
        for (let i = 0; i < n; i++) {
            try { await atlas.fetch("http://127.0.0.1:9/"); } catch (error) { seen.push(error.code); }
        }
        return seen;
    }"""
    allowed = TABLE["free"].fetch_calls
    assert free.deploy(source, slug="fetcher").status_code == 200
    codes = free.invoke("fetcher", allowed + 2).json()["result"]
    assert codes[allowed:] == ["fetch_limit", "fetch_limit"]
    assert "fetch_limit" not in codes[:allowed]

    uncaught = """export default async () => {
        const call = () => atlas.fetch("http://127.0.0.1:9/");
        for (;;) await call().catch((error) => { if (error.code === "fetch_limit") throw error; });
    }"""
    info = refusal(free, "greedy", uncaught)["details"][0]
    assert info["reason"] == "FETCH_CALL_LIMIT"
    assert (info["metadata"]["used"], info["metadata"]["allowed"]) == (str(allowed + 1), str(allowed))


def test_a_change_of_tier_is_in_force_for_the_next_invocation(new_project: Callable[..., Rest]) -> None:
    project = new_project(tier="free")
    source = "export default () => new Uint8Array(24 * 1024 * 1024).length"
    assert project.deploy(source, slug="hungry").status_code == 200
    assert project.invoke("hungry").json()["error"]["details"][0]["reason"] == "MEMORY_LIMIT"
    path = f"/v1/projects/{project.project_id}"
    changed = project.request("PATCH", path, key=project.admin_key, json={"tier": "pro"})
    assert changed.json()["tier"] == "pro"
    assert project.invoke("hungry").json()["result"] == 24 * 1024 * 1024
