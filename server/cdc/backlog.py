"""Whose the write-ahead log is that waits to be published, and who has too much of it. Pure.

The log that a slot may hold is a buffer that all projects share, and the rule is the one of switches (Choudhury and
Hahne's dynamic thresholds): nobody may have more of it than half of what is free. One project alone can fill a third,
n of them an (n+2)th each, which leaves two of these to all others. Whoever has more, and goes on writing, is held until
half of what waits is published. It is not held for what it has done, only for going on.
"""

from collections import deque
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from typing import Final

FREE_PART: Final = 2
"""Of what is free, that one project may have."""

LEAST_PART: Final = 64
"""Who has less than this part of what may be held at all is never held: then so many wait that nobody outruns."""

GOING_ON_PART: Final = 16
"""Of what is free: so much more, written beyond the threshold, is going on."""

UNKNOWN_PART: Final = 16
"""A byte that is known of a session stands for so many at most that nobody knows: one statement of somebody's that was
seen must not answer for another's thousands that were not."""

MAX_STRETCHES: Final = 256


@dataclass(slots=True)
class Stretch:
    """What was found in the log from LSN `since` to `until`, in bytes, scaled to its length."""

    since: int
    until: int
    by_role: Mapping[str, float] = field(default_factory=dict)
    """Written into relations of the role."""
    by_session: Mapping[str, float] = field(default_factory=dict)
    """Written into others by a transaction that a session of the role had open."""
    unknown: float = 0.0
    """Written into others by a transaction that nobody saw open."""


class Backlog:
    def __init__(self) -> None:
        self._stretches: deque[Stretch] = deque()
        self._beyond: dict[str, int] = {}
        """Roles that have more than they may, and up to where the log was known when that was noticed."""

    @property
    def until(self) -> int:
        """Up to where the log is known; 0 when nothing is."""
        return self._stretches[-1].until if self._stretches else 0

    def add(self, stretch: Stretch) -> None:
        self._stretches.append(stretch)
        if len(self._stretches) > MAX_STRETCHES:
            self._stretches.appendleft(_joined(self._stretches.popleft(), self._stretches.popleft()))

    def clear(self) -> None:
        self._stretches.clear()
        self._beyond.clear()

    def confirm(self, lsn: int) -> None:
        """What was written before `lsn` is published."""
        while self._stretches and self._stretches[0].until <= lsn:
            self._stretches.popleft()
        if self._stretches and self._stretches[0].since < lsn:
            self._stretches[0] = _tail(self._stretches[0], lsn)

    def bytes_by_role(self, since: int = 0) -> dict[str, float]:
        """Written after `since` and not yet published. What nobody knows is divided as what is known of sessions."""
        parts = [_tail(stretch, since) for stretch in self._stretches if stretch.until > since]
        found = _sum(*(part.by_role for part in parts), *(part.by_session for part in parts))
        unknown = sum(part.unknown for part in parts)
        sessions = _sum(*(stretch.by_session for stretch in self._stretches))
        known = max(sum(sessions.values()), unknown / UNKNOWN_PART)
        return _sum(found, {role: unknown * size / known for role, size in sessions.items()})

    def outrunning(self, held: Collection[str], *, free: int, allowed: int) -> list[str]:
        """Roles to be held now beside those that are, of `allowed` bytes that the slot may hold and `free` that are
        left."""
        most = max(free / FREE_PART, allowed / LEAST_PART)
        beyond = {role for role, size in self.bytes_by_role().items() if size > most and role not in held}
        self._beyond = {role: self._beyond.get(role, self.until) for role in beyond}
        going_on = max(free, 0) / GOING_ON_PART
        return sorted(role for role, at in self._beyond.items() if self.bytes_by_role(at).get(role, 0.0) > going_on)


def _tail(stretch: Stretch, since: int) -> Stretch:
    """What comes after `since`, taken as spread evenly."""
    if since <= stretch.since:
        return stretch
    part = (stretch.until - since) / (stretch.until - stretch.since)
    return Stretch(
        since,
        stretch.until,
        {role: size * part for role, size in stretch.by_role.items()},
        {role: size * part for role, size in stretch.by_session.items()},
        stretch.unknown * part,
    )


def _joined(first: Stretch, second: Stretch) -> Stretch:
    return Stretch(
        first.since,
        second.until,
        _sum(first.by_role, second.by_role),
        _sum(first.by_session, second.by_session),
        first.unknown + second.unknown,
    )


def _sum(*each: Mapping[str, float]) -> dict[str, float]:
    found: dict[str, float] = {}
    for sizes in each:
        for role, size in sizes.items():
            found[role] = found.get(role, 0.0) + size
    return found
