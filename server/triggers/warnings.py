"""What a trigger that may be stored is warned of: that it feeds itself, alone or over others, where that can be seen.

Conditions may well keep a trigger from answering what it causes, and often do, and of functions it is a guess: so it is
a warning and not an error, and what ends a circle is ATLAS_MAX_EVENT_DEPTH.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

from server.events.envelope import spelled
from server.postgres.control import Connection
from server.triggers.circles import Circles, Led, Target, Way, answers

FEEDS_ITSELF: Final = "TRIGGER_FEEDS_ITSELF"
CIRCLE: Final = "TRIGGER_CIRCLE"
"""Over at least one other trigger."""

MOST: Final = 10
"""Warnings that it feeds itself."""

STOPPED: Final = "EVENT_LOOP"
"""As the dead letters of what was stopped have it."""

SEARCHED: Final = 1_000
"""Dead letters of a project, the newest, among which one that was stopped is looked for."""

_STOPPED: Final = """
SELECT id, created_at FROM (
  SELECT id, trigger_id, error, created_at FROM deliveries WHERE project_id = %s AND state = 'dead'
  ORDER BY created_at DESC, id DESC LIMIT %s) AS dead
WHERE trigger_id = %s AND error->>'reason' = %s ORDER BY created_at DESC, id DESC LIMIT 1
"""


@dataclass(frozen=True, slots=True)
class Caution:
    """Stable `reason`; `message` for people."""

    reason: str
    message: str


async def warnings_of(
    conn: Connection, circles: Circles, project_id: str, event_type: str, config: Mapping[str, Any], target: Target
) -> tuple[Caution, ...]:
    """Of a trigger as it is stored."""
    heard = answers(event_type, config.get("table"), config.get("operations"))
    ways = await circles.of(conn, project_id, heard, target)
    return tuple(_feeding(way[0]) if len(way) == 1 else _circling(way) for way in ways[:MOST])


async def stopped(conn: Connection, project_id: str, trigger_id: str) -> tuple[Caution, ...]:
    """That a run of the trigger was not begun because it went in a circle, as long as a late dead letter says so."""
    cursor = await conn.execute(_STOPPED, [project_id, SEARCHED, trigger_id, STOPPED])
    if (row := await cursor.fetchone()) is None:
        return ()
    message = (
        f"It was stopped at {spelled(row[1])}, because triggers ran in a circle: the delivery {row[0]} tells which"
    )
    return (Caution(STOPPED, message),)


def _feeding(led: Led) -> Caution:
    feeds = "feeds" if led.sure else "may feed"
    told = f"{_leads(led)}, which this trigger answers: unless conditions keep it from that, it {feeds} itself"
    return Caution(FEEDS_ITSELF, f"{told[0].upper()}{told[1:]} until ATLAS_MAX_EVENT_DEPTH ends it")


def _circling(way: Way) -> Caution:
    steps = [
        f"{_leads(led)}, which {f'the trigger {led.heard_by}' if led.heard_by else 'this one'} answers" for led in way
    ]
    told = f"It may run in a circle: {'; '.join(steps)}. Unless conditions keep it from that, it goes on"
    return Caution(CIRCLE, f"{told} until ATLAS_MAX_EVENT_DEPTH ends it")


def _leads(led: Led) -> str:
    if led.sure:
        return f"{led.by} publishes {led.event_type}"
    return f"the source of {led.by} seems to lead to {led.event_type}"
