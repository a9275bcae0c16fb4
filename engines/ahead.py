"""Which busy child may be sent another request before it is through with what it has: one of a function that has been
quick lately. Pure.

    child runs  r1 │ in its socket  r2 r3 r4        each begins when the one before it was answered

A child that finds the next request in its socket neither sleeps nor is woken, and several requests share one write. It
needs trust in nothing: what a run does to the world goes through its supervisor, which answers only the run whose turn
it is. So those ahead can be taken back from a child that turns out slow, or that dies, and run elsewhere.
"""

from typing import Final

from engines.children import Child, Key, Request, State

STREAK: Final = 16
"""So many runs of a key in a row must have been quick."""

MOST: Final = 16
"""Requests sent ahead to one child."""

MOST_BYTES: Final = 64 * 1024
"""Of the input of a request that is sent ahead: it is in the socket's buffers, or in ours."""

OVERTAKEN_MS: Final = 100.0
"""After so long in one run, those behind it are given to other children."""


class Ahead:
    """The runs of children, by key. `cores` children of a key are kept busy before requests are sent ahead to them."""

    def __init__(self, cores: int) -> None:
        self._cores = cores
        self._quick: dict[Key, int] = {}  # runs in a row
        self._busy: dict[Key, dict[Child, float]] = {}  # since when

    def child_for(self, request: Request, *, is_one_idle: bool) -> Child | None:
        """The busy child that it is best sent ahead to, if any is."""
        key = request.key
        if self._quick.get(key, 0) < STREAK or request.size_bytes > MOST_BYTES:
            return None
        busy = self._busy.get(key)
        if busy is None or (is_one_idle and len(busy) < self._cores):
            return None
        able = [child for child in busy if child.state is State.RUNNING and not child.worn and len(child.ahead) < MOST]
        return min(able, key=_line, default=None)

    def began(self, child: Child, now_ms: float) -> None:
        assert child.key is not None
        self._busy.setdefault(child.key, {})[child] = now_ms

    def ended(self, child: Child, *, is_quick: bool) -> None:
        """Its run, or the child in the middle of it."""
        assert child.key is not None
        busy = self._busy.get(child.key)
        if busy is None or busy.pop(child, None) is None:
            return
        if not busy:
            del self._busy[child.key]
        if is_quick:
            self._quick[child.key] = self._quick.get(child.key, 0) + 1
        else:
            self._quick.pop(child.key, None)

    def overtaken(self, now_ms: float) -> list[Child]:
        """Children whose run takes too long for those behind it."""
        return [
            child
            for busy in self._busy.values()
            for child, began_ms in busy.items()
            if child.ahead and now_ms - began_ms >= OVERTAKEN_MS
        ]

    def forget(self, key: Key) -> None:
        """No child of it is left."""
        self._quick.pop(key, None)


def _line(child: Child) -> int:
    return len(child.ahead)
