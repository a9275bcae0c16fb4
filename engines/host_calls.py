"""One host call of a run: what the host answers, as the frame that tells the child."""

import asyncio
import logging
from typing import Final

from engines import messages
from engines.contract import HostError
from engines.frames import MAX_PAYLOAD_BYTES
from engines.run import Run

log = logging.getLogger(__name__)

MAX_CALL_BYTES_IN_FLIGHT: Final = 32 * 1024 * 1024
"""Of one run: four bodies of the largest fetch. They are in the supervisor's memory, not in the run's."""


def too_large(inv: int, call: int) -> bytes:
    """The HOSTRES frame for a call whose arguments are too many bytes beside those of the calls in flight."""
    allowed = f"at most {MAX_CALL_BYTES_IN_FLIGHT} bytes are allowed; await some of the calls first"
    return messages.refusal(inv, call, "too_large", f"The arguments of the calls in flight are too large, {allowed}")


async def answer(run: Run, inv: int, call: int, op: str, args: bytes) -> bytes:
    """The HOSTRES frame. Raises nothing but CancelledError, when the run has ended and cancels the call."""
    assert run.host is not None
    try:
        value = await run.host.call(op, args)
        if len(value) >= MAX_PAYLOAD_BYTES:
            raise HostError("too_large", f"The answer has {len(value)} bytes; {MAX_PAYLOAD_BYTES} is the most")
        return messages.answer(inv, call, value)
    except HostError as refusal:
        run.refused_fetches += refusal.code == "fetch_limit"
        return messages.refusal(inv, call, refusal.code, refusal.message)
    except asyncio.CancelledError:
        task = asyncio.current_task()
        if task is not None and task.cancelling():
            raise
        log.error("A host call cancelled itself", extra={"action": "host_call_failed", "op": op})
    except Exception:
        log.exception("A host call failed", extra={"action": "host_call_failed", "op": op})
    return messages.refusal(inv, call, "internal", "The host call failed on our side")
