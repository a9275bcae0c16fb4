"""Whatever the graph and however its steps end: the run ends, and every node ends exactly once."""

from hypothesis import given, settings
from hypothesis import strategies as st

from server.workflows.definition import Definition, Edge, Node
from server.workflows.graph import Step, advance, cycle

SIZE = 9


@st.composite
def graphs(draw: st.DrawFn) -> Definition:
    """Edges lead from lower to higher numbers; every third node is a condition."""
    size = draw(st.integers(1, SIZE))
    kinds = ["condition" if draw(st.booleans()) else "kv" for _ in range(size)]
    nodes = {f"n{i}": Node(id=f"n{i}", type=kinds[i], config={}, timeout_s=1) for i in range(size)}
    pairs = draw(st.sets(st.tuples(st.integers(0, size - 1), st.integers(0, size - 1)).filter(lambda p: p[0] < p[1])))
    edges = tuple(
        Edge(source=f"n{a}", target=f"n{b}", branch=draw(st.booleans()) if kinds[a] == "condition" else None)
        for a, b in sorted(pairs)
    )
    return Definition(nodes, edges)


@given(graphs(), st.data())
@settings(max_examples=300, deadline=None)
def test_every_run_ends_and_each_node_once(definition: Definition, data: st.DataObject) -> None:
    assert cycle(definition.edges) == ()
    steps = {node_id: Step("pending") for node_id in definition.nodes}
    running: list[str] = []
    ended: list[str] = []
    while True:
        following = advance(definition, steps)
        for node_id in following.skip:
            ended.append(node_id)
            steps[node_id] = Step("skipped")
        for node_id in following.start:
            running.append(node_id)
            steps[node_id] = Step("running")
        if following.over:
            assert not running
            break
        assert running, "nothing runs, and it is not over"
        node_id = running.pop(data.draw(st.integers(0, len(running) - 1)))
        ended.append(node_id)
        is_condition = definition.nodes[node_id].type == "condition"
        failed = data.draw(st.booleans())
        branch = data.draw(st.booleans()) if is_condition and not failed else None
        steps[node_id] = Step("failed" if failed else "succeeded", branch)
    assert sorted(ended) == sorted(definition.nodes)
