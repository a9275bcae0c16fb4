"""A child program: becomes the part. It takes the part's account, ties its life to ours, and executes it.

    python -I -S launcher.py DEATH_SIGNAL PARENT_PID UID:GID|- PROGRAM ARGUMENT…

It is a program of its own because a change of user clears the death signal, so that both have to be done in the child,
and Python code between fork and exec is not safe once the parent has threads.
"""

import ctypes
import os
import sys

PR_SET_PDEATHSIG = 1


def main() -> None:
    death_signal, parent, account, *argv = sys.argv[1:]
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
