"""What becomes of the pairs in hand. Pure, but for the slots that it takes.

its trigger is paused                                 held
it has an order key, or its trigger a limit           queued: the Starter sees to both
slow ones of its trigger are queued already           queued, behind them
there is a slot                                       running
there is none, and its patience is over               queued
there is none                                         stays in hand
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Final

from server.dispatch.consumer import Message
from server.dispatch.ledger import Pair, State
from server.dispatch.room import Room
from server.events.envelope import Event
from server.tiers import Tier
from server.triggers.cache import Armed
from server.uuids import random_uuid

PAIRS: Final = 1_000
"""Written in one transaction at most."""


@dataclass(slots=True, eq=False)
class Fired:
    """A pair in hand since `since_s`."""

    message: Message
    event: Event
    armed: Armed
    tier: Tier | None
    id: str
    order_key: str | None
    since_s: float


def choose(
    fired: Iterable[Fired], room: Room, waits: Callable[[str], bool], now_s: float
) -> tuple[list[tuple[Fired, Pair]], set[str]]:
    """What is to be written now, with slots taken for what runs, and the triggers of which there was no room for all.

    `waits` says whether deliveries of a trigger are queued that could run now.
    """

    def behind(trigger_id: str) -> bool:
        return waits(trigger_id) and not room.is_quick(trigger_id)

    full, spilled = set[str](), set[str]()
    chosen: list[tuple[Fired, Pair]] = []
    for each in fired:
        trigger = each.armed.trigger
        state: State
        if trigger.paused:
            state = "held"
        elif each.order_key is not None or trigger.concurrency is not None or behind(trigger.id):
            state = "queued"
        elif trigger.id not in full and room.take(trigger.id):
            state = "running"
        elif now_s - each.since_s > room.patience_s(trigger.id):
            state = "queued"
            spilled.add(trigger.id)
        else:
            full.add(trigger.id)
            continue
        chosen.append((each, _pair(each, state)))
        if len(chosen) == PAIRS:
            break
    return chosen, spilled


def _pair(each: Fired, state: State) -> Pair:
    event, trigger_id, sequence = each.event, each.armed.trigger.id, each.message.sequence
    run_id = random_uuid()
    bridge = each.armed.trigger.bridge
    seen = event.type if bridge is None else bridge.event_type
    return Pair(each.id, event.project_id, trigger_id, event.id, seen, sequence, each.order_key, run_id, state)
