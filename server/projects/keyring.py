"""From the secret of a request to its principal, in memory; the database is asked once for what is new.

Keys that miss the cache are looked up together, one query at a time however many wait: whoever sends random keys
fills a batch, not the connection pool.
"""

import asyncio
from itertools import islice
from typing import Final

from server.clock import Clock
from server.postgres.cache import Cache
from server.postgres.changes import Changes
from server.postgres.control import Pool, transaction
from server.projects.api_keys import Principal, digest, principals

CAPACITY: Final = 20_000
"""Principals kept; about 400 bytes each."""

BATCH: Final = 500
"""Digests of one query."""


class Keyring:
    def __init__(self, pool: Pool, changes: Changes, *, clock: Clock | None = None) -> None:
        """Subscribes to `changes`: make it before they start."""
        self._pool = pool
        self._asked: dict[bytes, asyncio.Future[Principal | None]] = {}
        self._asking: asyncio.Task[None] | None = None
        self._cache: Cache[bytes, Principal] = Cache(
            self._look_up, trusted=lambda: changes.connected, capacity=CAPACITY, clock=clock
        )
        changes.subscribe("key", self._key_changed, self._cache.clear)
        changes.subscribe("project", self._project_changed, self._cache.clear)

    async def authenticate(self, secret: str) -> Principal | None:
        """Who calls with this secret, or None for an unknown or revoked key. Unavailable when the database is away."""
        found = digest(secret)
        return None if found is None else self._cache.kept(found) or await self._cache.get(found)

    def _key_changed(self, key_id: str) -> None:
        self._cache.forget_where(lambda principal: principal.key_id == key_id)

    def _project_changed(self, project_id: str) -> None:
        self._cache.forget_where(lambda principal: principal.project_id == project_id)

    async def _look_up(self, sha256: bytes, _kept: Principal | None) -> Principal | None:
        future = self._asked.get(sha256)
        if future is None:
            future = self._asked[sha256] = asyncio.get_running_loop().create_future()
        if self._asking is None:
            self._asking = asyncio.create_task(self._ask(), name="key lookup")
        return await asyncio.shield(future)

    async def _ask(self) -> None:
        """Query for what was asked until nothing is; who asks during a query is served by the next one."""
        try:
            while self._asked:
                batch = {sha256: self._asked.pop(sha256) for sha256 in list(islice(self._asked, BATCH))}
                try:
                    async with transaction(self._pool) as conn:
                        found = await principals(conn, batch)
                except BaseException as why:
                    for future in batch.values():
                        future.set_exception(why)
                        future.exception()  # seen, even if whoever asked has left
                    if not isinstance(why, Exception):
                        raise
                else:
                    for sha256, future in batch.items():
                        future.set_result(found.get(sha256))
        finally:
            self._asking = None
