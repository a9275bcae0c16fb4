"""Which events a trigger answers, and as what its function or workflow sees them."""

from typing import Final

from server.triggers.conditions import ALWAYS, AllOf, Condition, evaluate
from server.triggers.definition import Trigger
from server.triggers.paths import Envelope
from server.triggers.patterns import CRON, matches

TICK_OF: Final = "trigger_id"


def pattern_of(trigger: Trigger) -> str:
    """The events that reach it."""
    return trigger.event_type if trigger.bridge is None else trigger.bridge.pattern


def required_of(trigger: Trigger) -> Condition:
    """What must hold of an event as it came. Of one that is seen as another, nothing: `seen_by` decides."""
    if trigger.bridge is not None:
        return ALWAYS
    if not trigger.restrictions:
        return trigger.conditions
    return AllOf((*trigger.conditions.conditions, *trigger.restrictions.values()))


def seen_by(trigger: Trigger, event: Envelope) -> Envelope | None:
    """The event as the trigger sees it; None when it sees none in it."""
    return event if trigger.bridge is None else trigger.bridge.seen(event)


def fires(trigger: Trigger, event: Envelope) -> bool:
    """Whether the event is of its project's, reaches it, and is what it asks for; enabled or not. Never raises."""
    if not matches(pattern_of(trigger), event["type"]) or event.get("project_id") != trigger.project_id:
        return False
    if trigger.event_type == CRON and event.get(TICK_OF) != trigger.id:
        return False
    seen = seen_by(trigger, event)
    return seen is not None and evaluate(required_of(trigger), event) and evaluate(trigger.conditions, seen)
