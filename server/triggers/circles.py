"""Circles that a trigger may close: what its target seems to lead to, which triggers answer that, and so on back to it.

    trigger ─▶ target ─▶ types of events ─▶ triggers that answer them ─▶ their targets ─▶ …

Of a workflow the event nodes say what they publish, and its function nodes run functions; of a function it is guessed
from its source (`server.triggers.leads`). The nearest are looked at first, so that a short circle is found first; how
many, and how many bytes of source, is bounded, and beyond that a circle goes unseen.
"""

import asyncio
from collections import OrderedDict, deque
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any, Final, NamedTuple

from psycopg.rows import dict_row

from server.events.types import escape
from server.fields import is_id
from server.postgres.control import Connection
from server.triggers.bridge import LOGIN, OPERATIONS, SIGNUP
from server.triggers.leads import leads_of
from server.triggers.patterns import CRON, matches, matching
from server.triggers.row_changes import CDC

MAX_TARGETS: Final = 32
"""Functions and workflows looked at for one trigger."""

MAX_LEADS: Final = 200
"""Of one target, the first."""

MAX_FOLLOWED: Final = 500
"""Leads of all targets for which triggers are looked for."""

MAX_TRIGGERS: Final = 1_000
"""Of a project, the newest, among which those that answer are looked for."""

MAX_SOURCE_BYTES: Final = 2 * 1024 * 1024
"""Read and looked at for one trigger, one source more or less."""

MAX_NODES: Final = 200
MAX_KNOWN: Final = 1_000
"""Sources of which it is remembered what they lead to."""

_FUNCTIONS: Final = """
SELECT f.slug, v.source_sha256, v.source_bytes FROM functions f
JOIN function_versions v ON v.function_id = f.id AND v.version = f.active_version
WHERE f.project_id = %s AND f.deleted_at IS NULL AND v.language <> 'wasm'
  AND (f.id = ANY(%s::uuid[]) OR f.slug = ANY(%s)) ORDER BY f.slug
"""
_TRIGGERS: Final = """
SELECT id, event_type, config->'operations' AS operations, config->>'table' AS table, function_id, workflow_id
FROM (SELECT * FROM triggers WHERE project_id = %s ORDER BY created_at DESC, id DESC LIMIT %s) AS newest
WHERE enabled AND event_type <> %s
"""


class Target(NamedTuple):
    function_id: str | None
    workflow_id: str | None


class Answers(NamedTuple):
    """The events that a trigger answers, its conditions and columns left aside."""

    pattern: str
    operations: Collection[str] | None

    def hears(self, event_type: str) -> bool:
        return matches(self.pattern, event_type) and self.means(event_type)

    def means(self, event_type: str) -> bool:
        """Of one that matches."""
        family, _, rest = event_type.partition(".")
        return self.operations is None or family != CDC or rest.partition(".")[0] in self.operations


@dataclass(frozen=True, slots=True)
class Led:
    """`by`, for people, leads to such events: it is said so when `sure`, or else it seems to. `heard_by`: the trigger
    through which the way goes on; empty at the end of it."""

    by: str
    event_type: str
    sure: bool
    heard_by: str = ""


Way = Sequence[Led]


def answers(event_type: str, table: object, operations: object) -> Answers:
    """Of a trigger as it is stored."""
    if event_type in (SIGNUP, LOGIN) and isinstance(table, str) and table:
        return Answers(f"{CDC}.{OPERATIONS[event_type]}.{escape(table)}", None)
    return Answers(event_type, operations if isinstance(operations, list) else None)


class Circles:
    """Of one process: it remembers what sources lead to."""

    def __init__(self) -> None:
        self._known: OrderedDict[str, tuple[str, ...]] = OrderedDict()

    async def of(self, conn: Connection, project_id: str, heard: Answers, target: Target) -> list[Way]:
        """All ways of one step back to a trigger that answers so; if there is none, the shortest of several."""
        if heard.pattern == CRON:
            return []
        look = _Look(conn, project_id, self._known)
        waiting: deque[tuple[Target, tuple[Led, ...]]] = deque([(target, ())])
        seen = {target}
        others: _Others | None = None
        followed = 0
        for _ in range(MAX_TARGETS):
            if not waiting:
                break
            at, way = waiting.popleft()
            leads = await look.at(at)
            if back := [(*way, led) for led in leads if heard.hears(led.event_type)]:
                return [*back] if not way else [back[0]]
            if leads and others is None:
                others = await _others(conn, project_id)
            leads = leads[: MAX_FOLLOWED - followed]
            followed += len(leads)
            for led in leads:
                for trigger_id, further in others.that_answer(led.event_type) if others else ():
                    if further not in seen:
                        seen.add(further)
                        waiting.append((further, (*way, Led(led.by, led.event_type, led.sure, trigger_id))))
        return []


class _Others:
    """Enabled triggers by what they answer."""

    def __init__(self, rows: Iterable[Mapping[str, Any]]) -> None:
        self._by_pattern: dict[str, list[tuple[Answers, str, Target]]] = {}
        for row in rows:
            heard = answers(row["event_type"], row["table"], row["operations"])
            found = (heard, row["id"], Target(row["function_id"], row["workflow_id"]))
            self._by_pattern.setdefault(heard.pattern, []).append(found)

    def that_answer(self, event_type: str) -> Iterator[tuple[str, Target]]:
        for pattern in matching(event_type):
            for heard, trigger_id, target in self._by_pattern.get(pattern, ()):
                if heard.means(event_type):
                    yield trigger_id, target


class _Look:
    """At targets, for one trigger."""

    def __init__(self, conn: Connection, project_id: str, known: OrderedDict[str, tuple[str, ...]]) -> None:
        self._conn = conn
        self._project_id = project_id
        self._known = known
        self._room = MAX_SOURCE_BYTES

    async def at(self, target: Target) -> list[Led]:
        """Each type of events once."""
        found: dict[str, Led] = {}
        for led in await self._all(target):
            found.setdefault(led.event_type, led)
        return list(islice(found.values(), MAX_LEADS))

    async def _all(self, target: Target) -> list[Led]:
        if target.workflow_id is None:
            return await self._functions([target.function_id or ""], [])
        cursor = await self._conn.execute(
            "SELECT definition FROM workflow_definitions WHERE id = %s AND project_id = %s",
            [target.workflow_id, self._project_id],
        )
        row = await cursor.fetchone()
        if row is None:
            return []
        ids, slugs, found = list[str](), list[str](), list[Led]()
        for node_id, kind, config in _nodes(row[0]):
            if kind == "event" and isinstance(event_type := config.get("type"), str) and "{{" not in event_type:
                found.append(Led(f"the node {node_id} of the workflow", event_type, sure=True))
            elif kind == "function":
                ids.append(str(config.get("function_id")))
                slugs.append(str(config.get("function")))
        return found + await self._functions(ids, slugs)

    async def _functions(self, ids: Iterable[str], slugs: Sequence[str]) -> list[Led]:
        ids = [each for each in ids if is_id(each)]
        if not ids and not slugs:
            return []
        cursor = await self._conn.execute(_FUNCTIONS, [self._project_id, ids, slugs])
        found: list[Led] = []
        for slug, sha256, size in await cursor.fetchall():
            leads = await self._leads(sha256, size)
            found += (Led(f"the function {slug}", event_type, sure=False) for event_type in leads)
        return found

    async def _leads(self, sha256: str, size: int) -> tuple[str, ...]:
        if (known := self._known.get(sha256)) is not None:
            self._known.move_to_end(sha256)
            return known
        if self._room <= 0:
            return ()
        self._room -= size
        cursor = await self._conn.execute(
            "SELECT data FROM artifacts WHERE project_id = %s AND sha256 = %s", [self._project_id, sha256], binary=True
        )
        row = await cursor.fetchone()
        found = () if row is None else await asyncio.to_thread(leads_of, row[0])  # it may take some milliseconds
        self._known[sha256] = found
        if len(self._known) > MAX_KNOWN:
            self._known.popitem(last=False)
        return found


async def _others(conn: Connection, project_id: str) -> _Others:
    cursor = conn.cursor(row_factory=dict_row)
    await cursor.execute(_TRIGGERS, [project_id, MAX_TRIGGERS, CRON])
    return _Others(await cursor.fetchall())


def _nodes(definition: object) -> Iterator[tuple[str, str, Mapping[str, Any]]]:
    """By id, with type and config. A definition that is something else has none."""
    nodes = definition.get("nodes") if isinstance(definition, dict) else None
    for node in nodes[:MAX_NODES] if isinstance(nodes, list) else []:
        if isinstance(node, dict) and isinstance(config := node.get("config"), dict):
            yield str(node.get("id"))[:64], str(node.get("type")), config
