"""Limits of a function: each in its range, and never above the tier's."""

import pytest

from engines.contract import Limits
from server.errors import InvalidArgument
from server.functions.settings import NONE, FunctionSettings, parse_settings

MIB = 2**20
TIER = Limits(wall_ms=5_000, cpu_ms=4_000, memory_bytes=16 * MIB, fetch_calls=5, fuel=100)


def test_without_settings_the_limits_are_the_tiers_own() -> None:
    assert NONE.bound(TIER) is TIER
    assert FunctionSettings(concurrency=3).bound(TIER) is TIER


def test_the_lower_one_counts_and_the_wall_clock_bounds_cpu_time() -> None:
    bounded = FunctionSettings(timeout_ms=100, memory_mb=8).bound(TIER)
    assert (bounded.wall_ms, bounded.cpu_ms, bounded.memory_bytes) == (100, 100, 8 * MIB)
    assert (bounded.fetch_calls, bounded.fuel) == (5, 100)
    assert FunctionSettings(timeout_ms=4_500).bound(TIER).cpu_ms == 4_000


def test_settings_from_before_the_tier_went_down_do_not_raise_it() -> None:
    assert FunctionSettings(timeout_ms=60_000, memory_mb=256).bound(TIER) == TIER


@pytest.mark.parametrize(
    "settings",
    [
        NONE,
        FunctionSettings(timeout_ms=10, memory_mb=8, concurrency=1),
        FunctionSettings(timeout_ms=5_000, memory_mb=16, concurrency=1_000),
    ],
)
def test_what_is_in_range_is_taken(settings: FunctionSettings) -> None:
    assert parse_settings(settings, TIER) is settings


@pytest.mark.parametrize(
    ("settings", "field", "message", "allowed"),
    [
        (FunctionSettings(timeout_ms=9), "timeout_ms", "is 9; it must be between 10 and 5000", "10"),
        (FunctionSettings(timeout_ms=0), "timeout_ms", "is 0; it must be between 10", "10"),
        (FunctionSettings(timeout_ms=5_001), "timeout_ms", "5000, which is the limit of the project's tier", "5000"),
        (FunctionSettings(memory_mb=7), "memory_mb", "is 7; it must be between 8 and 16", "8"),
        (FunctionSettings(memory_mb=17), "memory_mb", "16, which is the limit of the project's tier", "16"),
        (FunctionSettings(concurrency=0), "concurrency", "is 0; it must be between 1 and 1000", "1"),
        (FunctionSettings(concurrency=-1), "concurrency", "is -1", "1"),
        (FunctionSettings(concurrency=1_001), "concurrency", "is 1001; it must be between 1 and 1000", "1000"),
    ],
)
def test_what_is_not_names_the_setting_and_what_is_allowed(
    settings: FunctionSettings, field: str, message: str, allowed: str
) -> None:
    with pytest.raises(InvalidArgument) as caught:
        parse_settings(settings, TIER)
    error = caught.value
    assert (error.field, error.metadata["limit"], error.metadata["allowed"]) == (f"settings.{field}", field, allowed)
    assert message in error.message
