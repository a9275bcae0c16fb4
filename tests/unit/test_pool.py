"""The pool's decisions, by its status lines. Nothing here runs: the test plays the processes and the clock."""

import pytest

from engines.ahead import MOST, MOST_BYTES, OVERTAKEN_MS, STREAK
from engines.children import Action, Bind, Child, Kill, Proceed, Reject, Request, Send, Spawn, Start, State
from engines.pool import IDLE_TTL_MS, MAX_AGE_MS, MAX_CALLS, SPARE_SHAPES, Pool
from engines.queue import MAX_WAITING_BYTES_PER_PROJECT, MAX_WAITING_PER_PROJECT, PATIENCE_MS


def pool(spares: int = 0, most: int = 4, most_each: int = 4, queue_ms: float = 1000, cores: int | None = None) -> Pool:
    return Pool(spares=spares, max_children=most, max_children_per_project=most_each, queue_ms=queue_ms, cores=cores)


def ask(project: str = "p", function: str = "f", at_ms: float = 0) -> Request:
    return Request((project, function, 1), at_ms)


def say(actions: list[Action]) -> str:
    """`spawn 1, bind 1 p/f, …` in the order to be done."""
    words = []
    for action in actions:
        match action:
            case Spawn(child):
                words.append(f"spawn {child.id}")
            case Bind(child, request) | Start(child, request) | Send(child, request) | Proceed(child, request):
                words.append(f"{type(action).__name__.lower()} {child.id} {request.key[0]}/{request.key[1]}")
            case Kill(child, why):
                words.append(f"kill {child.id} {why}")
            case Reject(request):
                words.append(f"reject {request.key[0]}/{request.key[1]}")
    return ", ".join(words)


def spawned(actions: list[Action]) -> list[Child]:
    return [action.child for action in actions if isinstance(action, Spawn)]


def running(subject: Pool, request: Request, now_ms: float = 0) -> Child:
    """A child that runs the request, forked for it."""
    (child,) = spawned(subject.submit(request, now_ms))
    assert any(isinstance(action, Bind) for action in subject.forked(child, now_ms))
    subject.loaded(child, now_ms)
    return child


def idle(subject: Pool, request: Request, now_ms: float = 0) -> Child:
    child = running(subject, request, now_ms)
    assert subject.released(child, now_ms) == []
    return child


def test_first_request_forks_binds_runs_and_leaves_a_warm_child() -> None:
    subject = pool()
    (child,) = spawned(subject.submit(ask(), 0))
    assert repr(child) == "<child 1 forking - calls=0>"
    assert say(subject.forked(child, 0)) == "bind 1 p/f"
    assert repr(child) == "<child 1 binding p/f/1 calls=0>"
    subject.loaded(child, 0)
    assert repr(child) == "<child 1 running p/f/1 calls=1>"
    assert subject.released(child, 0) == []
    assert repr(subject) == "<pool idle=1>"
    assert say(subject.submit(ask(), 1)) == "start 1 p/f"
    assert repr(child) == "<child 1 running p/f/1 calls=2>"


def test_a_spare_is_bound_at_once_and_another_is_forked_when_it_is_loaded() -> None:
    subject = pool(spares=1)
    (spare,) = spawned(subject.wake(0))
    assert say(subject.forked(spare, 0)) == ""
    assert repr(subject) == "<pool blank=1>"
    assert say(subject.submit(ask(), 0)) == "bind 1 p/f"
    assert say(subject.loaded(spare, 0)) == "spawn 2"


def test_spares_are_forked_one_at_a_time() -> None:
    subject = pool(spares=3)
    assert say(actions := subject.wake(0)) == "spawn 1"
    assert say(subject.wake(0)) == ""
    assert say(actions := subject.forked(spawned(actions)[0], 0)) == "spawn 2"
    assert say(actions := subject.forked(spawned(actions)[0], 0)) == "spawn 3"
    assert say(subject.forked(spawned(actions)[0], 0)) == ""


def test_a_child_never_serves_another_key() -> None:
    subject = pool()
    idle(subject, ask("p", "f"))
    assert say(subject.submit(ask("q", "f"), 0)) == "spawn 2"
    assert say(subject.submit(ask("p", "g"), 0)) == "spawn 3"


def test_a_request_waits_a_moment_for_a_busy_child_of_its_key_before_a_second_is_forked() -> None:
    subject = pool()
    child = running(subject, ask())
    assert say(subject.submit(ask(at_ms=0), 0)) == ""
    assert say(subject.submit(ask(at_ms=0), 0)) == ""
    assert say(subject.released(child, 1)) == "start 1 p/f"
    assert say(subject.wake(PATIENCE_MS)) == "spawn 2"


def test_one_child_for_many_first_callers_of_one_function() -> None:
    subject = pool()
    assert say(subject.submit(ask(), 0)) == "spawn 1"
    assert [say(subject.submit(ask(), 0)) for _ in range(5)] == [""] * 5


def test_over_the_cap_the_least_recently_used_idle_child_is_ended_and_its_slot_given_after_it_is_reaped() -> None:
    subject = pool(most=2)
    old, recent = idle(subject, ask("p", "f")), idle(subject, ask("q", "g"))
    assert say(subject.submit(ask("r", "h"), 1)) == "kill 1 evicted"
    assert repr(old) == "<child 1 killed p/f/1 calls=1 evicted>"
    assert say(subject.wake(1)) == ""
    assert say(subject.reaped(old, 2)) == "spawn 3"
    assert recent.state is State.IDLE


def test_a_project_at_its_own_cap_replaces_its_own_idle_child_not_a_neighbours() -> None:
    subject = pool(most=4, most_each=1)
    neighbour, own = idle(subject, ask("q", "g")), idle(subject, ask("p", "f"))
    assert say(subject.submit(ask("p", "other"), 1)) == "kill 2 evicted"
    assert say(subject.reaped(own, 2)) == "spawn 3"
    assert neighbour.state is State.IDLE


def test_a_project_at_its_cap_waits_while_others_start() -> None:
    subject = pool(most=4, most_each=1)
    running(subject, ask("p", "f"))
    assert say(subject.submit(ask("p", "g"), 0)) == ""
    assert say(subject.submit(ask("q", "f"), 0)) == "spawn 2"


def test_a_flood_of_one_project_does_not_starve_another() -> None:
    subject = pool(most=2)
    first, second = running(subject, ask("flood")), running(subject, ask("flood", "g"))
    for _ in range(100):
        subject.submit(ask("flood"), 0)
    assert say(subject.submit(ask("small", "s", 1), 1)) == ""
    assert say(subject.released(first, 2)) == "kill 1 owed"
    (child,) = spawned(subject.reaped(first, 3))
    assert say(subject.forked(child, 4)) == "bind 3 small/s"
    assert second.state is State.RUNNING


def test_projects_take_turns() -> None:
    subject = pool(most=8, spares=0)
    subject.can_spawn = False
    for project in ("a", "a", "a", "b", "c"):
        subject.submit(ask(project, f"f{len(subject.queue)}"), 0)
    subject.can_spawn = True
    children = spawned(subject.wake(0))
    bound = []
    while children:
        actions = subject.forked(children.pop(0), 0)
        bound += [action.request.key[0] for action in actions if isinstance(action, Bind)]
        children += spawned(actions)
    assert bound == ["a", "b", "c", "a", "a"]


def test_requests_are_refused_at_their_deadline_and_not_before() -> None:
    subject = pool(most=1, queue_ms=100)
    running(subject, ask("p", "f"))
    subject.submit(ask("p", "g"), 0)
    subject.submit(ask("q", "h", 50), 50)
    assert say(subject.wake(99)) == ""
    assert say(subject.wake(100)) == "reject p/g"
    assert say(subject.wake(150)) == "reject q/h"
    assert repr(subject) == "<pool running=1>"


def test_a_full_queue_refuses_at_once() -> None:
    subject = pool(most=1)
    running(subject, ask())
    assert {say(subject.submit(ask(), 0)) for _ in range(MAX_WAITING_PER_PROJECT)} == {""}
    assert say(subject.submit(ask(), 0)) == "reject p/f"
    assert say(subject.submit(ask("q"), 0)) == ""


def test_giving_up_leaves_the_queue() -> None:
    subject = pool(most=1)
    running(subject, ask())
    request = ask()
    subject.submit(request, 0)
    subject.give_up(request)
    subject.give_up(request)
    assert repr(subject) == "<pool running=1>"


def test_idle_children_end_after_their_time_to_live() -> None:
    subject = pool()
    idle(subject, ask("p", "f"), 0)
    idle(subject, ask("p", "g"), 10)
    assert say(subject.wake(IDLE_TTL_MS - 1)) == ""
    assert say(subject.wake(IDLE_TTL_MS)) == "kill 1 idle"
    assert say(subject.wake(IDLE_TTL_MS + 10)) == "kill 2 idle"


@pytest.mark.parametrize(
    ("calls", "age_ms", "worn", "why"),
    [
        pytest.param(MAX_CALLS, 0, "", "calls", id="calls"),
        pytest.param(1, MAX_AGE_MS, "", "age", id="age"),
        pytest.param(1, 0, "memory", "memory", id="taint"),
    ],
)
def test_a_worn_child_is_not_used_again(calls: int, age_ms: float, worn: str, why: str) -> None:
    subject = pool()
    child = running(subject, ask())
    child.calls, child.worn = calls, worn
    assert say(subject.released(child, age_ms)) == f"kill 1 {why}"
    assert subject.reaped(child, age_ms) == []
    assert repr(subject) == "<pool empty>"


def test_retiring_a_function_ends_idle_children_now_and_busy_ones_after_their_run() -> None:
    subject = pool()
    busy = running(subject, ask("p", "f"))
    subject.submit(ask("p", "f"), 0)
    (second,) = spawned(subject.wake(PATIENCE_MS))
    subject.forked(second, PATIENCE_MS)
    subject.loaded(second, PATIENCE_MS)
    subject.released(second, PATIENCE_MS)
    other = idle(subject, ask("p", "g"), PATIENCE_MS)
    assert say(subject.retire("p", "f")) == "kill 2 retired"
    assert busy.state is State.RUNNING
    assert say(subject.released(busy, 9)) == "kill 1 retired"
    assert other.state is State.IDLE


def test_retiring_a_project_ends_all_its_children_and_nobody_elses() -> None:
    subject = pool()
    for project, function in (("p", "f"), ("p", "g"), ("q", "f")):
        idle(subject, ask(project, function))
    assert sorted(say([action]) for action in subject.retire("p")) == ["kill 1 retired", "kill 2 retired"]
    assert subject.counts()["idle"] == 1


def test_a_failed_fork_is_tried_again_later_and_later_while_warm_children_go_on() -> None:
    subject = pool(spares=0)
    warm = idle(subject, ask("p", "f"))
    (child,) = spawned(subject.submit(ask("p", "g"), 0))
    assert say(subject.fork_failed(child, 0)) == ""
    assert say(subject.submit(ask("p", "f"), 1)) == f"start {warm.id} p/f"
    assert say(subject.wake(49)) == ""
    (child,) = spawned(subject.wake(50))
    assert say(subject.fork_failed(child, 50)) == ""
    assert say(subject.wake(149)) == ""
    assert say(subject.wake(150)) == "spawn 4"


def test_death_in_any_state_frees_the_slot() -> None:
    subject = pool(most=1)
    child = running(subject, ask())
    assert say(subject.submit(ask("q"), 0)) == ""
    assert say(subject.reaped(child, 1)) == "spawn 2"
    assert repr(child) == "<child 1 reaped p/f/1 calls=1>"


def test_closing_refuses_who_waits_and_ends_who_lives() -> None:
    subject = pool(most=2)
    warm = idle(subject, ask("p", "f"))
    (forking,) = spawned(subject.submit(ask("q", "g"), 0))
    assert say(subject.close()) == "reject q/g, kill 1 closing"
    assert subject.reaped(warm, 1) == []
    assert subject.forked(forking, 1) == []
    assert say(subject.close()) == "kill 2 closing"


SMALL, LARGE = (16,), (64,)


def shaped(spares: int = 1, most: int = 4) -> Pool:
    return Pool(spares=spares, max_children=most, max_children_per_project=most, queue_ms=1000, spare_shape=None)


def ask_shape(project: str, shape: tuple[int, ...], at_ms: float = 0) -> Request:
    return Request((project, "f", 1), at_ms, shape)


def test_nobody_knows_the_shape_of_a_spare_before_somebody_asks_for_one() -> None:
    subject = shaped()
    assert say(subject.wake(0)) == ""
    (child,) = spawned(subject.submit(ask_shape("p", SMALL), 0))
    assert child.shape == SMALL
    assert say(subject.forked(child, 0)) == "bind 1 p/f"
    (spare,) = spawned(subject.loaded(child, 0))
    assert spare.shape == SMALL


def test_a_spare_is_bound_to_a_request_of_its_shape_only() -> None:
    subject = shaped()
    child = running(subject, ask_shape("p", SMALL))
    subject.forked(next(child for child in subject.children if child.state is State.FORKING), 0)
    (large,) = spawned(subject.submit(ask_shape("q", LARGE), 0))
    assert (large.id, large.shape) == (3, LARGE)
    assert say(subject.submit(ask_shape("r", SMALL), 0)) == "bind 2 r/f"
    assert child.state is State.RUNNING


def test_one_that_is_being_forked_in_another_shape_is_no_reason_to_wait() -> None:
    subject = shaped(spares=0)
    assert [child.shape for child in spawned(subject.submit(ask_shape("p", SMALL), 0))] == [SMALL]
    assert [child.shape for child in spawned(subject.submit(ask_shape("q", LARGE), 0))] == [LARGE]
    assert say(subject.submit(ask_shape("r", LARGE, 0), 0)) == "spawn 3"


def test_a_spare_of_another_shape_gives_way_before_an_idle_child_does() -> None:
    subject = shaped(most=2)
    child = running(subject, ask_shape("p", SMALL))
    (spare,) = [child for child in subject.children if child.state is State.FORKING]
    subject.forked(spare, 0)
    subject.released(child, 0)
    assert say(subject.submit(ask_shape("q", LARGE), 1)) == "kill 2 shape"
    (large,) = spawned(subject.reaped(spare, 1))
    assert (large.shape, child.state) == (LARGE, State.IDLE)


def test_spares_of_shapes_that_nobody_asks_for_any_more_end_in_time_or_in_a_crowd() -> None:
    subject = shaped(most=20)
    spares = []
    for size in range(1, 6):
        (child,) = spawned(subject.submit(ask_shape(f"p{size}", (size,)), 0))
        subject.forked(child, 0)
        actions = subject.loaded(child, 0)
        (spare,) = spawned(actions)
        subject.forked(spare, size)
        spares.append(spare)
        assert subject.counts()["blank"] <= SPARE_SHAPES
    assert [spare.state is State.BLANK for spare in spares] == [False, False, True, True, True]
    assert say(subject.wake(IDLE_TTL_MS + 3)) == f"kill {spares[2].id} idle"
    subject.wake(IDLE_TTL_MS * 2)
    assert spares[4].state is State.BLANK


def test_what_waits_holds_a_bounded_part_of_memory() -> None:
    subject = pool(most=1)
    running(subject, ask())
    half, other = MAX_WAITING_BYTES_PER_PROJECT // 2, "q"
    waiting = [Request(("p", "f", 1), 0, size_bytes=half) for _ in range(2)]
    assert [say(subject.submit(request, 0)) for request in waiting] == ["", ""]
    assert say(subject.submit(Request(("p", "f", 1), 0, size_bytes=1), 0)) == "reject p/f"
    assert say(subject.submit(Request(("p", "f", 1), 0), 0)) == ""
    assert say(subject.submit(Request((other, "f", 1), 0, size_bytes=half), 0)) == ""
    subject.give_up(waiting[0])
    assert say(subject.submit(Request(("p", "f", 1), 0, size_bytes=half), 0)) == ""


def quick(subject: Pool, request: Request) -> Child:
    """A child that runs the request, of a function that has been quick often enough."""
    child = running(subject, request)
    for _ in range(STREAK):
        child.was_quick = True
        subject.released(child, 0)
        subject.submit(request, 0)
    return child


def test_requests_of_a_quick_function_are_sent_ahead_to_its_busy_child() -> None:
    subject = pool(cores=1)
    child = quick(subject, ask())
    assert say(subject.submit(ask(), 1)) == "send 1 p/f"
    assert say(subject.submit(ask(), 1)) == "send 1 p/f"
    assert repr(child) == "<child 1 running p/f/1 calls=17 ahead=2>"
    assert say(subject.released(child, 2)) == "proceed 1 p/f"
    assert say(subject.released(child, 3)) == "proceed 1 p/f"
    assert say(subject.released(child, 4)) == ""
    assert child.state is State.IDLE


def test_no_request_is_sent_ahead_before_the_function_was_quick_often_or_when_it_is_large() -> None:
    subject = pool(cores=1)
    child = running(subject, ask())
    for _ in range(STREAK - 1):
        child.was_quick = True
        subject.released(child, 0)
        subject.submit(ask(), 0)
    assert say(subject.submit(ask(), 0)) == ""
    assert say(subject.released(child, 0)) == "start 1 p/f"
    assert say(subject.submit(Request(("p", "f", 1), 0, size_bytes=MOST_BYTES + 1), 0)) == ""
    assert say(subject.submit(ask(), 0)) == "send 1 p/f"


def test_after_one_run_that_was_not_quick_nothing_is_sent_ahead() -> None:
    subject = pool(cores=1)
    child = quick(subject, ask())
    child.was_quick = False
    subject.released(child, 0)
    subject.submit(ask(), 0)
    assert say(subject.submit(ask(), 0)) == ""


def test_idle_children_are_used_first_as_long_as_there_are_cores_for_them() -> None:
    subject = pool(cores=2)
    first = quick(subject, ask())
    subject.submit(large := Request(("p", "f", 1), 0, size_bytes=MOST_BYTES + 1), 0)
    (second,) = spawned(subject.wake(PATIENCE_MS))
    subject.forked(second, 6)
    subject.loaded(second, 6)
    assert not large.waiting
    second.was_quick = True
    assert subject.released(second, 7) == []
    assert say(subject.submit(ask(), 8)) == "start 2 p/f"
    assert say(subject.submit(ask(), 8)) == "send 1 p/f"
    assert say(subject.submit(ask(), 8)) == "send 2 p/f"
    assert len(first.ahead) == len(second.ahead) == 1


def test_at_most_so_many_are_sent_ahead_to_one_child() -> None:
    subject = pool(cores=1)
    quick(subject, ask())
    said = [say(subject.submit(ask(), 0)) for _ in range(MOST + 1)]
    assert said == ["send 1 p/f"] * MOST + [""]


def test_what_is_ahead_in_a_child_that_ends_waits_in_the_queue_again_in_its_order() -> None:
    subject = pool(cores=1)
    child = quick(subject, ask())
    sent = [ask(at_ms=1) for _ in range(3)]
    for request in sent:
        subject.submit(request, 1)
    subject.give_up(sent[1])
    assert say([subject.kill(child, "limit")]) == "kill 1 limit"
    assert [*subject.queue] == [sent[0], sent[2]]
    assert say(actions := subject.reaped(child, 2)) == "spawn 2"
    assert say(subject.forked(spawned(actions)[0], 3)) == "bind 2 p/f"


def test_a_run_that_turns_out_slow_is_overtaken_by_those_behind_it_and_its_child_not_used_again() -> None:
    subject = pool(cores=1)
    child = quick(subject, ask())
    subject.submit(ask(at_ms=1), 1)
    assert say(subject.wake(OVERTAKEN_MS - 1)) == ""
    assert len(child.ahead) == 1
    assert say(subject.wake(OVERTAKEN_MS)) == "spawn 2"
    assert not child.ahead
    assert say(subject.released(child, OVERTAKEN_MS + 1)) == "kill 1 overtaken"


def test_closing_refuses_also_what_is_ahead() -> None:
    subject = pool(cores=1)
    quick(subject, ask())
    subject.submit(ask(), 0)
    assert say(subject.close()) == "reject p/f, kill 1 closing"
