"""Whether this worker may take over what others run.

A lease that is over says that its worker died only where the database was there to renew it. So a worker takes from
others when it has itself been in the database without a gap for as long as a lease lasts: after an absence, in which
all leases run out alike, everybody has the time to come back.
"""

from server.clock import Clock
from server.workflows import queue


class Presence:
    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._seen_at_s = float("-inf")
        self._since_s = float("inf")

    def seen(self) -> None:
        """A transaction of this process was committed."""
        now_s = self._clock.monotonic_s()
        if now_s - self._seen_at_s > _gap_s():
            self._since_s = now_s
        self._seen_at_s = now_s

    @property
    def is_steady(self) -> bool:
        """Ask once the transaction that takes over has its time, which is that of its first statement."""
        now_s = self._clock.monotonic_s()
        return now_s - self._seen_at_s <= _gap_s() and now_s - self._since_s >= queue.LEASE_S


def _gap_s() -> float:
    """Shorter than what a lease still lasts that was about to be renewed, so that none runs out in less than a gap."""
    return queue.LEASE_S / 3
