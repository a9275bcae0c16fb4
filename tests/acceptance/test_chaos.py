"""A tenth of `make chaos`: events are published while everything is killed at random, and every one of them is run."""

from tests.acceptance.chaos import problems, run
from tests.acceptance.chaos_kills import VICTIMS, Failures
from tests.acceptance.chaos_load import Plan

SEED = 4
EVENTS = 1_000
SECONDS = 20.0


def test_every_event_is_done_once_whatever_is_killed_meanwhile() -> None:
    plan = Plan(EVENTS, SECONDS, SEED)
    print(plan)
    report = run(plan)
    print(report)
    assert not report.problems, report.problems[:20]
    assert report.published.events == EVENTS
    assert report.attempts["ok"] == len(report.published.wanted) < EVENTS
    assert report.kills.keys() == VICTIMS.keys()


def test_nothing_is_killed_so_often_that_the_stack_waits_for_long() -> None:
    failures = Failures()
    said = "! worker-0 was killed by SIGKILL; starting it again\n· worker-0 is back\n! api-0: warning: [x]\n"
    failures.read(said * 2, 0.0)
    assert [name for name in VICTIMS if not failures.admit(name)] == []
    failures.read(said * 3, 30.0)
    assert [name for name in VICTIMS if not failures.admit(name)] == ["worker-0"]
    failures.read(said * 4, 31.0)
    assert [name for name in VICTIMS if not failures.admit(name)] == ["worker-0", "postgres", "nats"]
    failures.read(said * 4, 93.0)
    assert [name for name in VICTIMS if not failures.admit(name)] == []


def an_entry(run_id: str, outcome: str) -> dict[str, str]:
    return {"run_id": run_id, "outcome": outcome}


def test_what_is_wrong_is_found() -> None:
    """So that the test above can fail."""
    done = [an_entry("r1", "lost"), an_entry("r2", "ok")]
    right = [("a", "done", done)]
    begun = [("a", "r1"), ("a", "r2")]
    assert problems({"a"}, right, begun) == []
    assert problems({"a", "b"}, right, begun) == ["b has no delivery"]
    assert problems(set(), right, begun) == ["a was not to run"]
    assert problems({"a"}, [("a", "dead", done[:1])], begun[:1]) == ["a is dead after ['lost']"]
    assert problems({"a"}, [("a", "done", [*done, an_entry("r3", "ok")])], begun) != []
    assert problems({"a"}, right, [*begun, ("a", "r3")]) == ["the run r3 of a is no attempt"]
    assert problems({"a"}, right, []) == ["a is said to be done and never began"]
    assert "a has 2 deliveries" in problems({"a"}, right * 2, begun)
