"""What a look at the schedules is to bring about. Pure."""

from dataclasses import dataclass, field
from datetime import datetime

from server.dispatch import cron_events
from server.dispatch.cron_events import Mark, Skipped
from server.dispatch.identity import delivery_id
from server.events.envelope import Event
from server.triggers import ticks
from server.triggers.conditions import ALWAYS, evaluate
from server.triggers.definition import Trigger
from server.triggers.schedule import Overlap, Schedule
from server.triggers.ticks import CronTrigger, Look, Tick, Verdict
from server.triggers.view import envelope_of


@dataclass(slots=True)
class Plan:
    """Events to publish, and then marks of those that later ones wait for, and rows for the ledger."""

    events: list[Event] = field(default_factory=list)
    marks: list[Mark] = field(default_factory=list)
    skipped: list[Skipped] = field(default_factory=list)
    fired: int = 0  # ticks
    overlapped: int = 0
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

    def take_events(self) -> list[Event]:
        """Those since it was called last."""
        taken, self.events = self.events, []
        return taken

    def _fire(self, trigger: Trigger, schedule: Schedule, tick: Tick) -> None:
        """Nothing waits for a tick that does not meet the conditions: it never becomes a delivery."""
        event = cron_events.event_of(trigger, schedule, tick.minute)
        self.events.append(event)
        self.fired += 1
        if schedule.overlap is Overlap.ALLOW:
            return
        if trigger.conditions == ALWAYS or evaluate(trigger.conditions, envelope_of(event)):
            self.marks.append(Mark(trigger.id, tick.minute, delivery_id(trigger.id, event.id)))
