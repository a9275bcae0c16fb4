"""What one kind of worker may be and do: all in which the jails of the engines differ.

Its default is the strictest, an interpreter within the zygote's own process image that holds one socket and no more.
Imported by the zygote: see there for what may not be imported here.
"""

from __future__ import annotations

import resource
from collections.abc import Callable, Mapping

from engines import seccomp

MAX_CPU_S = 3600  # in a life; a backstop only, the supervisor ends runs long before

_NOTHING = {
    resource.RLIMIT_CPU: MAX_CPU_S,
    resource.RLIMIT_NOFILE: 4,  # 0, 1, 2 and the socket: nothing more can be opened
    resource.RLIMIT_NPROC: 0,
    resource.RLIMIT_FSIZE: 0,
    resource.RLIMIT_CORE: 0,
    resource.RLIMIT_MEMLOCK: 0,
    resource.RLIMIT_MSGQUEUE: 0,
}


class Execution:
    """A program that takes the worker's place.

    `command(memory_bytes)` and `rehearsal` are argument vectors: of the program itself, and of the one that tries to
    break out of its jail (engines/selftest.py). `sockets` are the descriptors at which it finds the worker's socket.
    """

    __slots__ = ("command", "environment", "rehearsal", "sockets")

    def __init__(
        self,
        *,
        command: Callable[[int], list[str]],
        rehearsal: list[str],
        environment: dict[str, str],
        sockets: tuple[int, ...],
    ) -> None:
        self.command = command
        self.rehearsal = rehearsal
        self.environment = environment
        self.sockets = sockets


class Confinement:
    """`files` are all that is left of the file system, to be read; of them `programs` may be executed.

    `links` are symbolic links beside them, by their paths; they are made where the root is our own. `limits` are
    resource limits that differ from the strictest; the one of processes holds only where every worker has a user of its
    own. `permitted` names those attempts of engines/probe.py that are no escape from this jail.
    """

    __slots__ = ("execution", "files", "limits", "links", "permitted", "profile", "programs")

    def __init__(
        self,
        profile: seccomp.Profile = seccomp.SCRIPT,
        *,
        files: tuple[str, ...] = (),
        links: dict[str, str] | None = None,
        programs: tuple[str, ...] = (),
        limits: Mapping[int, int] | None = None,
        execution: Execution | None = None,
        permitted: tuple[str, ...] = (),
    ) -> None:
        self.profile = profile
        self.files = files
        self.links = links or {}
        self.programs = programs
        self.limits = {**_NOTHING, **(limits or {})}
        self.execution = execution
        self.permitted = permitted
