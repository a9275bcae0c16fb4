"""What a run may tell beside its value: log lines and headers, and how much of them.

Imports nothing but `re`: children check by it what their guests say, as their supervisor checks what they say.
"""

import re
from typing import Final

MAX_TOLD_BYTES: Final = 1024 * 1024
"""Of all that a frame tells beside a value or arguments: logs, every byte of them escaped, headers and an error."""

MAX_HEADERS: Final = 256
MAX_LOG_LINES: Final = 4 * 1024
"""Of one run: 64 KiB, of which the child counts 16 bytes for every line."""

MOST: Final = 2**53
LEVELS: Final = frozenset({"debug", "info", "log", "warn", "error"})

_TOKEN: Final = re.compile(r"[!#$%&'*+.^_`|~0-9a-z-]{1,256}")
_CONTROL: Final = re.compile(r"[\x00-\x08\x0a-\x1f\x7f]")


def is_header(name: str, value: str) -> bool:
    """A name in lower case, and a value that ends no line."""
    return _TOKEN.fullmatch(name) is not None and _CONTROL.search(value) is None


def is_status(status: object) -> bool:
    """Of a Response."""
    return type(status) is int and 200 <= status <= 599
