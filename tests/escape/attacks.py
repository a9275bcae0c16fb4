"""Attempts to get out of the jail, as a program for the zygote: each runs in a jailed worker of its own.

An attack that returns has succeeded; one that is refused raises. The worker answers "escaped" or "held: why", or is
killed by the filter.
"""

import json
import os

from tests.escape import (
    attacks_on_files,
    attacks_on_memory,
    attacks_on_network,
    attacks_on_privileges,
    attacks_on_processes,
    attacks_on_resources,
)
from tests.escape.armoury import ATTACKS, SOCKET, TARGET

__all__ = [
    "ATTACKS",
    "SOCKET",
    "attacks_on_files",
    "attacks_on_memory",
    "attacks_on_network",
    "attacks_on_privileges",
    "attacks_on_processes",
    "attacks_on_resources",
]


def preload() -> None:
    """Nothing to read."""


def serve(descriptor: int) -> None:
    """Run the attack that the first message names: JSON {"attack", "target"}."""
    order = json.loads(os.read(descriptor, 4096))
    os.write(descriptor, attempt(order["attack"], order["target"]).encode())


def attempt(name: str, target: dict[str, int | str]) -> str:
    TARGET.update(target)
    try:
        ATTACKS[name]()
    except (OSError, MemoryError) as why:
        return f"held: {why!r}"
    except (RuntimeError, ValueError) as why:
        if str(why) in ("can't start new thread", "not allowed to raise maximum limit"):
            return f"held: {why!r}"
        return f"broken: {why!r}"
    except Exception as why:
        return f"broken: {why!r}"
    return "escaped"
