"""What a guest says of itself: taken apart, and put together again as ours would say it.

Whatever stands in a frame beside it is the host's own word, so a guest's text is never put there as it came: one that
owns its engine's memory would close our object and go on with figures of its own.
"""

import json
from binascii import Error as NotBase64
from binascii import a2b_base64

from engines.told import LEVELS, MAX_HEADERS, MAX_LOG_LINES, MAX_TOLD_BYTES, MOST, is_header, is_status


class Lie(ValueError):
    """No guest of ours says that."""


def logs(text: bytes) -> str:
    """`[[level,text,at_us],…],"truncated":…`, the inside of an object from the value of its key "logs" on."""
    match _parsed(b'{"logs":%s}' % text):
        case {"logs": list(lines), "truncated": bool(truncated)} if len(lines) <= MAX_LOG_LINES:
            kept = _told([_line(line) for line in lines])
            return f'{kept},"truncated":{"true" if truncated else "false"}'
    raise Lie


def head(text: bytes) -> str:
    """Of a Response: `{"status","headers"}`."""
    match _parsed(text):
        case {"status": status, "headers": list(pairs)} if is_status(status) and len(pairs) <= MAX_HEADERS:
            return _told({"status": status, "headers": [_header(pair) for pair in pairs]})
    raise Lie


def body(tagged: bytes) -> bytes:
    """Of a Response: "t" and a text, or "b" and base64."""
    try:
        return tagged[1:] if tagged[:1] == b"t" else a2b_base64(tagged[1:])
    except NotBase64 as why:
        raise Lie from why


def error(text: bytes) -> tuple[str, str, str, str | None]:
    """Name, message, stack and code."""
    match _parsed(text):
        case {"name": str(name), "message": str(message), "stack": str(stack), **more}:
            code = more.get("code")
            if code is None or isinstance(code, str):
                return name, message, stack, code
    raise Lie


def _line(line: object) -> object:
    match line:
        case [level, str(), int(at_us) | float(at_us)] if level in LEVELS and 0 <= at_us <= MOST:
            return line
    raise Lie


def _header(pair: object) -> object:
    match pair:
        case [str(name), str(value)] if is_header(name, value):
            return pair
    raise Lie


def _parsed(text: bytes) -> object:
    if len(text) > MAX_TOLD_BYTES:
        raise Lie
    try:
        return json.loads(text.decode("utf-8", "replace"))
    except (ValueError, RecursionError) as why:
        raise Lie from why


def _told(value: object) -> str:
    return json.dumps(value, ensure_ascii=False, separators=(",", ":"))
