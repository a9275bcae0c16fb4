"""What is known of buckets and objects."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime

from server.events.json_text import Json


@dataclass(frozen=True, slots=True, kw_only=True)
class Bucket:
    name: str
    public: bool  # an anon key may read its objects
    created_at: datetime
    updated_at: datetime


@dataclass(frozen=True, slots=True, kw_only=True)
class StoredObject:
    bucket: str
    path: str
    size_bytes: int
    content_type: str
    checksum: str  # SHA-256 of the content in hexadecimal
    metadata: Json
    created_at: datetime
    updated_at: datetime

    @property
    def etag(self) -> str:
        """Of the content, strong, in quotes as HTTP wants it."""
        return f'"{self.checksum}"'


@dataclass(frozen=True, slots=True)
class Slice:
    """Bytes of a content: `length` of them from `offset`."""

    offset: int
    length: int

    def within(self, size_bytes: int) -> "Slice":
        """What of it there is in a content of that size."""
        offset = min(self.offset, size_bytes)
        return Slice(offset, min(self.length, size_bytes - offset))


@dataclass(frozen=True, slots=True)
class ObjectPage:
    objects: Sequence[StoredObject]
    next_page_token: str  # empty on the last page
