"""Whether a text is JSON, when it may be large and hostile and nobody needs its value.

Parsers that build the value take half a second of the event loop for 5 MB of `[],[],[],…`, and hold the interpreter's
lock meanwhile, so that a thread does not help. SQLite's validator works without that lock: texts above LARGE_BYTES go
there, in a thread.
"""

import asyncio
import sqlite3
from contextlib import closing
from typing import Final

LARGE_BYTES: Final = 64 * 1024


async def is_json(text: bytes) -> bool:
    """Whether it is one JSON text (RFC 8259) in UTF-8. Escaped lone surrogates are JSON; raw ones are not UTF-8."""
    return await asyncio.to_thread(_is_json, text)


def _is_json(text: bytes) -> bool:
    try:
        text.decode()
    except UnicodeDecodeError:
        return False
    if b"\0" in text:  # the end of a text for SQLite
        return False
    with closing(sqlite3.connect(":memory:")) as database:
        (verdict,) = database.execute("SELECT json_valid(CAST(? AS TEXT))", (text,)).fetchone()
        return bool(verdict)
