"""What a measurement is, and how many of them look as a table."""

from collections.abc import Iterable
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Row:
    """`goal` is a bound, "< 5" or "≥ 15000", or empty. `value` None: not measurable here.

    `baseline` is the same figure, of the same run, of what it is compared with.
    """

    name: str
    value: float | None
    unit: str
    goal: str = ""
    baseline: float | None = None

    @property
    def met(self) -> bool | None:
        """Whether the goal is met; None without goal or value."""
        if self.value is None or not self.goal:
            return None
        relation, bound = self.goal.split()
        return self.value < float(bound) if relation == "<" else self.value >= float(bound)


def table(title: str, rows: Iterable[Row]) -> str:
    """Aligned columns: name, value, unit, goal, and whether it is met."""
    lines = [title]
    for row in rows:
        beside = f"beside {_figure(row.baseline)}" if row.baseline is not None else ""
        verdict = {None: "", True: "met", False: "MISSED"}[row.met]
        goal = f"goal {row.goal}" if row.goal else ""
        lines.append(
            f"  {row.name:<44} {_figure(row.value):>10} {row.unit:<4} {beside:<15} {goal:<12} {verdict}".rstrip()
        )
    return "\n".join(lines)


def _figure(value: float | None) -> str:
    return "-" if value is None else f"{value:,.0f}" if value >= 1000 else f"{value:.3g}"


def percentile(values: Iterable[float], percent: float) -> float:
    """The smallest value that at least `percent` of them do not exceed."""
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(len(ordered) * percent / 100))]
