"""Who waits for a sandbox child: in order of arrival within a project, and the projects take turns. Pure.

push ─▶ waits ─▶ remove          it was given a child, or its caller went away
put_back ┘  └──▶ expire          its deadline has passed
"""

from collections import OrderedDict
from collections.abc import Callable, Iterator, MutableMapping
from itertools import islice, zip_longest
from typing import Final, TypeVar

from engines.children import Key, Request

PATIENCE_MS: Final = 5.0
"""How long a request waits for a busy child of its own key before it may take a new one, or another key's: about what a
cold start costs, so that short functions do not fork a child for every caller of one moment."""

MAX_WAITING_PER_PROJECT: Final = 1_000
MAX_WAITING_BYTES_PER_PROJECT: Final = 64 * 1024 * 1024  # of inputs, which are kept in memory
SCANNED: Final = 64  # of a project's requests, in one look for somebody to give a child to

K = TypeVar("K")
Line = OrderedDict[Request, None]


class Queue:
    """Requests by project and by key. Every operation but `expire` and `claims` takes constant time."""

    def __init__(self, queue_ms: float) -> None:
        self.queue_ms = queue_ms
        self._of_project: OrderedDict[object, Line] = OrderedDict()  # next turn first
        self._of_key: dict[Key, Line] = {}
        self._bytes_of_project: dict[object, int] = {}

    def __len__(self) -> int:
        return sum(map(len, self._of_project.values()))

    def __bool__(self) -> bool:
        return bool(self._of_project)

    def __iter__(self) -> Iterator[Request]:
        return (request for line in self._of_project.values() for request in line)

    def push(self, request: Request) -> bool:
        """Whether there was room for one more of its project."""
        project = request.key[0]
        held_bytes = self._bytes_of_project.get(project, 0) + request.size_bytes
        line = self._of_project.get(project)
        if line is None:
            line = self._of_project[project] = OrderedDict()
        elif len(line) >= MAX_WAITING_PER_PROJECT or held_bytes > MAX_WAITING_BYTES_PER_PROJECT:
            return False
        line[request] = None
        self._bytes_of_project[project] = held_bytes
        self._of_key.setdefault(request.key, OrderedDict())[request] = None
        request.waiting = True
        return True

    def put_back(self, request: Request) -> None:
        """In front of its project, whose cap does not apply: it was let in before."""
        project = request.key[0]
        line = self._of_project.setdefault(project, OrderedDict())
        mine = self._of_key.setdefault(request.key, OrderedDict())
        for each in (line, mine):
            each[request] = None
            each.move_to_end(request, last=False)
        self._bytes_of_project[project] = self._bytes_of_project.get(project, 0) + request.size_bytes
        request.waiting = True

    def remove(self, request: Request) -> None:
        request.waiting = False
        project = request.key[0]
        _take(self._of_project, project, request)
        if project in self._of_project:
            self._bytes_of_project[project] -= request.size_bytes
        else:
            del self._bytes_of_project[project]
        _take(self._of_key, request.key, request)

    def first_of(self, key: Key) -> Request | None:
        line = self._of_key.get(key)
        return next(iter(line)) if line else None

    def had_turn(self, project: object) -> None:
        if project in self._of_project:
            self._of_project.move_to_end(project)

    def has_next_turn(self, project: object) -> None:
        self._of_project.move_to_end(project, last=False)

    def expire(self, now_ms: float) -> list[Request]:
        """Take out and return those that have waited for `queue_ms`."""
        late = []
        for line in list(self._of_project.values()):
            for request in list(line):
                if now_ms - request.queued_ms < self.queue_ms:
                    break
                self.remove(request)
                late.append(request)
        return late

    def claims(
        self, now_ms: float, room_of: Callable[[object], int], has_child: Callable[[Key], bool]
    ) -> Iterator[Request]:
        """Those that may take a new child now, one of each project at a time, at most `room_of` it but one at least.

        That is whoever has waited for PATIENCE_MS, and the first of a key for which no child lives.
        """
        turns = [
            list(islice(_impatient(line, now_ms, has_child), max(1, room_of(project))))
            for project, line in self._of_project.items()
        ]
        return (request for turn in zip_longest(*turns) for request in turn if request is not None)


def _impatient(line: Line, now_ms: float, has_child: Callable[[Key], bool]) -> Iterator[Request]:
    claimed: set[Key] = set()
    for request in islice(line, SCANNED):
        if now_ms - request.queued_ms >= PATIENCE_MS or not (request.key in claimed or has_child(request.key)):
            claimed.add(request.key)
            yield request


def _take(lines: MutableMapping[K, Line], name: K, request: Request) -> None:
    line = lines[name]
    del line[request]
    if not line:
        del lines[name]
