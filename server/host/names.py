"""A name resolved once, every address of it judged. Whoever connects uses these and looks up nothing again."""

import asyncio
import ipaddress
import socket
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Final
from weakref import WeakValueDictionary

from server.host.addresses import may_reach
from server.settings import Network

THREADS: Final = 32
LOOKUPS_PER_PROJECT: Final = 8
"""At a time, given-up ones included: a thread in getaddrinfo cannot be stopped."""

Lookup = Callable[[str, int], list[str]]


class Blocked(Exception):
    """The name has an address that may not be reached. Says nothing else, so that nobody learns what is there."""


class Unresolved(Exception):
    """The name has no address."""


class Names:
    """`lookup(host, port)` blocks and returns addresses as text or raises OSError; the system's by default."""

    def __init__(self, allowed: Sequence[Network], lookup: Lookup | None = None) -> None:
        self._allowed = tuple(allowed)
        self._lookup = lookup or _system_lookup
        self._threads = ThreadPoolExecutor(THREADS, thread_name_prefix="lookup")
        self._projects: WeakValueDictionary[str, asyncio.Semaphore] = WeakValueDictionary()

    async def resolve(self, project_id: str, host: str, port: int) -> list[str]:
        """At least one address, all of them permitted. Blocked or Unresolved; give it a timeout."""
        loop = asyncio.get_running_loop()
        turn = self._projects.setdefault(project_id, asyncio.Semaphore(LOOKUPS_PER_PROJECT))
        await turn.acquire()
        job = self._threads.submit(self._lookup, host, port)
        job.add_done_callback(lambda _: loop.is_closed() or loop.call_soon_threadsafe(turn.release))
        try:
            found = await asyncio.wrap_future(job)
        except (OSError, UnicodeError):
            raise Unresolved from None
        if not found:
            raise Unresolved
        if not all(may_reach(address, self._allowed) and self._not_ours(address) for address in found):
            raise Blocked
        return found

    def close(self) -> None:
        self._threads.shutdown(wait=False, cancel_futures=True)

    def _not_ours(self, address: str) -> bool:
        """This machine under its public address is no more public than under 127.0.0.1."""
        judged = ipaddress.ip_address(address)
        if any(judged.version == network.version and judged in network for network in self._allowed):
            return True
        family = socket.AF_INET if judged.version == 4 else socket.AF_INET6
        with socket.socket(family, socket.SOCK_DGRAM) as probe:
            try:
                probe.connect((address, 9))  # sends nothing: asks the kernel for the route
                return ipaddress.ip_address(probe.getsockname()[0].split("%")[0]) != judged
            except OSError:
                return True  # no route, so nothing of ours


def _system_lookup(host: str, port: int) -> list[str]:
    found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    return list(dict.fromkeys(str(entry[4][0]) for entry in found))
