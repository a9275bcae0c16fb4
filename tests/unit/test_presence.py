"""When a worker may call others dead: once it has itself seen the database without a gap for a whole lease."""

from datetime import UTC, datetime

from server.postgres.presence import Presence

LEASE_S = 15.0


class Clock:
    at_s = 1_000.0

    def now(self) -> datetime:
        return datetime.now(UTC)

    def monotonic_s(self) -> float:
        return self.at_s


def pass_by(clock: Clock, presence: Presence, seconds: float, every_s: float = 0.5) -> None:
    for _ in range(int(seconds / every_s)):
        clock.at_s += every_s
        presence.seen()


def test_it_is_steady_after_a_whole_lease_without_a_gap() -> None:
    clock = Clock()
    presence = Presence(clock, LEASE_S)
    assert not presence.is_steady
    presence.seen()
    pass_by(clock, presence, LEASE_S - 0.5)
    assert not presence.is_steady
    pass_by(clock, presence, 0.5)
    assert presence.is_steady


def test_an_absence_after_which_others_may_be_late_begins_it_anew() -> None:
    clock = Clock()
    presence = Presence(clock, LEASE_S)
    presence.seen()
    pass_by(clock, presence, LEASE_S, every_s=LEASE_S / 4)
    assert presence.is_steady
    clock.at_s += 11.0  # a lease renewed 4 s before this is over by now
    assert not presence.is_steady, "also before it is known that the database is back"
    presence.seen()
    pass_by(clock, presence, LEASE_S - 0.5)
    assert not presence.is_steady
    pass_by(clock, presence, 0.5)
    assert presence.is_steady
