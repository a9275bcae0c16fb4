"""What a Node or Deno function can lay its hands on, however long it looks: nothing that reaches outside.

The jail is the wall and would hold; this is what stands before it.
"""

from pathlib import Path

from engines.v8.builtins import BUILTINS
from tests.fix_v8_child import V8Child

SOURCE = (Path(__file__).parents[1] / "escape" / "v8_reach.js").read_text()
HARMLESS = {"handle"}
"""Of a compressor: memory of its own. That they are found shows that the search finds."""

PLANTED = "globalThis.planted = { deep: [{ _rawDebug() {} }, function spawn() {}] };"


def powers(child: V8Child, source: str) -> list[str]:
    assert child.bind(source).outcome == "ok"
    found = child.invoke(sorted(BUILTINS)).value
    assert found["objects"] > 2_000
    assert found["frames"] > 20
    told: list[str] = found["powers"]
    return told


def test_nothing_leads_outside(v8_child: V8Child) -> None:
    found = powers(v8_child, SOURCE)
    assert {power.rpartition(": ")[2] for power in found} == HARMLESS, found


def test_the_search_would_find_it(v8_child: V8Child) -> None:
    found = powers(v8_child, PLANTED + SOURCE)
    assert {"process", "spawn"} <= {power.rpartition(": ")[2] for power in found}
