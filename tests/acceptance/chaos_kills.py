"""Kills for `chaos`: parts of a stack at random, with SIGKILL, none so often that the stack waits for long with it."""

import contextlib
import json
import os
import random
import re
import signal
import threading
import time
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Final

from tests.fix_up import Stack

VICTIMS: Final = {
    **{name: name for name in ("worker-0", "worker-1", "api-0", "api-1", "postgres")},
    "nats": "nats-server",
    "valkey": "valkey-server",
}
"""Parts of the stack, and the names of their processes."""

RELAY: Final = "relay"
"""The worker that relays changes of tables, whichever it is; each time that it relays, once."""

NEEDED: Final = ("postgres", "nats")
"""While one of them is away no other part can start, and each try counts as a failure of that."""

PAUSE_S: Final = (0.4, 1.2)
"""Between two kills."""

MOST_KILLS: Final = 3
"""Of one part within a minute: the supervisor waits twice as long each time that one ends soon after it was ready."""

MINUTE_S: Final = 62.0


def kill(
    seed: int,
    stack: Stack,
    kills: Counter[str],
    over: threading.Event,
    say: Callable[[str], None],
    victims: Sequence[str] = tuple(VICTIMS),
) -> None:
    """Kill one of the victims after another until it is `over`: each of them once, then any; count them in `kills`."""
    chance, start_s, failures = random.Random(seed), time.monotonic(), Failures()
    each, ended = chance.sample(victims, len(victims)), 0
    while not over.wait(chance.uniform(*PAUSE_S)):
        name, now_s = each[-1] if each else chance.choice(victims), time.monotonic()
        relayed = turns(stack) if name == RELAY else []
        part = name if name != RELAY else relayed[-1][1] if len(relayed) > ended else ""
        failures.read(stack.said, now_s)
        pid = stack.processes().get(VICTIMS.get(part, ""))
        if pid is None or not failures.admit(part):
            continue
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
            kills[name] += 1
            ended = len(relayed) or ended
            if each:
                each.pop()
            say(f"{now_s - start_s:6.1f} s  killed {name if name == part else f'{name}, which is {part}'}")


def turns(stack: Stack) -> list[tuple[str, str]]:
    """When changes began to be relayed, and by which worker; the last one relays, unless it died."""
    found = []
    for log in (stack.run / "log").glob("worker-*.log"):
        lines = [line for line in log.read_bytes().splitlines() if b'"action":"cdc.streaming"' in line]
        found += [(json.loads(line)["time"], log.stem) for line in lines]
    return sorted(found)


class Failures:
    """How often each part ended within the last minute, as the stack says."""

    def __init__(self) -> None:
        self._at_s: dict[str, list[float]] = {name: [] for name in VICTIMS}
        self._recent: dict[str, int] = dict.fromkeys(VICTIMS, 0)

    def read(self, said: str, now_s: float) -> None:
        counts = Counter(re.findall(r"^! (\S+) .*; starting it again(?: in \d+ s)?$", said, re.MULTILINE))
        for name, times in self._at_s.items():
            times += [now_s] * (counts[name] - len(times))
            self._recent[name] = sum(now_s - at_s < MINUTE_S for at_s in times)

    def admit(self, name: str) -> bool:
        """Whether the part may be killed."""
        if name in NEEDED and max(self._recent.values()) > MOST_KILLS:
            return False
        return self._recent[name] < MOST_KILLS
