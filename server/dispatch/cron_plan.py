"""What a look at the schedules of some triggers is to bring about. Pure."""

from dataclasses import dataclass, field
from datetime import datetime

from server.dispatch import cron_events
from server.dispatch.cron_events import Skipped
from server.events.envelope import Event
from server.triggers import ticks
from server.triggers.conditions import evaluate
from server.triggers.definition import Trigger
from server.triggers.schedule import Overlap, Schedule
from server.triggers.ticks import CronTrigger, Look, Tick, Verdict
from server.triggers.view import envelope_of


@dataclass(slots=True)
class Plan:
    """Events to publish, and then ticks to mark because later ones wait for them, and rows for the ledger."""

    events: list[Event] = field(default_factory=list)
    marks: list[Tick] = field(default_factory=list)
    skipped: list[Skipped] = field(default_factory=list)
    overlapped: int = 0  # ticks
    missed: int = 0

    def add(self, trigger: Trigger, schedule: Schedule, told: CronTrigger, window: Look, now: datetime) -> None:
        """What the window brings for one trigger; `told` is what the decision needs of it."""
        found, lost = ticks.decide(told, window, now)
        for tick in found:
            if tick.verdict is Verdict.FIRE:
                self._fire(trigger, schedule, tick)
        overlapping = [tick.minute for tick in found if tick.verdict is Verdict.OVERLAP]
        if overlapping:
            self.skipped.append(cron_events.overlapped(trigger, schedule, overlapping))
            self.overlapped += len(overlapping)
        if lost:
            self.skipped.append(cron_events.missed(trigger, schedule, lost))
            self.missed += max(1, lost.count)

    def _fire(self, trigger: Trigger, schedule: Schedule, tick: Tick) -> None:
        """Nothing waits for a tick that does not meet the conditions: it never becomes a delivery."""
        event = cron_events.event_of(trigger, schedule, tick.minute)
        self.events.append(event)
        if schedule.overlap is not Overlap.ALLOW and evaluate(trigger.conditions, envelope_of(event)):
            self.marks.append(tick)
