"""Limits are the specification's table, exactly, and the environment's where a project has no tier."""

import pytest

from server.errors import InvalidArgument
from server.settings import Settings
from server.tiers import Tier, limits_of, parse_tier

SPECIFICATION: list[tuple[Tier, int, int, int, int]] = [
    ("free", 100_000_000, 16, 5, 5),
    ("pro", 1_000_000_000, 64, 15, 25),
    ("enterprise", 10_000_000_000, 256, 60, 100),
]


@pytest.mark.parametrize(("tier", "fuel", "memory_mib", "wall_s", "fetch_calls"), SPECIFICATION)
def test_the_tier_table(tier: Tier, fuel: int, memory_mib: int, wall_s: int, fetch_calls: int) -> None:
    limits = limits_of(tier, Settings())
    assert limits.fuel == fuel
    assert limits.memory_bytes == memory_mib * 1024 * 1024
    assert limits.wall_ms == limits.cpu_ms == wall_s * 1000
    assert limits.fetch_calls == fetch_calls


def test_without_a_tier_the_environment_decides() -> None:
    limits = limits_of(None, Settings(functions_max_execution_ms=1234, functions_max_memory_mb=33))
    assert (limits.wall_ms, limits.cpu_ms, limits.memory_bytes) == (1234, 1234, 33 * 1024 * 1024)


def test_a_cpu_cap_holds_for_every_tier_and_never_raises() -> None:
    capped = Settings(functions_max_cpu_ms=6_000)
    assert [limits_of(tier, capped).cpu_ms for tier, *_ in SPECIFICATION] == [5_000, 6_000, 6_000]


@pytest.mark.parametrize("name", ["", "Free", "gold", "x" * 1000])
def test_an_unknown_tier_is_named(name: str) -> None:
    with pytest.raises(InvalidArgument, match="free, pro, enterprise") as caught:
        parse_tier(name)
    assert caught.value.field == "tier"
    assert len(caught.value.message) < 200
