"""How the children of one engine differ from another's, as far as their supervisor has to know."""

import signal
from dataclasses import dataclass

MIB = 1024 * 1024


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
    """It makes a new realm for each run of `fresh` isolation; otherwise a child serves one such run and ends."""

    keeps_cpu_limit: bool = True
    """It ends runs at `Limits.cpu_ms` itself; otherwise its supervisor looks at its clock."""

    dies_of_memory: frozenset[signal.Signals] = frozenset()
    """The signals by which it ends itself when it gets no more memory, and hardly ever for another reason."""
