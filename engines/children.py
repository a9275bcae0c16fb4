"""A sandbox child as the pool sees it, who may want it, and what there is to do about them.

FORKING ─▶ BLANK ─▶ BINDING ─▶ IDLE ─▶ RUNNING ◀─▶ WAIT_HOST
                                 ▲        │            │
                                 └────────┴─ DRAINING ◀┘          any ─▶ KILLED ─▶ REAPED

BLANK      a spare: nobody's code has touched it
BINDING    loads the code of one key; from here on it belongs to that key for ever
WAIT_HOST  runs, but only a host answer can wake it
DRAINING   its run has a verdict already; it has a short grace to become IDLE again
KILLED     SIGKILL is sent; it still counts until REAPED, so a slot is never given away twice
"""

from collections import deque
from dataclasses import dataclass, field
from enum import Enum
from typing import Final

from engines.value import value

Key = tuple[object, ...]
"""Begins with project and function. Equal keys mean the same code under the same bounds."""


Shape = tuple[int, ...]
"""What cannot be changed of a child once it is forked, such as its memory limit; () where everything can."""


class State(Enum):
    FORKING = "forking"
    BLANK = "blank"
    BINDING = "binding"
    IDLE = "idle"
    RUNNING = "running"
    WAIT_HOST = "wait_host"
    DRAINING = "draining"
    KILLED = "killed"
    REAPED = "reaped"


BUSY: Final = frozenset({State.BINDING, State.RUNNING, State.WAIT_HOST, State.DRAINING})


@dataclass(eq=False, slots=True)
class Request:
    """Somebody who needs a child of `key`, and of that shape."""

    key: Key
    queued_ms: float
    shape: Shape = ()
    waiting: bool = False
    given_up: bool = False  # its caller went away while it was ahead in a child
    size_bytes: int = 0  # of the memory it holds while it waits


@dataclass(eq=False, slots=True, repr=False)
class Child:
    id: int
    born_ms: float
    shape: Shape = ()
    state: State = State.FORKING
    key: Key | None = None
    ready_ms: float = 0.0  # when it became BLANK
    idle_since_ms: float = 0.0
    calls: int = 0
    worn: str = ""  # why it will not be used again after this run
    was_quick: bool = False  # its last run, which asked nothing of the host
    ahead: deque[Request] = field(default_factory=deque)  # sent to it, to begin one after another when this run ends

    def __repr__(self) -> str:
        name = "/".join(str(part) for part in self.key[:3]) if self.key else "-"
        notes = f"{f' ahead={len(self.ahead)}' if self.ahead else ''}{' ' + self.worn if self.worn else ''}"
        return f"<child {self.id} {self.state.value} {name} calls={self.calls}{notes}>"


@dataclass(frozen=True, slots=True)
class Spawn:
    child: Child


@dataclass(frozen=True, slots=True)
class Bind:
    child: Child
    request: Request


@value()
class Start:
    child: Child
    request: Request


@value()
class Send:
    """To a child that is busy, to begin later."""

    child: Child
    request: Request


@value()
class Proceed:
    """The request was sent to the child before; now it begins."""

    child: Child
    request: Request


@dataclass(frozen=True, slots=True)
class Kill:
    child: Child
    why: str


@dataclass(frozen=True, slots=True)
class Reject:
    request: Request


Action = Spawn | Bind | Start | Send | Proceed | Kill | Reject
