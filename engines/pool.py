"""Which sandbox child serves which request. Pure: every method is told the time and returns the I/O to do.

A child serves one request at a time, and never two keys; its states are drawn in engines/children.py. Who finds none
waits in engines/queue.py, or in line at a busy child as engines/ahead.py says; while a request waits in the queue there
is no idle child of its key.
"""

from collections import OrderedDict
from collections.abc import Iterator
from dataclasses import InitVar, dataclass, field
from typing import Final, TypeVar

from engines.ahead import Ahead
from engines.children import (
    Action,
    Bind,
    Child,
    Key,
    Kill,
    Proceed,
    Reject,
    Request,
    Send,
    Shape,
    Spawn,
    Start,
    State,
)
from engines.queue import Queue

MAX_CALLS: Final = 10_000
MAX_AGE_MS: Final = 3_600_000.0
IDLE_TTL_MS: Final = 60_000.0
MAX_FORKING: Final = 4
SPAWN_BACKOFF_MS: Final = (50.0, 2_000.0)
SPARE_SHAPES: Final = 3  # for so many shapes there may be spares at a time

K = TypeVar("K")


@dataclass(eq=False, kw_only=True)
class Pool:
    """`spares` blanks are kept; at most `max_children` live at a time, `max_children_per_project` of one project.
    `cores` children of a function run at the same time before requests are sent ahead to them; None: none ever is.

    Spares have the shape asked for last; as long as `spare_shape` is None, which nobody ever asks for, there are none.
    """

    spares: int
    max_children: int
    max_children_per_project: int
    queue_ms: InitVar[float]
    spare_shape: Shape | None = ()
    cores: InitVar[int | None] = None
    can_spawn: bool = True
    children: set[Child] = field(default_factory=set)
    _blank: list[Child] = field(default_factory=list)
    _idle: OrderedDict[Child, None] = field(default_factory=OrderedDict)  # least recently used first
    _idle_of: dict[Key, list[Child]] = field(default_factory=dict)
    _bound: dict[Key, int] = field(default_factory=dict)  # children by key and by project, KILLED ones included
    _held: dict[object, int] = field(default_factory=dict)
    queue: Queue = field(init=False)
    _ahead: Ahead | None = field(init=False)
    _forking: dict[Shape, int] = field(default_factory=dict)
    _dying: int = 0  # KILLED, and going to make room for somebody
    _next_id: int = 1
    _spawn_after_ms: float = 0.0
    _backoff_ms: float = SPAWN_BACKOFF_MS[0]

    def __post_init__(self, queue_ms: float, cores: int | None) -> None:
        self.queue = Queue(queue_ms)
        self._ahead = None if cores is None else Ahead(cores)

    def __repr__(self) -> str:
        counts = " ".join(f"{name}={count}" for name, count in self.counts().items() if count)
        return f"<pool {counts or 'empty'}>"

    def counts(self) -> dict[str, int]:
        """How many children are in each state, and how many requests wait."""
        counts = dict.fromkeys((state.value for state in State), 0)
        for child in self.children:
            counts[child.state.value] += 1
        return {**counts, "waiting": len(self.queue)}

    # What happens

    def submit(self, request: Request, now_ms: float) -> list[Action]:
        """A new request: started at once on an idle child of its key, sent ahead to a busy one, or queued."""
        self.spare_shape = request.shape
        idle = self._idle_of.get(request.key)
        if self._ahead and (child := self._ahead.child_for(request, is_one_idle=bool(idle))):
            child.ahead.append(request)
            return [Send(child, request)]
        if idle:
            return [self._start(idle[-1], request, now_ms)]
        return self._place(now_ms) if self.queue.push(request) else [Reject(request)]

    def give_up(self, request: Request) -> None:
        """Its caller went away before it began. One that is ahead in a child is run for nothing when its turn comes."""
        if request.waiting:
            self.queue.remove(request)
        else:
            request.given_up = True

    def forked(self, child: Child, now_ms: float) -> list[Action]:
        self._leave(child)
        child.state = State.BLANK
        child.ready_ms = now_ms
        self._blank.append(child)
        return self._place(now_ms)

    def fork_failed(self, child: Child, now_ms: float) -> list[Action]:
        """No new child for a while, longer each time until one is `loaded`; those that live go on."""
        self._spawn_after_ms = now_ms + self._backoff_ms
        self._backoff_ms = min(self._backoff_ms * 2, SPAWN_BACKOFF_MS[1])
        return self.reaped(child, now_ms)

    def loaded(self, child: Child, now_ms: float) -> list[Action]:
        """Its code is loaded and the request it was bound for has started on it. Now there is time for a new spare."""
        self._run(child, now_ms)
        self._backoff_ms = SPAWN_BACKOFF_MS[0]
        return self._place(now_ms)

    def released(self, child: Child, now_ms: float) -> list[Action]:
        """Its run is over. The child goes to the next request of its key unless it is worn, or owed to another."""
        assert child.key is not None
        if self._ahead:
            self._ahead.ended(child, is_quick=child.was_quick)
        if child.calls >= MAX_CALLS:
            child.worn = "calls"
        elif now_ms - child.born_ms >= MAX_AGE_MS:
            child.worn = child.worn or "age"
        if child.worn:
            return [self.kill(child, child.worn), *self._place(now_ms)]
        if self.queue and (claim := self._owed(child, now_ms)):
            self.queue.has_next_turn(claim.key[0])
            return [self.kill(child, "owed"), *self._place(now_ms)]
        if child.ahead:
            self._run(child, now_ms)
            return [Proceed(child, child.ahead.popleft())]
        if not self.queue:
            self._rest(child, now_ms)
            return []
        if request := self.queue.first_of(child.key):
            self.queue.remove(request)
            return [self._start(child, request, now_ms)]
        self._rest(child, now_ms)
        return self._place(now_ms)

    def kill(self, child: Child, why: str) -> Kill:
        """From any state but KILLED and REAPED. `reaped` follows when the process is gone. What is ahead in it waits in
        the queue again."""
        self._leave(child)
        child.state = State.KILLED
        child.worn = child.worn or why
        self._dying += 1
        return Kill(child, why)

    def reaped(self, child: Child, now_ms: float) -> list[Action]:
        """The process is gone, killed or not."""
        self._leave(child)
        child.state = State.REAPED
        self.children.discard(child)
        if child.key is not None:
            _drop(self._bound, child.key)
            _drop(self._held, child.key[0])
            if self._ahead and child.key not in self._bound:
                self._ahead.forget(child.key)
        return self._place(now_ms)

    def wake(self, now_ms: float) -> list[Action]:
        """Time has passed. Call every PATIENCE_MS or so while requests wait, and ten times a second otherwise."""
        for child in self._ahead.overtaken(now_ms) if self._ahead else ():
            child.worn = child.worn or "overtaken"  # it would run them all the same
            self._take_back(child)
        actions: list[Action] = [Reject(request) for request in self.queue.expire(now_ms)]
        while self._idle and now_ms - (oldest := next(iter(self._idle))).idle_since_ms >= IDLE_TTL_MS:
            actions.append(self.kill(oldest, "idle"))
        unfit = [blank for blank in self._blank if blank.shape != self.spare_shape]
        late = [blank for blank in unfit if now_ms - blank.ready_ms >= IDLE_TTL_MS]
        return [*actions, *(self.kill(blank, "idle") for blank in late), *self._place(now_ms)]

    def retire(self, project: object, function: object = None) -> list[Action]:
        """Idle children of the function, or of the whole project, end now; busy ones after their run."""
        mine = [
            child
            for child in self.children
            if child.key is not None and child.key[0] == project and function in (None, child.key[1])
        ]
        for child in mine:
            child.worn = child.worn or "retired"
        return [self.kill(child, "retired") for child in mine if child.state is State.IDLE]

    def close(self) -> list[Action]:
        """Nobody waits, nothing is forked any more, and every child ends. FORKING ones end when they are `forked`."""
        self.can_spawn = False
        ending = (State.FORKING, State.KILLED)
        kills = [self.kill(child, "closing") for child in self.children if child.state not in ending]
        waiting = list(self.queue)
        for request in waiting:
            self.queue.remove(request)
        return [*map(Reject, waiting), *kills]

    # How it is decided

    def _place(self, now_ms: float) -> list[Action]:
        """Give children to those who may claim one, in turn; then see to the spares, but not while somebody is bound:
        a fork would slow down his cold start.

        1. a blank of the right shape is there: bind it
        2. one is being forked, or any child is dying: that one will do, wait for it
        3. there is room for one more: spawn
        4. a blank has another shape, or somebody's child is idle: end that, the least recently used
        5. otherwise wait
        """
        actions: list[Action] = []
        forking, dying = dict(self._forking), self._dying
        for request in self._claims(now_ms) if self.queue else ():
            if self._held.get(request.key[0], 0) >= self.max_children_per_project:
                actions += self._replace_own(request)
            elif blank := self._blank_of(request.shape):
                actions.append(self._bind(blank, request))
            elif forking.get(request.shape):
                forking[request.shape] -= 1
            elif dying > 0:
                dying -= 1
            elif len(self.children) < self.max_children:
                if not self._may_fork(now_ms):
                    break
                actions.append(self._spawn(request.shape, now_ms))
            elif self._blank:
                actions.append(self.kill(self._blank[0], "shape"))
            elif self._idle:
                actions.append(self.kill(next(iter(self._idle)), "evicted"))
            else:
                break
        if not any(isinstance(action, Bind) for action in actions):
            actions += self._see_to_spares(now_ms)
        return actions

    def _see_to_spares(self, now_ms: float) -> list[Action]:
        """One more of the shape that lacks one, and one less of another if that makes too many."""
        shape = self.spare_shape
        if shape is None or self._forking or not self._may_fork(now_ms) or len(self.children) >= self.max_children:
            return []
        others = [blank for blank in self._blank if blank.shape != shape]
        if len(self._blank) - len(others) >= self.spares:
            return []
        crowded = len(others) > (SPARE_SHAPES - 1) * self.spares
        return [*([self.kill(others[0], "shape")] if crowded else []), self._spawn(shape, now_ms)]

    def _blank_of(self, shape: Shape) -> Child | None:
        """The blank forked last, which is the one in the processor's caches."""
        return next((blank for blank in reversed(self._blank) if blank.shape == shape), None)

    def _claims(self, now_ms: float) -> Iterator[Request]:
        def room_of(project: object) -> int:
            return self.max_children_per_project - self._held.get(project, 0)

        return self.queue.claims(now_ms, room_of, self._bound.__contains__)

    def _replace_own(self, request: Request) -> list[Action]:
        """The project is at its cap: one of its own idle children makes room, unless one is on its way out."""
        project = request.key[0]
        own = [child for child in self.children if child.key is not None and child.key[0] == project]
        if any(child.state is State.KILLED for child in own):
            return []
        idle = next((child for child in self._idle if child.key is not None and child.key[0] == project), None)
        return [self.kill(idle, "evicted")] if idle else []

    def _owed(self, child: Child, now_ms: float) -> Request | None:
        """For whom a freed child must go although its own key has use for it, because no room is left for

        1. a function of the same project that has no child at all
        2. a project that has none, or at least two fewer than this one
        """
        assert child.key is not None
        project = child.key[0]
        held = self._held[project]
        full = len(self.children) >= self.max_children
        if self._blank or self._forking or self._dying or not (full or held >= self.max_children_per_project):
            return None
        for request in self._claims(now_ms):
            theirs = self._held.get(request.key[0], 0)
            if request.key[0] == project:
                if request.key not in self._bound:
                    return request
            elif full and theirs < self.max_children_per_project and (not theirs or theirs + 1 < held):
                return request
        return None

    def _may_fork(self, now_ms: float) -> bool:
        return self.can_spawn and sum(self._forking.values()) < MAX_FORKING and now_ms >= self._spawn_after_ms

    # What is written down

    def _spawn(self, shape: Shape, now_ms: float) -> Spawn:
        child = Child(self._next_id, now_ms, shape)
        self._next_id += 1
        self.children.add(child)
        self._forking[shape] = self._forking.get(shape, 0) + 1
        return Spawn(child)

    def _bind(self, child: Child, request: Request) -> Bind:
        assert child.key is None
        self._leave(child)
        project = request.key[0]
        self.queue.remove(request)
        self.queue.had_turn(project)
        child.state, child.key = State.BINDING, request.key
        self._bound[request.key] = self._bound.get(request.key, 0) + 1
        self._held[project] = self._held.get(project, 0) + 1
        return Bind(child, request)

    def _start(self, child: Child, request: Request, now_ms: float) -> Start:
        if child.state is State.IDLE:
            self._leave(child)
        self._run(child, now_ms)
        return Start(child, request)

    def _run(self, child: Child, now_ms: float) -> None:
        child.state = State.RUNNING
        child.calls += 1
        if self._ahead:
            self._ahead.began(child, now_ms)

    def _take_back(self, child: Child) -> None:
        """What is ahead in it is the queue's again."""
        while child.ahead:
            request = child.ahead.pop()
            if not request.given_up:
                self.queue.put_back(request)

    def _rest(self, child: Child, now_ms: float) -> None:
        assert child.key is not None
        child.state = State.IDLE
        child.idle_since_ms = now_ms
        self._idle[child] = None
        self._idle_of.setdefault(child.key, []).append(child)

    def _leave(self, child: Child) -> None:
        """Take the child out of whatever list its state keeps it in."""
        match child.state:
            case State.FORKING:
                _drop(self._forking, child.shape)
            case State.BLANK:
                self._blank.remove(child)
            case State.IDLE:
                assert child.key is not None
                del self._idle[child]
                mine = self._idle_of[child.key]
                mine.remove(child)
                if not mine:
                    del self._idle_of[child.key]
            case State.KILLED:
                self._dying -= 1
            case State.RUNNING | State.WAIT_HOST | State.DRAINING:
                if self._ahead:
                    self._ahead.ended(child, is_quick=False)
                self._take_back(child)


def _drop(counts: dict[K, int], name: K) -> None:
    counts[name] -= 1
    if not counts[name]:
        del counts[name]
