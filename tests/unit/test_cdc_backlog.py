"""Whose the log is that waits, and who is held for it."""

import pytest

from server.cdc import backlog
from server.cdc.backlog import Backlog, Stretch
from server.cdc.writers import NO_XID, SAMPLE_BYTES, sampled, told

ALLOWED = 1_000_000


class Log:
    """Written by roles, and looked at after each step."""

    def __init__(self) -> None:
        self.backlog = Backlog()
        self.lsn = self.confirmed = 1_000
        self.held: set[str] = set()

    @property
    def waiting(self) -> int:
        return self.lsn - self.confirmed

    def write(self, **sizes: int) -> list[str]:
        """Those who are held for it."""
        sizes = {role: size for role, size in sizes.items() if role not in self.held}
        since, self.lsn = self.lsn, self.lsn + sum(sizes.values())
        if self.lsn > since:
            self.backlog.add(Stretch(since, self.lsn, by_role={role: float(size) for role, size in sizes.items()}))
        found = self.backlog.outrunning(self.held, free=ALLOWED - self.waiting, allowed=ALLOWED)
        self.held |= set(found)
        return found

    def publish(self, size: int) -> None:
        self.confirmed = min(self.lsn, self.confirmed + size)
        self.backlog.confirm(self.confirmed)


def test_one_alone_may_fill_a_third() -> None:
    log = Log()
    while not log.held:
        log.write(greedy=10_000, modest=100)
    assert log.held == {"greedy"}
    assert 330_000 < log.waiting < 420_000
    for _ in range(100):
        assert not log.write(modest=100)


@pytest.mark.parametrize("count", [2, 5, 20, 40])
def test_many_together_do_not_fill_it_and_nobody_else_is_held(count: int) -> None:
    log = Log()
    greedy = {f"greedy{number}": 10_000 // count for number in range(count)}
    for _ in range(200):
        log.write(**greedy, modest=10)
    assert log.held == set(greedy)
    assert log.waiting < ALLOWED


def test_who_has_stopped_is_not_held_for_what_waits() -> None:
    log = Log()
    assert not log.write(batch=600_000)
    for _ in range(50):
        assert not log.write(batch=100, modest=1_000)
    assert log.write(batch=50_000) == ["batch"]


def test_who_was_let_in_again_is_held_only_for_going_on() -> None:
    log = Log()
    while not log.held:
        log.write(greedy=10_000)
    log.publish(log.waiting // 2)
    log.held.clear()
    assert not log.write(modest=200_000)
    assert log.write(greedy=300_000) == []
    assert log.write(greedy=100_000) == ["greedy"]


def test_the_load_of_very_many_is_nobodys_fault() -> None:
    """The slot is then given up as ever, so that everybody can write."""
    log = Log()
    for _ in range(100):
        log.write(**{f"project{number}": 100 for number in range(100)})
    assert log.waiting >= ALLOWED
    assert not log.held


def test_what_is_published_counts_no_more() -> None:
    log = Log()
    log.write(one=100)
    log.write(two=300)
    log.publish(200)
    assert log.backlog.bytes_by_role() == {"two": pytest.approx(200)}
    log.publish(200)
    assert log.backlog.bytes_by_role() == {}


def test_what_nobody_knows_is_divided_as_what_is_known_of_sessions() -> None:
    found = Backlog()
    found.add(Stretch(0, 100, {"a": 10.0}, {}, 90.0))
    found.add(Stretch(100, 200, {}, {"b": 30.0, "c": 10.0}, 60.0))
    assert found.bytes_by_role() == {"a": 10.0, "b": 30 + 150 * 0.75, "c": 10 + 150 * 0.25}


def test_one_statement_that_was_seen_does_not_answer_for_all_that_were_not() -> None:
    found = Backlog()
    found.add(Stretch(0, 1_000_010, {}, {"innocent": 10.0}, 1_000_000.0))
    assert found.bytes_by_role() == {"innocent": pytest.approx(10 + 10 * backlog.UNKNOWN_PART)}


def test_a_long_backlog_is_kept_in_bounded_memory() -> None:
    log = Log()
    for size in range(1, 301):
        log.write(a=size)
    assert len(log.backlog._stretches) == backlog.MAX_STRETCHES
    assert log.backlog.bytes_by_role()["a"] == pytest.approx(301 * 150)


def test_a_short_stretch_is_read_whole_and_of_a_long_one_pieces_everywhere() -> None:
    assert sampled(10, 20, 2) == [(10, 20)]
    length = 100 * SAMPLE_BYTES
    for _ in range(20):
        pieces = sampled(7, 7 + length, 4)
        assert all(end - start == SAMPLE_BYTES for start, end in pieces)
        assert [(start - 7) * 4 // length for start, _ in pieces] == [0, 1, 2, 3]
        assert pieces[-1][1] <= 7 + length


def test_bytes_are_told_by_owner_then_by_session_and_scaled() -> None:
    rows = [("a", None, 10), (None, "7", 20), (None, "8", 30), (None, NO_XID, 15), (None, None, 25)]
    assert told(0, 1_000, rows, {"7": "b"}) == Stretch(0, 1_000, {"a": 100.0}, {"b": 200.0}, 300.0)
    assert told(0, 1_000, [], {}) == Stretch(0, 1_000)
