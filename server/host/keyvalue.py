"""`atlas.kv`: JSON values under the project's prefix in Valkey, optionally with a time to live."""

from typing import Final

import orjson

from engines.contract import HostError
from server.host.arguments import kind
from server.log import Logger
from server.valkey import BlockingConnectionPool, Redis, RedisError, ResponseError

log = Logger("keyvalue")

MAX_KEY_BYTES: Final = 512
MAX_VALUE_BYTES: Final = 256 * 1024
MAX_TTL_S: Final = 10 * 365 * 24 * 3600
CONNECTIONS: Final = 16
TIMEOUT_S: Final = 3.0
SCAN_COUNT: Final = 500


class KeyValue:
    """For all projects of a process. HostError "invalid_argument" is the caller's mistake, "unavailable" is ours."""

    def __init__(self, url: str) -> None:
        pool = BlockingConnectionPool.from_url(
            url,
            max_connections=CONNECTIONS,
            timeout=TIMEOUT_S,
            socket_timeout=TIMEOUT_S,
            socket_connect_timeout=TIMEOUT_S,
        )
        self._redis = Redis.from_pool(pool)

    async def get(self, project_id: str, key: object) -> bytes:
        """The value as JSON text; null when there is none."""
        name = _name("get", project_id, key)
        try:
            found = await self._redis.get(name)
        except RedisError as why:
            raise _unavailable("get", why) from None
        return found if isinstance(found, bytes) else b"null"

    async def set(self, project_id: str, key: object, value: object, ttl_s: float | None) -> None:
        """Replace the value; without `ttl_s` it stays for ever, also when the old one had a time to live."""
        name = _name("set", project_id, key)
        encoded = orjson.dumps(value)
        if len(encoded) > MAX_VALUE_BYTES:
            raise _invalid("set", f"value has {len(encoded)} bytes as JSON, at most {MAX_VALUE_BYTES} are allowed")
        if ttl_s is not None and not 0.001 <= ttl_s <= MAX_TTL_S:
            raise _invalid("set", f"ttl_s is {ttl_s:g}; it must be between 0.001 and {MAX_TTL_S} seconds")
        try:
            await self._redis.set(name, encoded, px=None if ttl_s is None else int(ttl_s * 1000))
        except RedisError as why:
            raise _unavailable("set", why) from None

    async def delete(self, project_id: str, key: object) -> bool:
        """Whether there was a value."""
        name = _name("delete", project_id, key)
        try:
            return bool(await self._redis.delete(name))
        except RedisError as why:
            raise _unavailable("delete", why) from None

    async def clear(self, project_id: str) -> None:
        """Delete everything of a project. RedisError when the store is away."""
        batch: list[bytes] = []
        async for name in self._redis.scan_iter(match=f"{_prefix(project_id)}*", count=SCAN_COUNT):
            batch.append(name)
            if len(batch) >= SCAN_COUNT:
                await self._redis.unlink(*batch)
                batch.clear()
        if batch:
            await self._redis.unlink(*batch)

    async def ping(self) -> None:
        """RedisError unless the store answers."""
        await self._redis.get("ping")

    async def close(self) -> None:
        await self._redis.aclose(close_connection_pool=True)


def _prefix(project_id: str) -> str:
    return f"proj:{project_id}:kv:"


def _name(op: str, project_id: str, key: object) -> bytes:
    if not isinstance(key, str):
        raise _invalid(op, f"key must be a string, got {kind(key)}")
    encoded = key.encode()
    if not 1 <= len(encoded) <= MAX_KEY_BYTES:
        raise _invalid(op, f"key has {len(encoded)} bytes as UTF-8, 1 to {MAX_KEY_BYTES} are allowed")
    return _prefix(project_id).encode() + encoded


def _invalid(op: str, message: str) -> HostError:
    return HostError("invalid_argument", f"atlas.kv.{op}: {message}")


def _unavailable(op: str, why: RedisError) -> HostError:
    if isinstance(why, ResponseError) and str(why).startswith("OOM"):
        return HostError("kv_full", f"atlas.kv.{op}: the store is full")
    log.warning("keyvalue.failed", "The key-value store did not answer", op=op, error=str(why))
    return HostError("unavailable", f"atlas.kv.{op}: the store cannot be reached; try again")
