"""An index over what conditions want to be equal: from an event straight to whom it may concern.

    event ─ data ─┬─ customer_id ── "c-17" ──▶ [trigger]
                  │                 "c-18" ──▶ [trigger]
                  └─ status ─────── "paid" ──▶ [trigger, trigger, …]

A condition is listed under postings, (path, value) pairs, of which one must be in every event that it holds of: that of
an `eq`, those of an `in`, those of the rarest member of an `all`, those of all members of an `any`. Of two ways the one
is taken that fewer others share, so that what all of them want costs nothing. An event is asked for the members that
somebody named, and never for more than it has: its cost does not grow with the number of conditions or of paths.
"""

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Generic, TypeVar

from server.triggers.comparison import Listed
from server.triggers.conditions import AllOf, AnyOf, Condition, Predicate
from server.triggers.paths import MISSING, Envelope, Path, element
from server.triggers.values import Key, key, keys

T = TypeVar("T")

Posting = tuple[Path, Key]


@dataclass(slots=True)
class Member(Generic[T]):
    """A place in events that somebody named: the members below it, and whom each of its values leads to."""

    below: "dict[str, Member[T]]" = field(default_factory=dict)
    wanted: dict[Key, list[T]] = field(default_factory=dict)


class Equalities(Generic[T]):
    def __init__(self) -> None:
        self._event: Member[T] = Member()

    def postings(self, condition: Condition) -> tuple[Posting, ...] | None:
        """Where to list it, as things are now; None when it can hold whatever the event has in any one place."""
        if isinstance(condition, Predicate):
            return _required(condition)
        if isinstance(condition, AllOf):
            ways = [way for each in condition.conditions if (way := self.postings(each)) is not None]
            return min(ways, key=self._shared_by, default=None)
        if isinstance(condition, AnyOf):
            alternatives = [self.postings(each) for each in condition.conditions]
            if None not in alternatives:
                return tuple({posting for way in alternatives for posting in way or ()})
        return None

    def add(self, listed: T, postings: Iterable[Posting]) -> None:
        for path, wanted in postings:
            member = self._event
            for name in path:
                member = member.below.setdefault(name, Member())
            member.wanted.setdefault(wanted, []).append(listed)

    def remove(self, listed: T, postings: Iterable[Posting]) -> None:
        """With the postings that it was added with."""
        for path, wanted in postings:
            _remove(self._event, path, wanted, listed)

    def candidates(self, event: Envelope) -> list[T]:
        """All whose condition may hold; those with several postings maybe more than once."""
        found: list[T] = []
        if self._event.below:
            _collect(self._event, event, found)
        return found

    def _shared_by(self, postings: tuple[Posting, ...]) -> tuple[int, int]:
        """How many others an event with one of these would lead to; of equals fewer postings are better."""
        return sum(self._count(path, wanted) for path, wanted in postings), len(postings)

    def _count(self, path: Path, wanted: Key) -> int:
        member = self._event
        for name in path:
            if name not in member.below:
                return 0
            member = member.below[name]
        return len(member.wanted.get(wanted, ()))


def _required(predicate: Predicate) -> tuple[Posting, ...] | None:
    if predicate.op == "eq" and (wanted := key(predicate.prepared)) is not None:
        return ((predicate.path, wanted),)
    if predicate.op == "in" and isinstance(predicate.prepared, Listed) and not predicate.prepared.others:
        return tuple((predicate.path, wanted) for wanted in predicate.prepared.keys)
    return None


def _collect(member: Member[T], value: object, found: list[T]) -> None:
    if member.wanted:
        for each in keys(value):
            found += member.wanted.get(each, ())
    if not member.below:
        return
    if isinstance(value, dict):
        for name in member.below if len(member.below) <= len(value) else value:
            if name in member.below and name in value:
                _collect(member.below[name], value[name], found)
    elif isinstance(value, list):
        for name in member.below if len(member.below) <= len(value) else map(str, range(len(value))):
            if name in member.below and (inside := element(value, name)) is not MISSING:
                _collect(member.below[name], inside, found)


def _remove(member: Member[T], path: Path, wanted: Key, listed: T) -> None:
    if path:
        below = member.below[path[0]]
        _remove(below, path[1:], wanted, listed)
        if not below.below and not below.wanted:
            del member.below[path[0]]
        return
    member.wanted[wanted].remove(listed)
    if not member.wanted[wanted]:
        del member.wanted[wanted]
