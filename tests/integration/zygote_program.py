"""A program for the zygote whose workers do what the first byte of a message says."""

import json
import os
import select
import sys

from engines import linux

WRITABLE_CODE: list[str] = []
CONTROL_BYTES = 64
HEAVY = {"asyncio", "concurrent.futures", "dataclasses", "hashlib", "logging", "random", "subprocess", "typing"}


def preload() -> None:
    with open("/proc/self/maps") as maps:  # noqa: PTH123
        WRITABLE_CODE.extend(line for line in maps if "wx" in line.split()[1])


def serve(descriptor: int) -> None:
    while order := os.read(descriptor, CONTROL_BYTES):
        match order.decode().split():
            case ["echo", text]:
                os.write(descriptor, text.encode())
            case ["exit", status]:
                os._exit(int(status))
            case ["raise"]:
                raise ArithmeticError("raised in the worker")
            case ["crash"]:
                linux.libc.memset(None, 0, 1)
            case ["abort"]:
                os.abort()
            case ["forbidden"]:
                os.sync()
            case ["spin"]:
                os.write(descriptor, b"spinning")
                while True:
                    pass
            case ["look"]:
                os.write(descriptor, json.dumps(look_around()).encode())


def look_around() -> dict[str, object]:
    return {
        "environ": dict(os.environ),
        "descriptors": open_descriptors(),
        "writable_code": WRITABLE_CODE,
        "modules": sorted(HEAVY & set(sys.modules)),
    }


def open_descriptors() -> list[int]:
    found = []
    for descriptor in range(1024):
        poll = select.poll()
        poll.register(descriptor, 0)
        if not any(events & select.POLLNVAL for _, events in poll.poll(0)):
            found.append(descriptor)
    return found
