"""Whether a step that failed is tried again, and when. Pure."""

from datetime import datetime, timedelta
from typing import Final

from server.fields import well_formed
from server.workflows.definition import Retry
from server.workflows.inputs import stored
from server.workflows.nodes.step import Attempt, StepFailed
from server.workflows.queue import Claimed
from server.workflows.transitions import Ended

MAX_DEATHS: Final = 10
"""Of workers under one step, after which it has failed: what kills them may be the step."""

REFUSED_S: Final = (0.5, 1.0, 2.0, 4.0, 8.0, 15.0, 30.0)
"""Waits after there was no room, or something of ours was away; the last one repeats."""

GIVE_UP: Final = timedelta(hours=24)
"""After which a step that never found room has failed."""

MAX_MESSAGE_CHARS: Final = 2_000


def retry_at(why: StepFailed, claimed: Claimed, retry: Retry, *, now: datetime, jitter: float) -> datetime | None:
    """When the step is tried again; None when it has failed. `jitter` is 0.5 to 1."""
    if why.no_room and now - claimed.began_at < GIVE_UP:
        return now + timedelta(seconds=REFUSED_S[min(claimed.refusals, len(REFUSED_S) - 1)] * jitter)
    if not why.again or claimed.attempts >= retry.attempts:
        return None
    backoff_ms = min(retry.backoff_ms * 2 ** (claimed.attempts - 1), retry.max_backoff_ms)
    return now + timedelta(milliseconds=backoff_ms * jitter)


def died(claimed: Claimed) -> StepFailed | None:
    """The failure of a step under which too many workers died."""
    if claimed.deaths < MAX_DEATHS:
        return None
    return StepFailed(
        "WORKER_DIED", f"The workers that ran this step died under it, {claimed.deaths} times; it is not tried again"
    )


def failure(why: StepFailed, attempt: Attempt | None) -> Ended:
    """What is kept of it. Of `attempt` nothing when it could not even be prepared."""
    message = well_formed(why.message.replace("\0", "\ufffd"))
    is_function = attempt is not None and attempt.node.type == "function"
    return Ended(
        input=None if attempt is None else stored(attempt.node, attempt.input),
        error={"reason": why.reason, "message": message[:MAX_MESSAGE_CHARS]},
        invocation_id=attempt.invocation_id if is_function and attempt is not None else None,
    )
