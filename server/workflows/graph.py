"""What follows from how steps ended: which start, which are skipped, and whether the run is over. Pure.

An edge is live once its source ended and it is taken, dead once its source was skipped or the other branch is taken.

    every edge into a node settled, one of them live, or none there   → it starts
    every edge into a node dead                                       → it is skipped, and its edges are dead
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from enum import Enum
from typing import Final

from server.workflows.definition import Definition, Edge

PENDING: Final = "pending"
DONE: Final = ("succeeded", "failed")
"""States of a step after which its edges are taken; a failure that ends the run is no business of the graph's."""


@dataclass(frozen=True, slots=True)
class Step:
    """A step as far as the graph goes. `branch` is what a condition answered."""

    state: str
    branch: bool | None = None


@dataclass(frozen=True, slots=True)
class Advance:
    """Steps that were pending: those to start and those to skip, in the order of the definition. `over`: nothing is
    left to be done."""

    start: tuple[str, ...]
    skip: tuple[str, ...]
    over: bool


class _Edge(Enum):
    OPEN = "open"
    LIVE = "live"
    DEAD = "dead"


def advance(definition: Definition, steps: Mapping[str, Step]) -> Advance:
    """`steps` has every node of the definition."""
    skipped: set[str] = set()
    pending = [node_id for node_id in definition.nodes if steps[node_id].state == PENDING]
    going = True
    while going:
        going = False
        for node_id in pending:
            if node_id not in skipped and _all_dead(definition.into[node_id], steps, skipped):
                skipped.add(node_id)
                going = True
    start = tuple(
        node_id
        for node_id in pending
        if node_id not in skipped and _startable(definition.into[node_id], steps, skipped)
    )
    open_steps = any(step.state not in (*DONE, "skipped") and name not in skipped for name, step in steps.items())
    return Advance(start, tuple(name for name in pending if name in skipped), over=not open_steps)


def cycle(edges: Sequence[Edge]) -> tuple[str, ...]:
    """The nodes of a cycle in order, the first one again at the end; empty when there is none."""
    targets: dict[str, list[str]] = {}
    for edge in edges:
        targets.setdefault(edge.source, []).append(edge.target)
    done: set[str] = set()
    for root in targets:
        path: list[str] = []
        todo: list[tuple[str, Iterator[str]]] = []
        _enter(root, path, todo, targets, done)
        while todo:
            node_id, following = todo[-1]
            target = next(following, None)
            if target is None:
                todo.pop()
                path.pop()
                done.add(node_id)
            elif target in path:
                return (*path[path.index(target) :], target)
            else:
                _enter(target, path, todo, targets, done)
    return ()


def ancestors(definition: Definition) -> Mapping[str, frozenset[str]]:
    """The nodes upstream of each, of a definition without cycles."""
    found: dict[str, frozenset[str]] = {}
    left = dict.fromkeys(definition.nodes)
    while left:
        for node_id in tuple(left):
            sources = {edge.source for edge in definition.into[node_id]}
            if sources <= found.keys():
                found[node_id] = frozenset(sources).union(*(found[source] for source in sources))
                del left[node_id]
    return found


def _enter(
    node_id: str,
    path: list[str],
    todo: list[tuple[str, Iterator[str]]],
    targets: Mapping[str, Sequence[str]],
    done: set[str],
) -> None:
    if node_id not in done:
        path.append(node_id)
        todo.append((node_id, iter(targets.get(node_id, ()))))


def _all_dead(edges: Sequence[Edge], steps: Mapping[str, Step], skipped: set[str]) -> bool:
    return bool(edges) and all(_of(edge, steps, skipped) is _Edge.DEAD for edge in edges)


def _startable(edges: Sequence[Edge], steps: Mapping[str, Step], skipped: set[str]) -> bool:
    return all(_of(edge, steps, skipped) is not _Edge.OPEN for edge in edges)


def _of(edge: Edge, steps: Mapping[str, Step], skipped: set[str]) -> _Edge:
    source = steps[edge.source]
    if edge.source in skipped or source.state == "skipped":
        return _Edge.DEAD
    if source.state not in DONE:
        return _Edge.OPEN
    return _Edge.LIVE if edge.branch is None or edge.branch is source.branch else _Edge.DEAD
