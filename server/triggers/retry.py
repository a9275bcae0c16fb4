"""The retry policy of a trigger as it is written, over REST and in its row: only what its author wants otherwise."""

from collections.abc import Mapping
from typing import Any, Final

from engines.contract import Outcome
from server.errors import InvalidArgument
from server.fields import shown
from server.triggers.definition import NEVER_RETRIED, RetryPolicy
from server.triggers.values import kind

RANGES: Final = {
    "attempts": (1, 20),
    "backoff_ms": (10, 3_600_000),
    "max_backoff_ms": (10, 86_400_000),
    "max_age_s": (1, 604_800),
}
MEMBERS: Final = (*RANGES, "on")
CHOICES: Final = tuple(outcome.value for outcome in Outcome if outcome not in NEVER_RETRIED)

DEFAULT: Final = RetryPolicy()


def parse_retry(value: object, field: str = "retry") -> RetryPolicy:
    """The policy of an object in JSON, or of null: what it lacks is as in DEFAULT. InvalidArgument under `field`."""
    if value is None:
        return DEFAULT
    if not isinstance(value, dict):
        raise InvalidArgument(field, f"{field} is {kind(value)}; it must be an object of {', '.join(MEMBERS)}")
    for name in value:
        if name not in MEMBERS:
            raise InvalidArgument(
                f"{field}.{name[:40]}", f"{field} has the member {shown(name)}; it may have {', '.join(MEMBERS)}"
            )
    numbers = {name: parse_whole(f"{field}.{name}", value[name], *RANGES[name]) for name in RANGES if name in value}
    policy = RetryPolicy(**numbers, on=_outcomes(value["on"], f"{field}.on") if "on" in value else DEFAULT.on)
    if policy.max_backoff_ms < policy.backoff_ms:
        if "max_backoff_ms" not in value:
            return RetryPolicy(**numbers | {"max_backoff_ms": policy.backoff_ms}, on=policy.on)
        raise InvalidArgument(
            f"{field}.max_backoff_ms",
            f"{field}.max_backoff_ms is {policy.max_backoff_ms}; it must be at least backoff_ms, {policy.backoff_ms}",
            value=str(policy.max_backoff_ms),
            allowed=str(policy.backoff_ms),
        )
    return policy


def as_written(policy: RetryPolicy) -> dict[str, Any]:
    """All members, in JSON; outcomes in the order of CHOICES."""
    return {name: getattr(policy, name) for name in RANGES} | {"on": [each for each in CHOICES if each in policy.on]}


def differing(policy: RetryPolicy) -> Mapping[str, Any]:
    """What is not as in DEFAULT."""
    default = as_written(DEFAULT)
    return {name: value for name, value in as_written(policy).items() if value != default[name]}


def parse_whole(field: str, value: object, low: int, high: int) -> int:
    """A whole number of JSON, which may be written as 5.0."""
    if isinstance(value, int | float) and not isinstance(value, bool) and low <= value <= high and value == int(value):
        return int(value)
    raise InvalidArgument(
        field,
        f"{field} is {_told(value)}; it must be a whole number from {low} to {high}",
        value=_told(value),
        allowed=str(high),
    )


def _told(value: object) -> str:
    if isinstance(value, str):
        return shown(value)
    if isinstance(value, int | float) and not isinstance(value, bool):
        return str(value) if abs(value) < 1e20 else "a number of more than 20 digits"
    return kind(value)


def _outcomes(value: object, field: str) -> frozenset[Outcome]:
    if not isinstance(value, list):
        raise InvalidArgument(field, f"{field} is {kind(value)}; it must be an array of {', '.join(CHOICES)}")
    for index, each in enumerate(value):
        if not isinstance(each, str) or each not in CHOICES:
            told = shown(each) if isinstance(each, str) else kind(each)
            never = " (it would end the same way again, or was meant)" if each in tuple(NEVER_RETRIED) else ""
            raise InvalidArgument(
                f"{field}[{index}]",
                f"{field}[{index}] is {told}{never}; it must be one of {', '.join(CHOICES)}",
                allowed=", ".join(CHOICES),
            )
    return frozenset(map(Outcome, value))
