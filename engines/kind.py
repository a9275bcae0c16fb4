"""How the children of one engine differ from another's, as far as their supervisor has to know."""

import signal
from dataclasses import dataclass
from typing import Final

from engines.contract import Limits, Outcome
from engines.messages import Failed, Returned

MIB = 1024 * 1024
_METERED: Final = frozenset({Outcome.FUEL_LIMIT, Outcome.STACK_LIMIT, Outcome.WALL_LIMIT})


@dataclass(frozen=True, slots=True, kw_only=True)
class Kind:
    """The defaults are those of an interpreter that keeps its own limits, like QuickJS."""

    base_bytes: int = 24 * MIB
    """Resident memory of a bound child that has done nothing, generously."""

    is_sized: bool = False
    """Its memory limit is fixed when it is forked, and comes on top of what it has from the start."""

    is_apart: bool = False
    """Its memory limit is of the program alone, which comes on top of what it has from the start."""

    renews_itself: bool = True
    """It makes a new realm for each run of `fresh` isolation, and after one that was stopped in the middle; otherwise
    such a run is a child's last."""

    is_metered: bool = False
    """It counts fuel, and says itself when a run has no more fuel, stack or time; no other kind may say so."""

    keeps_cpu_limit: bool = True
    """It ends runs at `Limits.cpu_ms` itself; otherwise its supervisor looks at its clock."""

    takes_ahead: bool = False
    """It runs one request at a time and keeps those that come meanwhile, so that requests can be sent ahead to it."""

    dies_of_memory: frozenset[signal.Signals] = frozenset()
    """The signals by which it ends itself when it gets no more memory, and hardly ever for another reason."""

    def may_say(self, event: Returned | Failed, limits: Limits) -> bool:
        """Whether a child of this kind can know how it ended, and what fuel it used."""
        if isinstance(event, Failed) and event.outcome in _METERED and not self.is_metered:
            return False
        fuel = event.meta.fuel
        return fuel is None or (self.is_metered and fuel <= limits.fuel)
