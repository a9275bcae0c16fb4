"""One host call of a run: what the host answers, as the frame that tells the child."""

import asyncio
import logging

from engines import messages
from engines.contract import HostError
from engines.frames import MAX_PAYLOAD_BYTES
from engines.run import Run

log = logging.getLogger(__name__)


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
