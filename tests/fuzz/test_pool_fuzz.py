"""The pool under any order of events: its promises hold after every step, and in the end everybody is served."""

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from engines.ahead import MOST, STREAK
from engines.children import Action, Bind, Child, Key, Kill, Proceed, Reject, Request, Send, Spawn, Start, State
from engines.pool import SPARE_SHAPES, Pool

QUEUE_MS = 200.0


class Processes(RuleBasedStateMachine):
    """Plays the processes: what was asked for happens later, in any order, or the child dies instead."""

    @initialize(
        spares=st.integers(0, 2),
        most=st.integers(1, 5),
        most_each=st.integers(1, 3),
        shaped=st.booleans(),
        cores=st.sampled_from([None, 1, 2]),
    )
    def begin(self, spares: int, most: int, most_each: int, shaped: bool, cores: int | None) -> None:
        self.pool = Pool(
            spares=spares,
            max_children=most,
            max_children_per_project=most_each,
            queue_ms=QUEUE_MS,
            spare_shape=None if shaped else (),
            cores=cores,
        )
        self.shaped, self.spares = shaped, spares
        self.most, self.most_each = most, most_each
        self.now_ms = 0.0
        self.forking: list[Child] = []
        self.dying: list[Child] = []
        self.serving: dict[Child, Request] = {}
        self.bound: dict[Child, Key] = {}
        self.waiting: set[Request] = set()
        self.ahead: dict[Child, list[Request]] = {}
        if cores:
            self.make_quick("p", "f")

    def make_quick(self, project: str, function: str) -> None:
        """A child of it, which has run it so often that requests are sent ahead to it from now on."""
        self.ask(project, function)
        (child,) = self.forking
        self.forking.clear()
        self.do(self.pool.forked(child, self.now_ms))
        self.do(self.pool.loaded(child, self.now_ms))
        for _ in range(STREAK):
            del self.serving[child]
            child.was_quick = True
            self.do(self.pool.released(child, self.now_ms))
            self.ask(project, function)

    def do(self, actions: list[Action]) -> None:
        proceeding = {action.request for action in actions if isinstance(action, Proceed)}
        for child, sent in self.ahead.items():
            back = [request for request in sent if request not in child.ahead and request not in proceeding]
            self.waiting.update(request for request in back if not request.given_up)
            self.ahead[child] = [request for request in sent if request not in back]
        for action in actions:
            match action:
                case Spawn(child):
                    self.forking.append(child)
                case Bind(child, request):
                    assert child not in self.bound, "bound twice"
                    assert child.shape == request.shape, "a misfit"
                    self.bound[child] = request.key
                    self.serve(child, request)
                case Start(child, request):
                    assert self.bound[child] == request.key, "another's child"
                    self.serve(child, request)
                case Send(child, request):
                    assert self.bound[child] == request.key, "another's child"
                    assert child in self.serving, "nothing to wait for"
                    self.waiting.discard(request)
                    self.ahead.setdefault(child, []).append(request)
                case Proceed(child, request):
                    assert self.ahead[child].pop(0) is request, "out of order"
                    self.serve(child, request)
                case Kill(child, _):
                    assert child not in self.serving
                    assert not self.ahead.get(child)
                    self.dying.append(child)
                case Reject(request):
                    self.waiting.discard(request)

    def serve(self, child: Child, request: Request) -> None:
        assert child not in self.serving, "two requests at a time"
        assert child not in self.dying, "a dead child"
        self.serving[child] = request
        self.waiting.discard(request)

    @rule(project=st.sampled_from("pqr"), function=st.sampled_from("fg"))
    def ask(self, project: str, function: str) -> None:
        shape = ("pqr".index(project), "fg".index(function)) if self.shaped else ()
        request = Request((project, function, 1), self.now_ms, shape)
        self.waiting.add(request)
        self.do(self.pool.submit(request, self.now_ms))

    @precondition(lambda self: self.forking)
    @rule(data=st.data(), well=st.booleans())
    def fork(self, data: st.DataObject, well: bool) -> None:
        child = data.draw(st.sampled_from(self.forking))
        self.forking.remove(child)
        self.do(self.pool.forked(child, self.now_ms) if well else self.pool.fork_failed(child, self.now_ms))

    @precondition(lambda self: self.serving)
    @rule(data=st.data(), end=st.sampled_from(["released", "released", "killed", "died"]), quick=st.booleans())
    def finish(self, data: st.DataObject, end: str, quick: bool) -> None:
        child = data.draw(st.sampled_from(sorted(self.serving, key=lambda child: child.id)))
        if child.state is State.BINDING:
            self.do(self.pool.loaded(child, self.now_ms))
        del self.serving[child]
        if end == "released":
            child.was_quick = quick
            self.do(self.pool.released(child, self.now_ms))
        elif end == "killed":
            self.do([self.pool.kill(child, "limit")])
        else:
            self.do(self.pool.reaped(child, self.now_ms))

    @precondition(lambda self: self.dying)
    @rule(data=st.data())
    def reap(self, data: st.DataObject) -> None:
        child = data.draw(st.sampled_from(self.dying))
        self.dying.remove(child)
        self.do(self.pool.reaped(child, self.now_ms))

    @precondition(lambda self: self.waiting)
    @rule(data=st.data())
    def give_up(self, data: st.DataObject) -> None:
        request = data.draw(
            st.sampled_from(sorted(self.waiting, key=lambda request: (request.queued_ms, request.key[0:2])))
        )
        self.waiting.remove(request)
        self.pool.give_up(request)

    @precondition(lambda self: any(self.ahead.values()))
    @rule(data=st.data())
    def give_up_ahead(self, data: st.DataObject) -> None:
        sent = [request for child in sorted(self.ahead, key=lambda child: child.id) for request in self.ahead[child]]
        self.pool.give_up(data.draw(st.sampled_from(sent)))

    @rule(passed_ms=st.sampled_from([1.0, 6.0, 60.0, 60_000.0]))
    def wait(self, passed_ms: float) -> None:
        self.now_ms += passed_ms
        self.do(self.pool.wake(self.now_ms))

    @invariant()
    def promises(self) -> None:
        if not hasattr(self, "pool"):
            return
        children = self.pool.children
        assert len(children) <= self.most
        for project in "pqr":
            assert sum(child.key is not None and child.key[0] == project for child in children) <= self.most_each
        idle = {child.key for child in children if child.state is State.IDLE}
        assert not idle & {request.key for request in self.waiting}, "an idle child, and somebody waits for it"
        assert self.waiting == set(self.pool.queue)
        for child in children:
            assert list(child.ahead) == self.ahead.get(child, [])
            assert len(child.ahead) <= MOST
            assert not child.ahead or child in self.serving
        blank = [child.shape for child in children if child.state is State.BLANK]
        assert len(blank) <= max(self.most, SPARE_SHAPES * self.spares)
        assert {child for child in children if child.state is State.FORKING} == set(self.forking)
        assert {child for child in children if child.state is State.KILLED} == set(self.dying)

    def teardown(self) -> None:
        """Nobody else comes, and every process does as it is told: the queue empties well before its deadline."""
        if not hasattr(self, "pool"):
            return
        self.now_ms += 10_000
        self.do(self.pool.wake(self.now_ms))
        for project in "pqr":
            self.ask(project, "f")
        for _ in range(60):
            self.now_ms += 3
            for child in list(self.forking):
                self.forking.remove(child)
                self.do(self.pool.forked(child, self.now_ms))
            for child in list(self.dying):
                self.dying.remove(child)
                self.do(self.pool.reaped(child, self.now_ms))
            for child in list(self.serving):
                if child.state is State.BINDING:
                    self.do(self.pool.loaded(child, self.now_ms))
                del self.serving[child]
                child.was_quick = True
                self.do(self.pool.released(child, self.now_ms))
            self.do(self.pool.wake(self.now_ms))
            self.promises()
        assert not self.waiting
        assert not any(self.ahead.values())


TestPool = Processes.TestCase
TestPool.settings = settings(max_examples=60, stateful_step_count=40, deadline=None)
