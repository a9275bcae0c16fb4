"""An engine that starts when it is first needed, and until then costs nothing."""

import asyncio
import logging
import time
from typing import Final

from engines.contract import Engine, Host, Invocation, Limits, Program, Result
from engines.runtimes import EngineNotReady

log = logging.getLogger(__name__)

BACKOFF_S: Final = (1.0, 60.0)
"""After a failed start, the next is not tried for so long: at first, and at most."""


class NotStarted(EngineNotReady):
    """The engine could not be started; the cause says why. A later call tries again."""


class Lazy:
    """An Engine around another. Callers that come while it starts wait for that one start.

    Its start goes on when the caller that began it goes away.
    """

    def __init__(self, inner: Engine) -> None:
        self._inner = inner
        self._starting: asyncio.Task[None] | None = None
        self._is_started = False
        self._failure: Exception | None = None
        self._retry_at_s = 0.0
        self._pause_s = BACKOFF_S[0]
        self._is_closed = False

    async def start(self) -> None:
        """Nothing yet."""

    async def invoke(self, program: Program, invocation: Invocation, limits: Limits, host: Host) -> Result:
        """See the contract. Raises NotStarted as well."""
        if not self._is_started:
            await self._start()
        return await self._inner.invoke(program, invocation, limits, host)

    async def check(self, program: Program, limits: Limits) -> Result:
        """See the contract. Raises NotStarted as well."""
        if not self._is_started:
            await self._start()
        return await self._inner.check(program, limits)

    def retire(self, project_id: str, function_id: str | None = None) -> None:
        if self._is_started:
            self._inner.retire(project_id, function_id)

    async def close(self) -> None:
        self._is_closed = True
        if self._starting is not None:
            self._starting.cancel()
            await asyncio.wait((self._starting,))
        if self._is_started:
            await self._inner.close()

    def report(self) -> dict[str, object]:
        if self._is_started:
            return self._inner.report()
        if self._failure is not None:
            return {"state": "not started", "failure": str(self._failure)}
        return {"state": "not started"}

    async def _start(self) -> None:
        if self._is_closed:
            raise RuntimeError("the engine is closed")
        if self._starting is None:
            if self._failure is not None and time.monotonic() < self._retry_at_s:
                raise NotStarted(f"The engine could not be started: {self._failure}") from self._failure
            self._starting = asyncio.get_running_loop().create_task(self._start_once())
        await asyncio.wait((self._starting,))
        if self._is_started:
            return
        if self._is_closed:
            raise RuntimeError("the engine is closed")
        raise NotStarted(f"The engine could not be started: {self._failure}") from self._failure

    async def _start_once(self) -> None:
        first_s, longest_s = BACKOFF_S
        try:
            await self._inner.start()
        except Exception as why:  # whatever it is, who calls shall know
            log.error("An engine did not start: %s", why, exc_info=why, extra={"action": "engine_not_started"})
            self._failure = why
            self._retry_at_s = time.monotonic() + self._pause_s
            self._pause_s = min(self._pause_s * 2, longest_s)
        else:
            log.info("An engine has started: %r", self._inner, extra={"action": "engine_started"})
            self._is_started, self._failure, self._pause_s = True, None, first_s
        finally:
            self._starting = None
