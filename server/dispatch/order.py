"""The text of an order key: deliveries of one trigger with the same text run in the order of the stream.

    at the path                      the key
    a string                         as it is
    a number                         in decimal: 1, 1.0 and 1e0 are one key
    true, false                      true, false
    an array or an object            its JSON without spaces, names sorted
    null, or nothing                 none: the delivery waits for no other, and no other for it

A key that is longer than MAX_CHARS, empty, or holds what Postgres cannot store is told apart by its SHA-256. A string
and a number of the same spelling are one key.
"""

import hashlib
import json
from decimal import Decimal
from typing import Final

from server.triggers.definition import Trigger
from server.triggers.paths import MISSING, Envelope, Path, resolve
from server.triggers.patterns import CRON
from server.triggers.schedule import Overlap
from server.triggers.values import number

MAX_CHARS: Final = 128
TICKS: Final[Path] = ("trigger_id",)


def order_path(trigger: Trigger) -> Path | None:
    """Where its events have their key. Ticks of a schedule with overlap queue have one and the same: the trigger."""
    if trigger.event_type == CRON and trigger.config.get("overlap") == Overlap.QUEUE:
        return TICKS
    return trigger.order_key


def order_key(path: Path, event: Envelope) -> str | None:
    """The key of an event, or None. Never raises."""
    value = resolve(path, event)
    if value is None or value is MISSING:
        return None
    text = _text(value)
    if 1 <= len(text) <= MAX_CHARS and ((text.isascii() and text.isprintable()) or _storable(text)):
        return text
    return "sha256:" + hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()


def _text(value: object) -> str:
    if isinstance(value, str):
        return value
    if isinstance(value, bool):
        return "true" if value else "false"
    exact = number(value)
    if isinstance(exact, Decimal):
        return format(exact.normalize(), "f") if exact.is_finite() and abs(exact.adjusted()) < MAX_CHARS else str(exact)
    if exact is not None:
        return str(exact) if abs(exact) < 10**MAX_CHARS else hex(exact)
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False)


def _storable(text: str) -> bool:
    return "\0" not in text and not any("\ud800" <= char <= "\udfff" for char in text)
