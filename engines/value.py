"""Classes of values: frozen for the type checker, at a third of the cost of `dataclass(frozen=True)`.

A frozen dataclass sets each member through `object.__setattr__`: 0.14 µs a member. The values that every run and every
event makes have a hundred together.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TypeVar, dataclass_transform

T = TypeVar("T")


@dataclass_transform(frozen_default=True, field_specifiers=(field,))
def value(*, kw_only: bool = False) -> Callable[[type[T]], type[T]]:
    """As `dataclass(frozen=True, slots=True)`, but that only the type checker refuses to set a member."""
    return dataclass(slots=True, kw_only=kw_only, unsafe_hash=True)
