"""Namespaces and a file system with nothing in it, or next to nothing.

What is in force afterwards is stated as "on" or a name, else "off: ERRNO": every layer is tried on its own, because
containers, kernels and security modules each refuse a different one.
"""

import errno
import os
from collections.abc import Callable

from engines import linux

_KINDS = {
    "netns": linux.CLONE_NEWNET,
    "ipcns": linux.CLONE_NEWIPC,
    "utsns": linux.CLONE_NEWUTS,
    "mountns": linux.CLONE_NEWNS,
    "cgroupns": linux.CLONE_NEWCGROUP,
    "pidns": linux.CLONE_NEWPID,
}

_ST_RELATIME = 4096
_KEPT_MOUNT_FLAGS = linux.MS_NODEV | linux.MS_NOEXEC | 1024 | 2048  # these, and noatime, are numbered as statvfs does


def refusal(why: OSError) -> str:
    return f"off: {errno.errorcode.get(why.errno or 0, str(why))}"


def enter(uids: range) -> dict[str, str]:
    """Leave the namespaces we were born in; the process forked next is pid 1 of a new pid namespace.

    Without CAP_SYS_ADMIN a user namespace is entered first, in which `uids` exist too if we may map them. Call while
    single-threaded and before the first child.
    """
    states = {"userns": "off: not needed"}
    if not linux.has_capability(linux.CAP_SYS_ADMIN):
        states["userns"] = attempt(lambda: _enter_user_namespace(uids))
    for name, flag in _KINDS.items():
        states[name] = attempt(lambda flag=flag: linux.unshare(flag))  # type: ignore[misc]
    return states


def _enter_user_namespace(uids: range) -> None:
    uid, gid = os.getuid(), os.getgid()
    can_map_ranges = linux.has_capability(linux.CAP_SETUID) and linux.has_capability(linux.CAP_SETGID)
    if 0 in (uid, gid) and not linux.has_capability(linux.CAP_SETFCAP):
        raise PermissionError(errno.EPERM, "mapping root needs CAP_SETFCAP")
    if not (can_map_ranges and maps(uids)):
        linux.unshare(linux.CLONE_NEWUSER)
        _write("/proc/self/setgroups", "deny")
        _write("/proc/self/uid_map", f"{uid} {uid} 1")
        _write("/proc/self/gid_map", f"{gid} {gid} 1")
        return
    # Only a process outside, with our present capabilities, may map more than ourselves.
    inside_read, inside_write = os.pipe()
    writer = os.fork()
    if writer == 0:
        failed = 1
        try:
            os.close(inside_write)
            if os.read(inside_read, 1):
                parent = f"/proc/{os.getppid()}"
                _write(f"{parent}/uid_map", f"{uid} {uid} 1\n{uids.start} {uids.start} {len(uids)}")
                _write(f"{parent}/gid_map", f"{gid} {gid} 1\n{uids.start} {uids.start} {len(uids)}")
                failed = 0
        finally:
            os._exit(failed)
    try:
        linux.unshare(linux.CLONE_NEWUSER)
        os.write(inside_write, b"!")
    finally:
        os.close(inside_read)
        os.close(inside_write)
        failed = os.waitstatus_to_exitcode(os.waitpid(writer, 0)[1])
    if failed:
        raise PermissionError(errno.EPERM, "entered a user namespace, but could not map users into it")


def maps(uids: range) -> bool:
    """Whether every user and group id of `uids` exists in our user namespace."""

    def covered(path: str) -> bool:
        with open(path) as table:  # noqa: PTH123 - pathlib would double the memory of the zygote
            ranges = [tuple(map(int, line.split())) for line in table]
        return any(first <= uids.start and uids.stop <= first + count for first, _, count in ranges)

    return covered("/proc/self/uid_map") and covered("/proc/self/gid_map")


def empty_root(*, own_mounts: bool) -> str:
    """Make `/` empty: "empty_tmpfs" if the mount namespace is our own, else "chroot", else "off: ERRNO"."""
    for name, step in (("empty_tmpfs", _pivot_to_tmpfs), ("chroot", _chroot_to_deleted_directory)):
        if name == "empty_tmpfs" and not own_mounts:
            continue
        state = attempt(step)
        if state == "on":
            return name
    return state


def root_of(files: tuple[str, ...], links: dict[str, str], *, own_mounts: bool) -> str:
    """Make `/` hold `files`, read-only, each at its path, and `links` to them: "files_only", or "off: ERRNO"."""
    if not own_mounts:
        return "off: no mountns"
    state = attempt(lambda: _pivot_to_tmpfs(files, links))
    return "files_only" if state == "on" else state


def _pivot_to_tmpfs(files: tuple[str, ...] = (), links: dict[str, str] | None = None) -> None:
    linux.mount(None, b"/", None, linux.MS_REC | linux.MS_PRIVATE)
    options = linux.MS_NOSUID | linux.MS_NODEV | linux.MS_NOEXEC
    inodes = 1 + sum(path.count("/") for path in (*files, *(links or ())))
    linux.mount(b"tmpfs", b"/proc", b"tmpfs", options, f"size=4k,nr_inodes={inodes},mode=0555".encode())
    for path in files:
        _show(path, under="/proc")
    for path, target in (links or {}).items():
        os.makedirs("/proc" + path.rpartition("/")[0], 0o555, exist_ok=True)  # noqa: PTH103
        os.symlink(target, "/proc" + path)  # noqa: PTH211
    os.chdir("/proc")
    linux.pivot_root(b".", b".")
    linux.unmount(b".", linux.MNT_DETACH)
    os.chdir("/")
    linux.mount(None, b"/", None, options | linux.MS_REMOUNT | linux.MS_RDONLY)


def _show(path: str, *, under: str) -> None:
    target = under + path
    os.makedirs(target.rpartition("/")[0], 0o555, exist_ok=True)  # noqa: PTH103
    os.close(os.open(target, os.O_CREAT | os.O_EXCL, 0o444))
    source, place = os.fsencode(path), os.fsencode(target)
    linux.mount(source, place, None, linux.MS_BIND)
    inherited = os.statvfs(path).f_flag  # a user namespace may add to them, and take none away
    kept = inherited & _KEPT_MOUNT_FLAGS | (linux.MS_RELATIME if inherited & _ST_RELATIME else 0)
    flags = kept | linux.MS_BIND | linux.MS_REMOUNT | linux.MS_RDONLY | linux.MS_NOSUID
    linux.mount(None, place, None, flags)


def _chroot_to_deleted_directory() -> None:
    if not linux.has_capability(linux.CAP_SYS_CHROOT):
        raise PermissionError(errno.EPERM, "no CAP_SYS_CHROOT")
    name = f"atlas-root-{os.getpid()}-{os.urandom(8).hex()}"
    os.chdir("/tmp")  # noqa: S108 - the name is random and the directory gone before anything runs
    parent = os.open(".", os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.mkdir(name, 0o500)  # noqa: PTH102
        try:
            os.chdir(name)
            os.chroot(".")
        finally:
            os.rmdir(name, dir_fd=parent)
    finally:
        os.close(parent)


def _write(path: str, text: str) -> None:
    descriptor = os.open(path, os.O_WRONLY)
    try:
        os.write(descriptor, text.encode())
    finally:
        os.close(descriptor)


def attempt(step: Callable[[], None]) -> str:
    """Take one step: "on", or what refused it."""
    try:
        step()
    except OSError as why:
        return refusal(why)
    return "on"
