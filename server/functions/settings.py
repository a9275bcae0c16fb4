"""Limits of one version of a function, each at most the tier's."""

from dataclasses import dataclass, fields, replace
from typing import Final

from engines.contract import Limits
from server.errors import InvalidArgument
from server.tiers import MIB

MIN_TIMEOUT_MS: Final = 10
MIN_MEMORY_MB: Final = 8
MAX_CONCURRENCY: Final = 1_000


@dataclass(frozen=True, slots=True, kw_only=True)
class FunctionSettings:
    """None is the tier's."""

    timeout_ms: int | None = None  # wall clock of one invocation
    memory_mb: int | None = None  # of one invocation, MiB
    concurrency: int | None = None  # invocations at a time over all servers; None is any number

    def bound(self, limits: Limits) -> Limits:
        """The lower of these and `limits`, which are the tier's. CPU time is bounded by the wall clock."""
        if self.timeout_ms is None and self.memory_mb is None:
            return limits
        wall_ms = limits.wall_ms if self.timeout_ms is None else min(limits.wall_ms, self.timeout_ms)
        memory_bytes = limits.memory_bytes if self.memory_mb is None else min(limits.memory_bytes, self.memory_mb * MIB)
        return replace(limits, wall_ms=wall_ms, cpu_ms=min(limits.cpu_ms, wall_ms), memory_bytes=memory_bytes)


NONE: Final = FunctionSettings()


def parse_settings(settings: FunctionSettings, limits: Limits) -> FunctionSettings:
    """The same settings when each is in its range; `limits` are the tier's. InvalidArgument names setting and range."""
    ranges = {
        "timeout_ms": (MIN_TIMEOUT_MS, limits.wall_ms),
        "memory_mb": (MIN_MEMORY_MB, limits.memory_bytes // MIB),
        "concurrency": (1, MAX_CONCURRENCY),
    }
    for item in fields(settings):
        value, (low, high) = getattr(settings, item.name), ranges[item.name]
        if value is None or low <= value <= high:
            continue
        whose = "" if item.name == "concurrency" or value < low else ", which is the limit of the project's tier"
        raise InvalidArgument(
            f"settings.{item.name}",
            f"settings.{item.name} is {value}; it must be between {low} and {high}{whose}",
            limit=item.name,
            value=str(value),
            allowed=str(low if value < low else high),
        )
    return settings
