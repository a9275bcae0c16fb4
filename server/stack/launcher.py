"""A child program: becomes the part. It takes the part's account and limits, ties its life to ours, and executes it.

    python -I -S launcher.py DEATH_SIGNAL PARENT_PID UID:GID|- DATA_BYTES|- PROGRAM ARGUMENT…

It is a program of its own because a change of user clears the death signal, so that both have to be done in the child,
and Python code between fork and exec is not safe once the parent has threads.
"""

import ctypes
import os
import resource
import sys

PR_SET_PDEATHSIG = 1


def main() -> None:
    death_signal, parent, account, data_bytes, *argv = sys.argv[1:]
    if data_bytes != "-":
        _, most = resource.getrlimit(resource.RLIMIT_DATA)
        limit = int(data_bytes) if most == resource.RLIM_INFINITY else min(int(data_bytes), most)
        resource.setrlimit(resource.RLIMIT_DATA, (limit, limit))
    if account != "-":
        uid, gid = (int(number) for number in account.split(":"))
        os.setgroups([])
        os.setgid(gid)
        os.setuid(uid)
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, int(death_signal), 0, 0, 0)
    if os.getppid() != int(parent):
        sys.exit("whoever started this is gone")
    try:
        os.execv(argv[0], argv)  # noqa: S606 - no shell is meant
    except OSError as why:
        sys.exit(f"cannot run {argv[0]}: {why.strerror}")


if __name__ == "__main__":
    main()
