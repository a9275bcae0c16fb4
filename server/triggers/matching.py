"""Which triggers of a project an event fires, found without asking each of them.

    type of the event ──▶ a tree of tokens, `*` and `>` among them ──▶ a bucket for each pattern that matches
    bucket ──▶ what its index of equalities leads to, and the triggers that no equality can exclude
    candidates ──▶ their conditions, in full

What an event costs grows with the triggers that it may fire, not with those that there are. Triggers that only compare
otherwise (gt, contains, matches, not …) are each asked, for every event of their type.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Final

from server.triggers.conditions import Condition, evaluate
from server.triggers.equalities import Equalities, Posting
from server.triggers.paths import Envelope, Path
from server.triggers.patterns import CRON, ONE, REST

TICK_OF: Final[Path] = ("trigger_id",)
"""Where the event of a schedule names its trigger."""


@dataclass(frozen=True, slots=True, eq=False)
class Trigger:
    """`pattern` is what `parse_pattern` passed."""

    id: str
    pattern: str
    condition: Condition
    postings: tuple[Posting, ...] | None  # None: asked for every event of the type


class Matcher:
    """The triggers of one project that are in force. For one thread; nothing in it does I/O."""

    def __init__(self) -> None:
        self._triggers: dict[str, Trigger] = {}
        self._tokens = Token()

    def __len__(self) -> int:
        return len(self._triggers)

    def add(self, trigger_id: str, pattern: str, condition: Condition) -> None:
        """In the place of the trigger that had this id, if one did. One of `cron` fires on its own ticks alone."""
        self.remove(trigger_id)
        token = self._tokens
        for text in pattern.split("."):
            token = token.below.setdefault(text, Token())
        if token.bucket is None:
            token.bucket = Bucket()
        self._triggers[trigger_id] = token.bucket.add(trigger_id, pattern, condition)

    def remove(self, trigger_id: str) -> bool:
        """Whether there was one."""
        trigger = self._triggers.pop(trigger_id, None)
        if trigger is not None:
            _remove(self._tokens, trigger.pattern.split("."), trigger)
        return trigger is not None

    def match(self, event: Envelope) -> list[str]:
        """The ids of the triggers that it fires, each once, in no particular order. Never raises."""
        event_type = event.get("type")
        if not isinstance(event_type, str):
            return []
        fired: list[str] = []
        for bucket in _buckets(self._tokens, event_type.split("."), 0):
            fired += [trigger.id for trigger in bucket.candidates(event) if evaluate(trigger.condition, event)]
        return fired


class Bucket:
    """The triggers of one pattern."""

    def __init__(self) -> None:
        self._listed: Equalities[Trigger] = Equalities()
        self._asked: dict[str, Trigger] = {}
        self._size = 0

    def __len__(self) -> int:
        return self._size

    def add(self, trigger_id: str, pattern: str, condition: Condition) -> Trigger:
        postings = ((TICK_OF, trigger_id),) if pattern == CRON else self._listed.postings(condition)
        trigger = Trigger(trigger_id, pattern, condition, postings)
        if postings is None:
            self._asked[trigger_id] = trigger
        else:
            self._listed.add(trigger, postings)
        self._size += 1
        return trigger

    def remove(self, trigger: Trigger) -> None:
        if trigger.postings is None:
            del self._asked[trigger.id]
        else:
            self._listed.remove(trigger, trigger.postings)
        self._size -= 1

    def candidates(self, event: Envelope) -> Iterator[Trigger]:
        yield from self._asked.values()
        yield from dict.fromkeys(self._listed.candidates(event))


@dataclass(slots=True)
class Token:
    """Where patterns that begin alike have come to; `bucket` is of the one that ends here."""

    below: "dict[str, Token]" = field(default_factory=dict)
    bucket: Bucket | None = None


def _buckets(token: Token, tokens: list[str], depth: int) -> Iterator[Bucket]:
    """Those of all patterns that match the tokens from `depth` on. No deeper than the longest pattern."""
    if depth == len(tokens):
        if token.bucket is not None:
            yield token.bucket
        return
    if REST in token.below and (rest := token.below[REST].bucket) is not None:
        yield rest
    for text in {tokens[depth], ONE} & token.below.keys():
        if text != REST:
            yield from _buckets(token.below[text], tokens, depth + 1)


def _remove(token: Token, tokens: list[str], trigger: Trigger) -> None:
    if tokens:
        below = token.below[tokens[0]]
        _remove(below, tokens[1:], trigger)
        if not below.below and below.bucket is None:
            del token.below[tokens[0]]
        return
    assert token.bucket is not None
    token.bucket.remove(trigger)
    if not token.bucket:
        token.bucket = None
