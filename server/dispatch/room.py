"""How many deliveries of which trigger may run in this process: its slots, and who may have one. Pure.

Of all slots one trigger has at most a share, twice as many while its runs are quick: then half of them wait for the
ledger, before they run, while the other half runs. The last ones are for triggers of which nothing runs. So slow runs
of one, or of a few, are never all that runs.
"""

from collections import Counter, OrderedDict
from collections.abc import Mapping
from typing import Final

SHARE: Final = 4
"""One trigger has at most one in so many slots, a quick one two."""

RESERVED: Final = 8
"""One slot in so many is for triggers of which nothing runs."""

QUICK_S: Final = 0.1
"""Mean time in a slot, of a trigger whose pairs had better wait for one: half of 128 slots serve 640 a second."""

PATIENCE_S: Final = 2.0
"""Of quick triggers."""

FIRST_PATIENCE_S: Final = 0.5
"""Of triggers of which nothing has ended here yet."""

LEAST_PATIENCE_S: Final = 0.05
WEIGHT: Final = 0.1
"""Of the latest run in that mean."""

REMEMBERED: Final = 100_000
"""Triggers whose mean is known: those that ran last."""


class Room:
    def __init__(self, total: int) -> None:
        self._total = total
        self._reserved = total // RESERVED
        self._running: Counter[str] = Counter()
        self._taken = 0
        self._slot_s: OrderedDict[str, float] = OrderedDict()  # of triggers that have run here, latest last

    def __repr__(self) -> str:
        return f"<Room {self._taken} of {self._total} taken, by {len(self._running)} triggers>"

    @property
    def taken(self) -> int:
        return self._taken

    @property
    def free(self) -> int:
        return self._total - self._taken

    def left(self, trigger_id: str) -> int:
        """How many more of it may run now."""
        running = self._running.get(trigger_id, 0)
        unreserved = self.free - self._reserved
        if running == 0 and unreserved < 1:
            return min(1, self.free)
        return max(0, min(self._most(trigger_id) - running, unreserved))

    def _most(self, trigger_id: str) -> int:
        return max(1, self._total * (2 if self.is_quick(trigger_id) else 1) // SHARE)

    def take(self, trigger_id: str, *, however: bool = False) -> bool:
        """A slot for it, to be given back; False when it may have none now, unless it must have one."""
        if not however and self.left(trigger_id) < 1:
            return False
        self._running[trigger_id] += 1
        self._taken += 1
        return True

    def patience_s(self, trigger_id: str) -> float:
        """How long a pair had better wait for a slot rather than be queued."""
        mean_s = self._slot_s.get(trigger_id)
        if mean_s is None:
            return FIRST_PATIENCE_S
        return PATIENCE_S if mean_s < QUICK_S else LEAST_PATIENCE_S

    def is_quick(self, trigger_id: str) -> bool:
        return self._slot_s.get(trigger_id, QUICK_S) < QUICK_S

    def used(self, trigger_id: str, seconds: float) -> None:
        """A slot was held by a run of it for so long."""
        mean_s = self._slot_s.get(trigger_id, 0.0)  # the first one had to be made ready
        self._slot_s[trigger_id] = mean_s + WEIGHT * (seconds - mean_s)
        self._slot_s.move_to_end(trigger_id)
        if len(self._slot_s) > REMEMBERED:
            self._slot_s.popitem(last=False)

    def give_back(self, trigger_id: str) -> None:
        self._taken -= 1
        self._running[trigger_id] -= 1
        if not self._running[trigger_id]:
            del self._running[trigger_id]

    def shares(self, waiting: Mapping[str, int]) -> dict[str, int]:
        """How many of the slots that are free now each waiting trigger gets, of which so many could start: one by one
        to the one of which the fewest run."""
        given: Counter[str] = Counter()
        left = dict(waiting)
        while left:
            poorest = min(left, key=lambda each: self._running[each] + given[each])
            if left[poorest] <= 0 or not self._would_get(poorest, given[poorest], given.total()):
                del left[poorest]
                continue
            given[poorest] += 1
            left[poorest] -= 1
        return dict(+given)

    def _would_get(self, trigger_id: str, given: int, given_in_all: int) -> bool:
        running, free = self._running.get(trigger_id, 0) + given, self.free - given_in_all
        return free > (self._reserved if running else 0) and running < self._most(trigger_id)
