"""A workflow as it was checked: nodes, and edges that say what comes after what.

{"version": 1,
 "nodes": [{"id", "type", "config": {…}, "on_error"?, "retry"?: {…}, "timeout_seconds"?}, …],
 "edges": [{"id"?, "source", "target", "branch"?: true | false}, …]}
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Final, Literal

OnError = Literal["fail", "continue"]
ON_ERROR: Final = ("fail", "continue")

MAX_NODES: Final = 200
MAX_EDGES: Final = 1_000
MAX_BYTES: Final = 256 * 1024
"""Of a definition as JSON text."""

MAX_INPUT_BYTES: Final = 1024 * 1024 + 64 * 1024
"""Of a step's input once its templates are filled in: an event and some words around it."""

MAX_OUTPUT_BYTES: Final = 256 * 1024
"""Of what a step hands on, as JSON text."""

MAX_RUN_BYTES: Final = 16 * 1024 * 1024
"""Of the outputs of all steps of a run; small ones (`records.SHOWN_BYTES`) always fit."""

MAX_READ_BYTES: Final = 4 * 1024 * 1024
"""Of all outputs that one step reads, as JSON text."""

MAX_READ_VALUES: Final = 100_000
"""Commas and opening brackets of all outputs that one step reads: as many as one text may have."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Retry:
    """The wait before attempt n + 1 is backoff_ms * 2^(n - 1), at most max_backoff_ms, half to all of it at random."""

    attempts: int = 1  # 1 to 20
    backoff_ms: int = 1_000  # 10 to 3,600,000
    max_backoff_ms: int = 60_000  # backoff_ms to 86,400,000


@dataclass(frozen=True, slots=True, kw_only=True)
class Node:
    """`config` is as its type checked it, with templates compiled; `reads` are the nodes whose results it needs,
    `outputs` those of them of which it needs the output, not the state or error alone."""

    id: str
    type: str
    config: Any
    on_error: OnError = "fail"
    retry: Retry = field(default_factory=Retry)
    timeout_s: float
    reads: frozenset[str] = frozenset()
    outputs: frozenset[str] = frozenset()


@dataclass(frozen=True, slots=True, kw_only=True)
class Edge:
    """`branch`: out of a condition, the answer at which it is taken; None of every other edge."""

    source: str
    target: str
    branch: bool | None = None


@dataclass(frozen=True)
class Definition:
    nodes: Mapping[str, Node]
    edges: tuple[Edge, ...]

    @cached_property
    def into(self) -> Mapping[str, tuple[Edge, ...]]:
        """The edges that lead to each node."""
        found: dict[str, list[Edge]] = {node_id: [] for node_id in self.nodes}
        for edge in self.edges:
            found[edge.target].append(edge)
        return {node_id: tuple(edges) for node_id, edges in found.items()}
