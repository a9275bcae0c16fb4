"""What one attempt makes of a delivery. Pure: it is told how the attempt ended, the policy, the past, and a chance.

    the attempt                                 the delivery
    OK, and no status of 400 or more            done
    cancelled by somebody                       cancelled
    no room, or something of ours was away      again, the attempt not counted, until it is too old; then dead
    an outcome that the policy retries          again, while attempts and age last; then dead
    any other                                   dead

The wait before attempt n + 1 is drawn from 0 to backoff_ms * 2^(n - 1), at most max_backoff_ms; of refusals likewise
from a backoff of their own.
"""

from typing import Final, Literal

from engines.contract import Outcome
from engines.value import value
from server.errors import AtlasError, Cancelled, NotFound, Unavailable, Unimplemented
from server.functions.outcomes import FAILED_STATUS, TABLE
from server.invocations.invoke import Finished
from server.triggers.definition import NEVER_RETRIED, RetryPolicy

REFUSED_BACKOFF_S: Final = (0.25, 15.0)
"""After the first refusal, and at most; it doubles in between."""

FAULT: Final = "INTERNAL_FAULT"
STATUS: Final = "FUNCTION_ANSWERED_STATUS"


@value()
class Ended:
    """An attempt that ended. `refused`: it did not begin, for want of room or of something of ours."""

    outcome: Outcome
    reason: str = ""
    message: str = ""
    refused: bool = False


@value()
class Verdict:
    """`delay_s` is how long a queued one waits. `attempts` and `refusals` are what counts from now on."""

    state: Literal["queued", "done", "dead", "cancelled"]
    attempts: int
    refusals: int
    delay_s: float = 0.0
    late: bool = False  # it would be tried again, were it not too old


OK: Final = Ended(Outcome.OK)


def ended(answer: Finished | AtlasError) -> Ended:
    """Of what an Invoker answered or raised."""
    if isinstance(answer, Finished):
        response = answer.result.response
        if response is None or response.status < FAILED_STATUS:
            return OK
        return Ended(Outcome.EXCEPTION, STATUS, f"The function answered with status {response.status}")
    if (outcome := _OUTCOMES.get(answer.reason)) is not None:
        return Ended(outcome, answer.reason, answer.message, refused=outcome is Outcome.OVERLOADED)
    if isinstance(answer, Unavailable):
        return Ended(Outcome.OVERLOADED, answer.reason, answer.message, refused=True)
    if isinstance(answer, Cancelled):
        return Ended(Outcome.CANCELLED, answer.reason, answer.message)
    if isinstance(answer, NotFound | Unimplemented):
        return Ended(Outcome.LOAD_FAILED, answer.reason, answer.message)
    return Ended(Outcome.CRASHED, answer.reason, answer.message)


def fault() -> Ended:
    return Ended(Outcome.CRASHED, FAULT, "Something failed on our side")


def may_begin(policy: RetryPolicy, *, attempts: int, age_s: float) -> bool:
    """Whether attempt number `attempts` may begin: not beyond the policy's, which attempts that were lost with their
    process can reach, and not too late, but for the first."""
    return attempts <= policy.attempts and (attempts <= 1 or age_s <= policy.max_age_s)


def decide(end: Ended, policy: RetryPolicy, *, attempts: int, refusals: int, age_s: float, chance: float) -> Verdict:
    """`attempts` counts this one, `age_s` is since it was taken up, released or replayed, `chance` is from 0 to 1."""
    if end.outcome is Outcome.OK:
        return Verdict("done", attempts, refusals)
    if end.outcome is Outcome.CANCELLED:
        return Verdict("cancelled", attempts, refusals)
    if end.refused:
        first_s, most_s = REFUSED_BACKOFF_S
        delay_s = chance * _doubled(first_s, refusals, most_s)
        attempts, refusals = attempts - 1, refusals + 1
        wanted = end.reason != _OVERLOADED or Outcome.OVERLOADED in policy.on
    else:
        delay_s = chance * _doubled(policy.backoff_ms / 1000, attempts - 1, policy.max_backoff_ms / 1000)
        wanted = attempts < policy.attempts and end.outcome in policy.on and end.outcome not in NEVER_RETRIED
    late = age_s + delay_s > policy.max_age_s
    if wanted and not late:
        return Verdict("queued", attempts, refusals, delay_s)
    return Verdict("dead", attempts, refusals, late=wanted)


def _doubled(first_s: float, times: int, most_s: float) -> float:
    return min(first_s * 2.0 ** min(times, 64), most_s)


_OUTCOMES: Final = {reason: outcome for outcome, (_, reason, _) in TABLE.items()}
_OVERLOADED: Final = TABLE[Outcome.OVERLOADED][1]
