"""All enabled triggers in memory, so that an event asks no database.

    announced │ a trigger ─▶ that row is loaded again    a project ─▶ its tier    a gap ─▶ what differs, by updated_at
              │ marked at once, loaded when next asked

Whoever asks gets what was announced before, or Unavailable while Changes vouches for nothing. Rows are loaded a few at
a time: one project's many do not keep another's events waiting, nor the event loop.
"""

import asyncio
import time
from collections.abc import AsyncIterator, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from itertools import count, islice
from typing import Any, Final

from psycopg.rows import dict_row

from server.errors import InvalidArgument, Unavailable
from server.fields import is_id
from server.log import logger
from server.postgres.changes import Changes
from server.postgres.control import RETRY_AFTER_MS, Pool, transaction
from server.tiers import Tier
from server.triggers.definition import Trigger
from server.triggers.matching import Matcher
from server.triggers.paths import Envelope
from server.triggers.patterns import CRON
from server.triggers.rows import COLUMNS, trigger_of

log = logger("triggers")

LOADED_AT_ONCE: Final = 500
COMPARED_AT_ONCE: Final = 5_000
"""Rows of one query."""

TURN_S: Final = 0.005
"""How long rows are read before others on the event loop have their turn."""

PROJECT: Final = ""
"""In the place of a trigger's id: the project itself."""

ZERO: Final = "00000000-0000-0000-0000-000000000000"


@dataclass(frozen=True, slots=True)
class Armed:
    """An enabled trigger. `slug` is that of the target function, which may be deleted; None for a workflow."""

    trigger: Trigger
    slug: str | None


class ProjectTriggers:
    """The enabled triggers of one project, as of now: it goes on changing."""

    __slots__ = ("_armed", "_matcher", "tier")

    def __init__(self, tier: Tier | None = None) -> None:
        self.tier = tier
        self._armed: dict[str, Armed] = {}
        self._matcher = Matcher()

    def __len__(self) -> int:
        return len(self._armed)

    def __iter__(self) -> Iterator[str]:
        """Their ids."""
        return iter(self._armed)

    def match(self, event: Envelope) -> list[Armed]:
        """Those whose type and conditions are met, paused ones too: they hold the event. Never raises."""
        return [self._armed[trigger_id] for trigger_id in self._matcher.match(event)]

    def get(self, trigger_id: str) -> Armed | None:
        return self._armed.get(trigger_id)

    def put(self, armed: Armed) -> None:
        trigger = armed.trigger
        self._armed[trigger.id] = armed
        self._matcher.add(trigger.id, trigger.event_type, trigger.conditions)

    def drop(self, trigger_id: str) -> None:
        if self._armed.pop(trigger_id, None) is not None:
            self._matcher.remove(trigger_id)


class TriggerCache:
    def __init__(self, pool: Pool, changes: Changes) -> None:
        """Subscribes to `changes`: make it before they start."""
        self._pool = pool
        self._changes = changes
        self._projects: dict[str, ProjectTriggers] = {}
        self._scheduled: dict[str, Trigger] = {}
        self._marks = count(1)
        self._gap = next(self._marks)  # 0: none since all was compared
        self._stale: dict[str, dict[str, int]] = {}  # project → trigger or PROJECT → its last mark
        self._turn = asyncio.Lock()
        changes.subscribe("trigger", self._trigger_changed, self._missed)
        changes.subscribe("project", self._project_changed, self._missed)

    def __repr__(self) -> str:
        triggers = sum(map(len, self._projects.values()))
        return f"<TriggerCache {triggers} triggers of {len(self._projects)} projects, {len(self._stale)} stale>"

    async def start(self) -> None:
        """Loaded: all triggers of all projects. Unavailable when the database is away."""
        await self._refresh_all()

    async def of(self, project_id: str) -> ProjectTriggers:
        """With everything that was announced before the call. Unavailable while nobody can vouch for it."""
        self._require_vouched()
        while self._gap or project_id in self._stale:
            await self._refresh((project_id,))
            self._require_vouched()
        return self._projects.get(project_id) or ProjectTriggers()

    async def scheduled(self) -> Sequence[Trigger]:
        """The enabled cron triggers of all projects, paused ones too; otherwise as `of`."""
        self._require_vouched()
        await self._refresh_all()
        self._require_vouched()
        return tuple(self._scheduled.values())

    def _trigger_changed(self, key: str) -> None:
        project_id, _, trigger_id = key.partition("/")
        if is_id(project_id) and is_id(trigger_id):
            self._mark(project_id, trigger_id)

    def _project_changed(self, project_id: str) -> None:
        if is_id(project_id):
            self._mark(project_id, PROJECT)

    def _missed(self) -> None:
        self._gap = next(self._marks)

    def _mark(self, project_id: str, what: str) -> None:
        self._stale.setdefault(project_id, {})[what] = next(self._marks)

    def _require_vouched(self) -> None:
        if not self._changes.connected:
            raise Unavailable(
                "Changes of triggers cannot be heard now; try again",
                reason="TRIGGERS_UNAVAILABLE",
                retry_after_ms=RETRY_AFTER_MS,
            )

    async def _refresh_all(self) -> None:
        while self._gap or self._stale:
            await self._refresh(tuple(self._stale))

    async def _refresh(self, project_ids: Collection[str]) -> None:
        """Compare all after a gap, else load some of what is stale in these projects."""
        async with self._turn:
            if self._gap:
                await self._compare()
                return
            some = list(islice(self._marked(project_ids), LOADED_AT_ONCE))
            await self._load_projects({project_id for project_id, what, _ in some if what == PROJECT})
            await self._load({what: project_id for project_id, what, _ in some if what != PROJECT})
            for project_id, what, mark in some:
                self._done(project_id, what, mark)

    def _marked(self, project_ids: Collection[str]) -> Iterator[tuple[str, str, int]]:
        for project_id in project_ids:
            for what, mark in self._stale.get(project_id, {}).items():
                yield project_id, what, mark

    def _done(self, project_id: str, what: str, mark: int) -> None:
        """Take the mark away, unless a new one has come meanwhile."""
        marked = self._stale[project_id]
        if marked[what] == mark:
            del marked[what]
        if not marked:
            del self._stale[project_id]

    async def _compare(self) -> None:
        """Mark every trigger that is not kept as it is in the database, and every project."""
        gap, found = self._gap, set()
        async for trigger_id, project_id, updated_at in self._enabled():
            found.add(trigger_id)
            project = self._projects.get(project_id)
            kept = None if project is None else project.get(trigger_id)
            if kept is None or kept.trigger.updated_at != updated_at:
                self._mark(project_id, trigger_id)
        for project_id, project in self._projects.items():
            self._mark(project_id, PROJECT)
            for trigger_id in project:
                if trigger_id not in found:
                    self._mark(project_id, trigger_id)
        if self._gap == gap:
            self._gap = 0

    async def _enabled(self) -> AsyncIterator[tuple[str, str, datetime]]:
        after = ZERO
        while True:
            async with transaction(self._pool) as conn:
                cursor = await conn.execute(
                    "SELECT id, project_id, updated_at FROM triggers WHERE enabled AND id > %s ORDER BY id LIMIT %s",
                    [after, COMPARED_AT_ONCE],
                )
                rows = await cursor.fetchall()
            for trigger_id, project_id, updated_at in rows:
                yield trigger_id, project_id, updated_at
            if len(rows) < COMPARED_AT_ONCE:
                return
            after = rows[-1][0]

    async def _load_projects(self, project_ids: Collection[str]) -> None:
        if not project_ids:
            return
        async with transaction(self._pool) as conn:
            cursor = await conn.execute("SELECT id, tier FROM projects WHERE id = ANY(%s::uuid[])", [list(project_ids)])
            tiers = dict(await cursor.fetchall())
        for project_id in project_ids & self._projects.keys():
            if project_id in tiers:
                self._projects[project_id].tier = tiers[project_id]
                continue
            for trigger_id in tuple(self._projects[project_id]):
                self._drop(project_id, trigger_id)

    async def _load(self, wanted: dict[str, str]) -> None:
        """Triggers by id, with their projects."""
        if not wanted:
            return
        async with transaction(self._pool) as conn:
            cursor = await conn.cursor(row_factory=dict_row).execute(
                f"SELECT {COLUMNS}, f.slug, p.tier FROM triggers t JOIN projects p ON p.id = t.project_id"
                " LEFT JOIN functions f ON f.id = t.function_id WHERE t.id = ANY(%s::uuid[]) AND t.enabled",
                [list(wanted)],
            )
            rows = await cursor.fetchall()
        until_s = time.monotonic() + TURN_S
        for row in rows:
            if (armed := _armed(row)) is not None:
                del wanted[armed.trigger.id]
                self._put(armed, row["tier"])
            if time.monotonic() > until_s:
                await asyncio.sleep(0)
                until_s = time.monotonic() + TURN_S
        for trigger_id, project_id in wanted.items():
            self._drop(project_id, trigger_id)

    def _put(self, armed: Armed, tier: Tier | None) -> None:
        trigger = armed.trigger
        project = self._projects.setdefault(trigger.project_id, ProjectTriggers())
        project.tier = tier
        project.put(armed)
        if trigger.event_type == CRON:
            self._scheduled[trigger.id] = trigger
        else:
            self._scheduled.pop(trigger.id, None)

    def _drop(self, project_id: str, trigger_id: str) -> None:
        self._scheduled.pop(trigger_id, None)
        if (project := self._projects.get(project_id)) is not None:
            project.drop(trigger_id)
            if not project:
                del self._projects[project_id]


def _armed(row: Mapping[str, Any]) -> Armed | None:
    try:
        return Armed(trigger_of(row), row["slug"])
    except (InvalidArgument, ValueError, TypeError) as why:
        log.error(
            "triggers.unreadable",
            f"A trigger cannot be read and does not fire until it is written again: {why}",
            project_id=row["project_id"],
            trigger_id=row["id"],
        )
        return None
