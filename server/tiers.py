"""Limits by tier: the specification's table, and the environment's defaults for a project without a tier."""

from typing import Final, Literal, cast, get_args

from engines.contract import Limits
from server.errors import InvalidArgument
from server.settings import Settings

Tier = Literal["free", "pro", "enterprise"]

MIB: Final = 1024 * 1024

TABLE: Final[dict[Tier, Limits]] = {
    "free": Limits(fuel=100_000_000, memory_bytes=16 * MIB, wall_ms=5_000, cpu_ms=5_000, fetch_calls=5),
    "pro": Limits(fuel=1_000_000_000, memory_bytes=64 * MIB, wall_ms=15_000, cpu_ms=15_000, fetch_calls=25),
    "enterprise": Limits(fuel=10_000_000_000, memory_bytes=256 * MIB, wall_ms=60_000, cpu_ms=60_000, fetch_calls=100),
}


def parse_tier(value: str) -> Tier:
    """The tier of that name, or InvalidArgument."""
    if value not in get_args(Tier):
        raise InvalidArgument("tier", f'tier is "{value[:40]}"; it must be one of free, pro, enterprise')
    return cast(Tier, value)


def limits_of(tier: Tier | None, settings: Settings) -> Limits:
    """What one invocation of a project of that tier may use.

    CPU time is allowed to the wall clock's length unless `ATLAS_FUNCTIONS_MAX_CPU_MS` sets a lower cap for all.
    """
    if tier is not None:
        row = TABLE[tier]
    else:
        row = Limits(
            fuel=settings.functions_max_fuel,
            memory_bytes=settings.functions_max_memory_mb * MIB,
            wall_ms=settings.functions_max_execution_ms,
            cpu_ms=settings.functions_max_execution_ms,
            fetch_calls=settings.functions_max_fetch_calls,
        )
    cap_ms = settings.functions_max_cpu_ms or row.wall_ms
    return Limits(
        fuel=row.fuel,
        memory_bytes=row.memory_bytes,
        wall_ms=row.wall_ms,
        cpu_ms=min(row.cpu_ms, cap_ms),
        fetch_calls=row.fetch_calls,
    )
