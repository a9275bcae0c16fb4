"""Pages of a list in key order, newest first: an item inserted meanwhile never moves or repeats another.

A page token is the place of the last item shown, bound to its list by a checksum. It is opaque, not secret: every
query filters by project whatever the token says.

    base64url of:  i64 order · 16 bytes id · 8 bytes SHA-256(list name · order · id)
"""

import base64
import binascii
import hashlib
import itertools
import struct
import uuid
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Final, Generic, TypeVar

from server.errors import InvalidArgument

DEFAULT_SIZE: Final = 50
MAX_SIZE: Final = 200
MAX_BYTES: Final = 2 * 1024 * 1024
"""Of a page whose items may be large, so that it fits into a message whatever they hold."""


T = TypeVar("T")

_PLACE: Final = struct.Struct(">q16s")
_CHECK_BYTES: Final = 8
_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)


@dataclass(frozen=True, slots=True)
class Page(Generic[T]):
    items: Sequence[T]
    next_page_token: str  # empty on the last page


@dataclass(frozen=True, slots=True, order=True)
class Place:
    """Where a page ended. `order` is what the list is sorted by, `id` breaks ties."""

    order: int
    id: str

    @property
    def moment(self) -> datetime:
        """`order` of a list sorted by time. InvalidArgument for one that is no time, as only a forged token has."""
        try:
            return _EPOCH + timedelta(microseconds=self.order)
        except OverflowError:
            raise _bad() from None


END: Final = Place(2**63 - 1, "ffffffff-ffff-ffff-ffff-ffffffffffff")
"""Before the first item of a list that is sorted by a number, newest first."""

EARLIEST: Final = Place(0, "00000000-0000-0000-0000-000000000000")
"""Before the first item of a list that is sorted by time, oldest first."""

LATEST: Final = Place(
    (datetime(9999, 1, 1, tzinfo=UTC) - _EPOCH) // timedelta(microseconds=1), "ffffffff-ffff-ffff-ffff-ffffffffffff"
)
"""Before the first item of a list that is sorted by time, newest first."""


def at(moment: datetime, item_id: str) -> Place:
    """The place of an item in a list sorted by time."""
    return Place((moment - _EPOCH) // timedelta(microseconds=1), item_id)


@dataclass(frozen=True, slots=True)
class Request:
    """A checked page request: fetch up to `size + 1` items after `after` and let `page` cut them."""

    name: str
    size: int
    after: Place

    def page(
        self, items: Sequence[T], place: Callable[[T], Place], *, weigh: Callable[[T], int] = lambda _: 0
    ) -> Page[T]:
        """Up to `size` of them; fewer when more than MAX_BYTES, by `weigh`, would come together, but never none."""
        shown = items[: self.size]
        weights = itertools.accumulate(weigh(item) for item in shown)
        fitting = sum(weight <= MAX_BYTES for weight in weights)
        shown = shown[: max(1, fitting)]
        return Page(shown, self.token(place(shown[-1])) if len(shown) < len(items) else "")

    def token(self, place: Place) -> str:
        """By which the caller goes on after that place."""
        return _token(self.name, place)


def before(moment: datetime) -> Place:
    """After everything of that moment and later in a list that is newest first; before it in one that is not."""
    return at(moment, EARLIEST.id)


def request(
    name: str, page_size: int, page_token: str, *, first: Place = LATEST, until: datetime | None = None
) -> Request:
    """Check what the caller sent for the list `name`; the name includes whose list it is. One that is newest first
    begins before `until`: as a condition of its query that would be a walk through all that is newer.

    InvalidArgument for a size outside 0..200 (0 is 50) and for a token of another list or of nobody.
    """
    if not 0 <= page_size <= MAX_SIZE:
        raise InvalidArgument(
            "page_size",
            f"page_size is {page_size}; it must be 1 to {MAX_SIZE}, or 0 for {DEFAULT_SIZE}",
            value=str(page_size),
            allowed=str(MAX_SIZE),
        )
    after = _place(name, page_token) if page_token else first
    return Request(name, page_size or DEFAULT_SIZE, after if until is None else min(after, before(until)))


def _token(name: str, place: Place) -> str:
    packed = _PLACE.pack(place.order, uuid.UUID(place.id).bytes)
    return base64.urlsafe_b64encode(packed + _check(name, packed)).decode().rstrip("=")


def _place(name: str, token: str) -> Place:
    try:
        raw = base64.b64decode(token + "=" * (-len(token) % 4), altchars=b"-_", validate=True)
    except (binascii.Error, ValueError):
        raise _bad() from None
    packed, check = raw[: _PLACE.size], raw[_PLACE.size :]
    if len(packed) != _PLACE.size or check != _check(name, packed):
        raise _bad()
    order, item_id = _PLACE.unpack(packed)
    return Place(order, str(uuid.UUID(bytes=item_id)))


def _bad() -> InvalidArgument:
    return InvalidArgument("page_token", "page_token is not one that this list gave out; start again without it")


def _check(name: str, packed: bytes) -> bytes:
    return hashlib.sha256(name.encode() + b"\0" + packed).digest()[:_CHECK_BYTES]
