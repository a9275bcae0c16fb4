"""The processor time of another process."""

import time

_OF_PROCESS = 2  # CPUCLOCK_SCHED; how a clock's number is made of a pid is part of the kernel's interface


def cpu_ms(pid: int) -> float:
    """All that the threads of `pid` have used, to the microsecond; 0 if it is gone. Takes about 1 µs."""
    try:
        return time.clock_gettime(~pid << 3 | _OF_PROCESS) * 1000
    except OSError:
        return 0.0
