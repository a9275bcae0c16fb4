"""Events that lead to themselves: a run deeper than ATLAS_MAX_EVENT_DEPTH is not begun, and its dead letter says why.

    cause.depth of an event     runs that led to it
    the depth of its run        one more; 1 without a cause

It is asked when a delivery is to run, whoever queued it: replaying what was stopped stops again, unless the operator
allows more by then.
"""

from collections.abc import Sequence
from typing import Final

from engines.contract import Outcome
from server.dispatch import lineage
from server.dispatch.decisions import Ended
from server.dispatch.lineage import Chain
from server.events.envelope import Event
from server.log import logger
from server.postgres.control import Pool, transaction
from server.telemetry.metrics import Metrics

log = logger("dispatch")

REASON: Final = "EVENT_LOOP"
MOST_TOLD: Final = 10
"""Links of a chain in a message; of a longer one the beginning and the end."""


class Loops:
    def __init__(self, pool: Pool, max_depth: int, *, metrics: Metrics | None = None) -> None:
        self._pool = pool
        self._max_depth = max_depth
        self._metrics = metrics or Metrics()

    def is_too_deep(self, event: Event) -> bool:
        """Whether no run may follow from it."""
        return event.cause is not None and event.cause.depth >= self._max_depth

    async def stopped(self, event: Event, trigger_id: str) -> Ended:
        """How the delivery of such an event ends. Unavailable."""
        assert event.cause is not None
        async with transaction(self._pool) as conn:
            found = await lineage.chain(conn, event.project_id, event.cause)
        self._metrics.event_loops().add()
        log.warning(
            "dispatch.loop",
            f"{event.cause.depth} runs led to an event, and one more is not begun: triggers run in a circle",
            project_id=event.project_id,
            trigger_id=trigger_id,
            event_id=event.id,
            event_type=event.type,
            run_id=event.cause.run_id,
        )
        return Ended(Outcome.LOAD_FAILED, REASON, told(event, trigger_id, found, self._max_depth))


def told(event: Event, trigger_id: str, found: Chain, max_depth: int) -> str:
    """For whoever reads the dead letter."""
    assert event.cause is not None
    links = [str(link) for link in reversed(found.links)]
    begins = [] if found.whole else ["… (kept no more)"]
    chain = " → ".join([*begins, *_shortened(links), f"event {event.type} {event.id} → trigger {trigger_id}"])
    return (
        f"{event.cause.depth} runs led to this event, and at most {max_depth} may (ATLAS_MAX_EVENT_DEPTH): triggers "
        f"run in a circle. It was not run, and a replay ends the same way. {chain}"
    )


def _shortened(links: Sequence[str]) -> list[str]:
    if len(links) <= MOST_TOLD:
        return [*links]
    first = MOST_TOLD // 3
    return [*links[:first], f"… {len(links) - MOST_TOLD} more …", *links[first - MOST_TOLD :]]
