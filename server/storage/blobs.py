"""Where contents are kept, by project and SHA-256. What a store promises:

    write    durable when it returns; writing the same again, at the same time too, changes nothing
    read     the whole content, or None when it is not there whole and true; of a slice, the bytes are not hashed
    remove   gone when it returns; of what is not there, nothing

Names come from us alone: a UUID and a hash. BlobsUnavailable when the store is away or full; nothing else is raised
for reasons outside of this program.
"""

from collections.abc import Collection
from typing import Protocol

from server.storage.records import Slice


class BlobsUnavailable(Exception):
    """The store cannot be used now; the message is for operators."""


class Blobs(Protocol):
    async def start(self) -> None:
        """Make what the store needs; idempotent."""
        ...

    async def write(self, project_id: str, sha256: str, data: bytes) -> None: ...

    async def read(self, project_id: str, sha256: str, size_bytes: int, part: Slice | None = None) -> bytes | None:
        """`size_bytes` is the content's, `part` lies in it."""
        ...

    async def remove(self, project_id: str, sha256s: Collection[str]) -> None: ...
