"""The client library of Valkey, which is redis-py, without OpenTelemetry.

redis-py imports the SDK wherever that is installed, to measure itself if it is ever told to: 50 ms and 5 MB a process.
"""

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

_UNUSED: Final = "opentelemetry"


@contextmanager
def _without(package: str) -> Iterator[None]:
    """Inside the block it cannot be imported; nothing is changed where it is in use already."""
    hidden = package not in sys.modules
    if hidden:
        sys.modules[package] = None  # type: ignore[assignment]  # so the language has it: importing it fails
    try:
        yield
    finally:
        if hidden:
            del sys.modules[package]


with _without(_UNUSED):
    from redis import Redis as BlockingRedis
    from redis.asyncio import BlockingConnectionPool, Redis
    from redis.asyncio.retry import Retry
    from redis.backoff import NoBackoff
    from redis.exceptions import RedisError, ResponseError

__all__ = [
    "BlockingConnectionPool",
    "BlockingRedis",
    "NoBackoff",
    "Redis",
    "RedisError",
    "ResponseError",
    "Retry",
]
