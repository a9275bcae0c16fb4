"""What a child's resident memory says of it: a backstop against memory that no other limit sees."""

import os
from enum import Enum
from pathlib import Path
from typing import Final

SLACK_BYTES: Final = 72 * 1024 * 1024  # over base and limit; RLIMIT_AS or RLIMIT_DATA act long before
_PAGE_BYTES: Final = os.sysconf("SC_PAGE_SIZE")


class Weight(Enum):
    FINE = "fine"
    GROWN = "grown"  # not to be used again after its run: half of its limit is more than it should keep
    FAR_OVER = "far over"  # to be ended now


def weigh(pid: int, limit_bytes: int, base_bytes: int) -> Weight:
    """20 µs. A process that is gone is fine. See Kind for the base."""
    rss_bytes = resident_bytes(pid)
    if rss_bytes > base_bytes + limit_bytes + SLACK_BYTES:
        return Weight.FAR_OVER
    return Weight.GROWN if rss_bytes > base_bytes + limit_bytes // 2 else Weight.FINE


def resident_bytes(pid: int) -> int:
    """The process's resident memory; 0 if it is gone."""
    try:
        return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * _PAGE_BYTES
    except (OSError, IndexError):
        return 0
