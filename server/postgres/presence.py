"""Whether this process may take over what others hold under leases in the database.

A lease that is over says that its holder died only where the database was there to renew it. So a process takes from
others when it has itself been in the database without a gap for as long as a lease lasts: after an absence, in which
all leases run out alike, everybody has the time to come back. Who has just started takes nothing over for that long.
"""

from server.clock import Clock


class Presence:
    def __init__(self, clock: Clock, lease_s: float) -> None:
        self._clock = clock
        self._lease_s = lease_s
        self._gap_s = lease_s / 3
        """Shorter than what a lease still lasts that was about to be renewed, so that none runs out in less."""
        self._seen_at_s = float("-inf")
        self._since_s = float("inf")

    def seen(self) -> None:
        """A transaction of this process was committed: to be told much more often than three times in a lease."""
        now_s = self._clock.monotonic_s()
        if now_s - self._seen_at_s > self._gap_s:
            self._since_s = now_s
        self._seen_at_s = now_s

    @property
    def is_steady(self) -> bool:
        """Ask once the transaction that takes over has its time, which is that of its first statement."""
        now_s = self._clock.monotonic_s()
        return now_s - self._seen_at_s <= self._gap_s and now_s - self._since_s >= self._lease_s
