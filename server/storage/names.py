"""What callers may call things, and say of them: the clean value, or InvalidArgument that names field and rule.

A path has one spelling: segments with `/` between them, in Unicode's form C, none empty, `.` or `..`. It is a name and
nothing else; no path of a file system is made of it.
"""

import re
import unicodedata
from collections.abc import Iterable
from typing import Final
from urllib.parse import unquote_to_bytes

import orjson

from server.errors import InvalidArgument
from server.events.json_text import Json, JsonError, read
from server.fields import shown

MAX_BUCKET_CHARS: Final = 63
MAX_PATH_BYTES: Final = 1024
MAX_CONTENT_TYPE_CHARS: Final = 255
MAX_METADATA_BYTES: Final = 4096
MAX_METADATA_DEPTH: Final = 8
MAX_METADATA_VALUES: Final = 100
"""Each costs a microsecond of the event loop, in a list of 200 objects too."""

DEFAULT_CONTENT_TYPE: Final = "application/octet-stream"

_BUCKET: Final = re.compile(rf"[a-z0-9][a-z0-9_-]{{0,{MAX_BUCKET_CHARS - 1}}}")
_BAD_ESCAPE: Final = re.compile(r"%(?![0-9A-Fa-f]{2})")
_MEDIA_TYPE: Final = re.compile(r"[!#$&^_.+0-9a-z-]+/[!#$&^_.+0-9a-z-]+", re.IGNORECASE)
_PARAMETERS: Final = re.compile(r"[ -~]*")
_UNPRINTABLE: Final = frozenset(("Cc", "Cs", "Zl", "Zp"))
_REORDERING: Final = frozenset("\u061c\u200e\u200f\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069")
"""They make a name look like another one."""


def parse_bucket(field: str, value: str) -> str:
    """1 to 63 lower-case letters, digits, hyphens and underscores, the first one a letter or digit."""
    if not _BUCKET.fullmatch(value):
        raise InvalidArgument(
            field,
            f"{field} is {shown(value)}; it must be 1 to {MAX_BUCKET_CHARS} lower-case letters, digits, - and _,"
            " and begin with a letter or digit",
            value=value[:100],
        )
    return value


def parse_path(field: str, value: str) -> str:
    """The name of an object in its bucket: 1 to 1,024 bytes of UTF-8 in its one spelling."""
    if not value:
        raise InvalidArgument(field, f"{field} is missing; it must have 1 to {MAX_PATH_BYTES} bytes")
    _require_text(field, value)
    for segment in value.split("/"):
        if segment in ("", ".", ".."):
            raise _refused(field, value, f"none of its segments may be {'empty' if not segment else shown(segment)}")
    return value


def parse_prefix(field: str, value: str) -> str:
    """What paths begin with: any beginning of a path, so the last segment may be cut; empty for all."""
    if value:
        _require_text(field, value)
    return value


def path_of_url(field: str, raw: str) -> str:
    """The path in a URL, decoded once. InvalidArgument for what has more than one reading: an encoded slash, an escape
    that is none, bytes that are no UTF-8."""
    if _BAD_ESCAPE.search(raw):
        raise _refused(field, raw, "a % in a URL must be followed by two hexadecimal digits; write %25 for itself")
    segments = [unquote_to_bytes(segment.encode("utf-8", "surrogatepass")) for segment in raw.split("/")]
    if any(b"/" in segment for segment in segments):
        raise _refused(field, raw, "a slash in it must not be encoded: it separates segments")
    try:
        return b"/".join(segments).decode()
    except UnicodeDecodeError:
        raise _refused(field, raw, "it must be UTF-8, percent-encoded in a URL") from None


def parse_content_type(field: str, value: str) -> str:
    """A media type with parameters, as it was written; `application/octet-stream` when empty."""
    text = value.strip()
    if not text:
        return DEFAULT_CONTENT_TYPE
    media_type, _, parameters = text.partition(";")
    if (
        len(text) > MAX_CONTENT_TYPE_CHARS
        or not _MEDIA_TYPE.fullmatch(media_type.strip())
        or not _PARAMETERS.fullmatch(parameters)
    ):
        raise InvalidArgument(
            field,
            f"{field} is {shown(text)}; it must be a media type such as image/png, at most"
            f" {MAX_CONTENT_TYPE_CHARS} characters",
            value=text[:100],
        )
    if media_type.strip().lower() == "multipart/form-data":
        raise InvalidArgument(
            field,
            f"{field} is multipart/form-data, which is a form and not a file: send the file's bytes as the body",
            reason="FORM_NOT_TAKEN",
        )
    return text


def parse_metadata(field: str, raw: bytes) -> Json:
    """A JSON object of at most 4,096 bytes and 100 values, nested at most 8 deep; `{}` when empty."""
    if len(raw) > MAX_METADATA_BYTES:
        raise InvalidArgument(
            field,
            f"{field} has {len(raw)} bytes as JSON; at most {MAX_METADATA_BYTES} are allowed",
            used=str(len(raw)),
            allowed=str(MAX_METADATA_BYTES),
        )
    try:
        found = read(raw or b"{}")
        orjson.loads(found.text)
    except (JsonError, orjson.JSONDecodeError) as why:
        raise InvalidArgument(field, f"{field} is not JSON: {why}") from None
    if not isinstance(found.value, dict):
        raise InvalidArgument(field, f"{field} must be a JSON object")
    if _deeper(found.value, MAX_METADATA_DEPTH):
        raise InvalidArgument(field, f"{field} is nested deeper than {MAX_METADATA_DEPTH} levels")
    if (values := _values(found.value)) > MAX_METADATA_VALUES:
        raise InvalidArgument(
            field,
            f"{field} has {values} values; at most {MAX_METADATA_VALUES} are allowed",
            used=str(values),
            allowed=str(MAX_METADATA_VALUES),
        )
    return found


def after_prefix(prefix: str) -> str | None:
    """The first text that is behind all texts with that beginning, in the order of code points; None for the end."""
    for length in range(len(prefix), 0, -1):
        point = ord(prefix[length - 1])
        if point < 0x10FFFF:
            following = 0xE000 if point == 0xD7FF else point + 1
            return prefix[: length - 1] + chr(following)
    return None


def _require_text(field: str, value: str) -> None:
    try:
        size = len(value.encode())
    except UnicodeEncodeError:
        raise _refused(field, value, "it has half of a surrogate pair") from None
    if size > MAX_PATH_BYTES:
        raise InvalidArgument(
            field,
            f"{field} has {size} bytes as UTF-8; at most {MAX_PATH_BYTES} are allowed",
            used=str(size),
            allowed=str(MAX_PATH_BYTES),
        )
    for place, char in enumerate(value):
        if char == "\\" or char in _REORDERING or unicodedata.category(char) in _UNPRINTABLE:
            raise _refused(field, value, f"the character U+{ord(char):04X} at position {place} is not allowed")
    if not unicodedata.is_normalized("NFC", value):
        raise _refused(field, value, 'it must be in Unicode\'s form C, as String.normalize("NFC") makes it')


def _refused(field: str, value: str, rule: str) -> InvalidArgument:
    quoted = shown(value.encode("utf-8", "replace").decode())
    return InvalidArgument(field, f"{field} is {quoted}; {rule}", value=value[:100].encode("utf-8", "replace").decode())


def _inside(value: object) -> Iterable[object]:
    return value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()


def _deeper(value: object, levels: int) -> bool:
    return (levels == 0 and isinstance(value, dict | list)) or any(_deeper(item, levels - 1) for item in _inside(value))


def _values(value: object) -> int:
    """How many lie in it, at any depth."""
    return sum(1 + _values(item) for item in _inside(value))
