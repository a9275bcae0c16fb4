"""Definitions as they are written: checked whole, with an error that names place, value and rule. Pure.

That the functions which its nodes name exist is asked elsewhere (`server.workflows.store`).
"""

import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Final

from server.errors import InvalidArgument
from server.events.json_text import Json
from server.fields import shown
from server.triggers.paths import Path
from server.workflows import fields, templates
from server.workflows.definition import (
    MAX_BYTES,
    MAX_EDGES,
    MAX_NODES,
    ON_ERROR,
    Definition,
    Edge,
    Node,
    Retry,
)
from server.workflows.graph import ancestors, cycle
from server.workflows.nodes import condition, delay, event, function, http, kv

FORMAT: Final = 1

_NODE: Final = ("id", "type", "config", "on_error", "retry", "timeout_seconds")
_EDGE: Final = ("id", "source", "target", "branch")
_RETRY: Final = ("attempts", "backoff_ms", "max_backoff_ms")
_ID: Final = re.compile(r"[A-Za-z0-9_-]{1,64}")


@dataclass(frozen=True, slots=True)
class _Type:
    """`parse` checks a configuration, `reads` says what its templates lead to. Times are of one attempt."""

    parse: Callable[[object, str], Any]
    timeout_s: float
    max_timeout_s: float = 3_600.0
    reads: Callable[[Any], Iterator[Path]] = templates.paths


TYPES: Final[Mapping[str, _Type]] = {
    "function": _Type(function.parse, function.TIMEOUT_S),
    "http": _Type(http.parse, http.TIMEOUT_S, http.MAX_TIMEOUT_S),
    "condition": _Type(condition.parse, condition.TIMEOUT_S, reads=condition.paths),
    "delay": _Type(delay.parse, delay.TIMEOUT_S),
    "event": _Type(event.parse, event.TIMEOUT_S),
    "kv": _Type(kv.parse, kv.TIMEOUT_S),
}


def parse(document: Json, field: str = "definition") -> Definition:
    """The definition of a JSON object. InvalidArgument names the place under `field`."""
    if (size := len(document.text.encode("utf-8", "replace"))) > MAX_BYTES:
        raise InvalidArgument(
            field,
            f"{field} has {size} bytes; at most {MAX_BYTES} are allowed",
            used=str(size),
            allowed=str(MAX_BYTES),
        )
    given = fields.members(document.value, field, ("version", "nodes", "edges"), required=("nodes",), of="a definition")
    if (version := given.get("version", FORMAT)) != FORMAT or isinstance(version, bool):
        raise InvalidArgument(
            f"{field}.version", f"{field}.version must be {FORMAT}, the version of this format, or absent"
        )
    nodes: dict[str, Node] = {}
    for index, each in enumerate(fields.array(given["nodes"], f"{field}.nodes", least=1, most=MAX_NODES)):
        node = _node(each, place := f"{field}.nodes[{index}]")
        if node.id in nodes:
            raise InvalidArgument(f"{place}.id", f"{place}.id is {shown(node.id)}, the id of another node too")
        nodes[node.id] = node
    edges = _edges(given.get("edges", []), f"{field}.edges", nodes)
    if path := cycle(edges):
        raise InvalidArgument(
            f"{field}.edges", f"{field}.edges has the cycle {' → '.join(path)}", cycle=" → ".join(path)[:1000]
        )
    definition = Definition(nodes, edges)
    _require_upstream(definition, f"{field}.nodes")
    return definition


def _node(value: object, place: str) -> Node:
    given = fields.members(value, place, _NODE, required=("id", "type"), of="a node")
    node_id = fields.text(given["id"], f"{place}.id")
    if not _ID.fullmatch(node_id):
        raise InvalidArgument(
            f"{place}.id", f"{place}.id is {shown(node_id)}; it must be 1 to 64 letters, digits, _ and -"
        )
    node_type = fields.choice(given["type"], f"{place}.type", tuple(TYPES))
    known = TYPES[node_type]
    config = known.parse(given.get("config", {}), f"{place}.config")
    timeout_s = given.get("timeout_seconds", known.timeout_s)
    reads = [path for path in known.reads(config) if path[0] == "steps"]
    return Node(
        id=node_id,
        type=node_type,
        config=config,
        on_error=fields.choice(given.get("on_error", "fail"), f"{place}.on_error", ON_ERROR),  # type: ignore[arg-type]
        retry=_retry(given.get("retry", {}), f"{place}.retry"),
        timeout_s=fields.number(timeout_s, f"{place}.timeout_seconds", low=1, high=known.max_timeout_s),
        reads=frozenset(path[1] for path in reads),
        outputs=frozenset(path[1] for path in reads if path[2] == "output"),
    )


def _retry(value: object, place: str) -> Retry:
    given = fields.members(value, place, _RETRY, of="retry")
    plain = Retry()

    def whole(name: str, default: int, low: int, high: int) -> int:
        return int(fields.number(given.get(name, default), f"{place}.{name}", low=low, high=high, whole=True))

    backoff_ms = whole("backoff_ms", plain.backoff_ms, 10, 3_600_000)
    return Retry(
        attempts=whole("attempts", plain.attempts, 1, 20),
        backoff_ms=backoff_ms,
        max_backoff_ms=whole("max_backoff_ms", max(plain.max_backoff_ms, backoff_ms), backoff_ms, 86_400_000),
    )


def _edges(value: object, field: str, nodes: Mapping[str, Node]) -> tuple[Edge, ...]:
    edges: dict[tuple[str, str, bool | None], str] = {}
    names: set[str] = set()
    found: list[Edge] = []
    for index, each in enumerate(fields.array(value, field, most=MAX_EDGES)):
        place = f"{field}[{index}]"
        edge = _edge(each, place, nodes)
        name = each.get("id")
        if name is not None and fields.text(name, f"{place}.id") in names:
            raise InvalidArgument(f"{place}.id", f"{place}.id is {shown(name)}, the id of another edge too")
        names.add(name)
        key = (edge.source, edge.target, edge.branch)
        if key in edges:
            raise InvalidArgument(place, f"{place} is the same edge as {edges[key]}")
        edges[key] = place
        found.append(edge)
    return tuple(found)


def _edge(value: object, place: str, nodes: Mapping[str, Node]) -> Edge:
    given = fields.members(value, place, _EDGE, required=("source", "target"), of="an edge")
    ends = {name: fields.text(given[name], f"{place}.{name}") for name in ("source", "target")}
    for name, node_id in ends.items():
        if node_id not in nodes:
            raise InvalidArgument(
                f"{place}.{name}", f"{place}.{name} is {shown(node_id)}; there is no such node", value=node_id[:100]
            )
    branch = given.get("branch")
    forks = nodes[ends["source"]].type == "condition"
    if branch is not None:
        fields.flag(branch, f"{place}.branch")
    if forks is (branch is None):
        rule = (
            "it must say at which answer of the condition the edge is taken: true or false"
            if forks
            else "only edges out of a condition have one"
        )
        raise InvalidArgument(f"{place}.branch", f"{place}.branch is {'missing' if forks else 'there'}; {rule}")
    return Edge(source=ends["source"], target=ends["target"], branch=branch)


def _require_upstream(definition: Definition, field: str) -> None:
    """What a node reads is done, or skipped, when it starts."""
    upstream = ancestors(definition)
    for index, node in enumerate(definition.nodes.values()):
        for name in sorted(node.reads - upstream[node.id]):
            place = f"{field}[{index}].config"
            rule = "is not upstream of it" if name in definition.nodes else "does not exist"
            raise InvalidArgument(
                place, f"{place} of the node {shown(node.id)} reads steps.{name[:64]}, which {rule}", value=name[:100]
            )
