"""What follows from how steps ended."""

from itertools import pairwise

import pytest

from server.workflows.definition import Definition, Edge, Node
from server.workflows.graph import Step, advance, ancestors, cycle


def graph(nodes: str, *edges: str) -> Definition:
    """Edges as `a b`, or `a b +` for the branch true and `a b -` for false."""
    made = {name: Node(id=name, type="kv", config={}, timeout_s=1) for name in nodes.split()}
    words = [edge.split() for edge in edges]
    branches = {"+": True, "-": False}
    return Definition(
        made, tuple(Edge(source=each[0], target=each[1], branch=branches.get("".join(each[2:]))) for each in words)
    )


def states(definition: Definition, **known: str) -> dict[str, Step]:
    """`T` and `F` are conditions that succeeded with that answer."""
    found = {}
    for name in definition.nodes:
        state = known.get(name, "pending")
        found[name] = Step("succeeded", state == "T") if state in ("T", "F") else Step(state)
    return found


DIAMOND = graph("a b c d", "a b", "a c", "b d", "c d")
FORK = graph("a yes no join", "a yes +", "a no -", "yes join", "no join")


@pytest.mark.parametrize(
    ("definition", "known", "start", "skip", "over"),
    [
        (DIAMOND, {}, "a", "", False),
        (DIAMOND, {"a": "running"}, "", "", False),
        (DIAMOND, {"a": "succeeded"}, "b c", "", False),
        (DIAMOND, {"a": "succeeded", "b": "succeeded", "c": "waiting"}, "", "", False),
        (DIAMOND, {"a": "succeeded", "b": "failed", "c": "succeeded"}, "d", "", False),
        (DIAMOND, dict.fromkeys("abcd", "succeeded"), "", "", True),
        (FORK, {"a": "T"}, "yes", "no", False),
        (FORK, {"a": "F"}, "no", "yes", False),
        (FORK, {"a": "failed"}, "", "yes no join", True),
        (FORK, {"a": "F", "yes": "skipped", "no": "succeeded"}, "join", "", False),
        (FORK, {"a": "F", "yes": "skipped", "no": "succeeded", "join": "succeeded"}, "", "", True),
        (graph("a b c", "a b +", "b c"), {"a": "F"}, "", "b c", True),
        (graph("a b c", "a b +", "b c"), {"a": "F", "b": "skipped"}, "", "c", True),
        (graph("a b c"), {"b": "succeeded"}, "a c", "", False),
        (graph("a b", "a b +", "a b -"), {"a": "F"}, "b", "", False),
    ],
)
def test_advance(definition: Definition, known: dict[str, str], start: str, skip: str, over: bool) -> None:
    found = advance(definition, states(definition, **known))
    assert (" ".join(found.start), " ".join(found.skip), found.over) == (start, skip, over)


def test_cycles_are_named_in_order() -> None:
    assert cycle(DIAMOND.edges) == ()
    assert cycle(graph("a b c d", "a b", "b c", "c d", "d b").edges) == ("b", "c", "d", "b")
    assert cycle(graph("a", "a a").edges) == ("a", "a")


def test_a_cycle_check_of_a_long_chain_does_not_recurse() -> None:
    names = [f"n{number}" for number in range(5_000)]
    edges = [Edge(source=a, target=b) for a, b in pairwise(names)]
    assert cycle(edges) == ()


def test_ancestors() -> None:
    assert {name: set(found) for name, found in ancestors(DIAMOND).items()} == {
        "a": set(),
        "b": {"a"},
        "c": {"a"},
        "d": {"a", "b", "c"},
    }
