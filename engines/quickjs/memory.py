"""The memory limit of one worker, as the operating system sees it: the engine's own limit is set in realm."""

from resource import RLIMIT_AS, RUSAGE_SELF, getpagesize, getrusage, setrlimit

HEADROOM_BYTES = 64 * 1024 * 1024  # of address space beside the heap: one frame in, one out, and their texts
_FULL = 0.75
_GROWTH_FAULTS = 128


def address_space_bytes() -> int:
    """What this process has mapped. Needs /proc, so call it before the jail closes."""
    with open("/proc/self/statm", "rb") as statm:  # noqa: PTH123
        return int(statm.read().split()[0]) * getpagesize()


class MemoryLimit:
    """`limit_bytes` of heap on top of a blank worker, which had `blank_bytes` of address space."""

    def __init__(self, limit_bytes: int, blank_bytes: int) -> None:
        self.limit_bytes = limit_bytes
        self._full_rss_bytes = _peak_rss_bytes() + int(_FULL * limit_bytes)
        most_bytes = blank_bytes + limit_bytes + HEADROOM_BYTES
        setrlimit(RLIMIT_AS, (most_bytes, most_bytes))

    def is_full(self, heap_bytes: int) -> bool:
        """Whether a heap of so many bytes is near the limit."""
        return heap_bytes >= _FULL * self.limit_bytes

    def was_full(self, faults_before: int) -> bool:
        """Whether the heap came near the limit: resident memory once did, and memory was taken since `page_faults`."""
        return _peak_rss_bytes() >= self._full_rss_bytes and page_faults() - faults_before >= _GROWTH_FAULTS


def page_faults() -> int:
    """How often this process has touched a page for the first time."""
    return getrusage(RUSAGE_SELF).ru_minflt


def _peak_rss_bytes() -> int:
    return getrusage(RUSAGE_SELF).ru_maxrss * 1024
