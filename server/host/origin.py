"""Where a run comes from: the cause that its changes and events carry, and what it is one delivery of."""

import orjson

from engines.value import value
from server.events.envelope import MAX_CAUSE_DEPTH, Cause


@value(kw_only=True)
class Origin:
    """`event_id` and `trigger_id` are those of the event that started the run, None for any other run."""

    run_id: str
    event_id: str | None = None
    trigger_id: str | None = None
    depth: int = 1
    """Of the run: 1 more than its event's cause has, 1 without either."""
    step: str | None = None
    """RUN_ID/NODE_ID of the step of a workflow run that the run is an attempt at, None for any other run."""

    @property
    def cause(self) -> Cause:
        """What events of the run carry."""
        return Cause(run_id=self.run_id, trigger_id=self.trigger_id, depth=self.depth)

    def mark(self, name: str) -> str:
        """The key of what is to be done once: for all attempts at the step of a workflow run, for all deliveries of
        the event to the trigger, or for all attempts at the run."""
        return f"{self._of}/{name}"

    @property
    def whole_mark(self) -> str:
        """Likewise, of all that the run does; a key that no name makes."""
        return f"whole/{self._of}"

    @property
    def _of(self) -> str:
        if self.step is not None:
            return f"workflow/{self.step}"
        return f"run/{self.run_id}" if self.event_id is None else f"event/{self.trigger_id or ''}/{self.event_id}"


def origin_of(run_id: str, event: bytes | None) -> Origin:
    """`event`: what the function sees as `ctx.event`, as JSON text; None when no event started the run."""
    if event is None:
        return Origin(run_id=run_id)
    told = orjson.loads(event)
    step = told.get("workflow")
    before = (told.get("cause") or {}).get("depth", 0)
    return Origin(
        run_id=run_id,
        event_id=told["id"],
        trigger_id=told.get("trigger_id"),
        depth=min(before + 1, MAX_CAUSE_DEPTH),
        step=f"{step['run_id']}/{step['node_id']}" if step else None,
    )
