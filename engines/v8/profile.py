"""What a Node or Deno process may ask of the kernel."""

import os

from engines.seccomp import EPERM, ERRNO, OWN_PID, Argument, Profile

_REFUSED = ERRNO | EPERM
_WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND | 0o20000000  # __O_TMPFILE
_NEW_THREAD = (0x3D0F00, 0x7D0F00)  # all that pthread_create asks of clone, with glibc and with musl
_DUPFD, _GETFD, _SETFD, _GETFL, _SETFL, _DUPFD_CLOEXEC = 0, 1, 2, 3, 4, 1030
_FIONBIO, _FIONREAD, _FIOCLEX, _TCGETS, _TIOCGWINSZ = 0x5421, 0x541B, 0x5451, 0x5401, 0x5413
_PR_SET_NAME, _PR_GET_NAME, _PR_SET_VMA = 15, 16, 0x53564D41

PROFILE = Profile(
    allow="""
        futex read write epoll_wait epoll_pwait epoll_pwait2 clock_gettime madvise mmap munmap mprotect mremap brk
        readv writev recvfrom sendto recvmsg sendmsg poll ppoll select pselect6 epoll_ctl sched_yield
        clock_nanosleep nanosleep clock_getres gettimeofday time getrandom getrusage times getrlimit
        rt_sigaction rt_sigprocmask rt_sigreturn sigaltstack restart_syscall
        close fstat newfstatat stat lstat statx readlink readlinkat access faccessat faccessat2 getcwd lseek pread64
        pipe2 eventfd2 epoll_create1 getsockname getsockopt setsockopt getpeername shutdown
        getpid gettid getppid getuid geteuid getgid getegid getgroups capget uname sysinfo getcpu
        sched_getaffinity sched_getscheduler sched_getparam
        set_tid_address set_robust_list rseq arch_prctl execve exit exit_group
    """,
    allow_if={
        "openat": Argument(2, without=_WRITING, otherwise=_REFUSED),
        "open": Argument(1, without=_WRITING, otherwise=_REFUSED),
        "clone": Argument(0, among=_NEW_THREAD, otherwise=_REFUSED),
        "tgkill": Argument(0, among=(OWN_PID,), otherwise=_REFUSED),
        "socketpair": Argument(0, among=(1,), otherwise=_REFUSED),  # AF_UNIX
        "prlimit64": Argument(0, among=(0,), otherwise=_REFUSED),
        "fcntl": Argument(1, among=(_GETFL, _SETFL, _GETFD, _SETFD, _DUPFD_CLOEXEC, _DUPFD), otherwise=_REFUSED),
        "ioctl": Argument(1, among=(_FIONBIO, _FIONREAD, _FIOCLEX, _TCGETS, _TIOCGWINSZ), otherwise=_REFUSED),
        "prctl": Argument(0, among=(_PR_SET_NAME, _PR_GET_NAME, _PR_SET_VMA), otherwise=_REFUSED),
    },
    deny="""
        socket connect bind listen accept accept4 sendmmsg recvmmsg
        kill tkill wait4 waitid fork vfork pidfd_open execveat setsid setpgid getpgid getpgrp getsid
        getresuid getresgid setpriority getpriority sched_setaffinity sched_setparam sched_setscheduler setrlimit
        io_uring_setup io_uring_enter io_uring_register memfd_create inotify_init1 inotify_add_watch inotify_rm_watch
        timerfd_create signalfd4 dup dup2 dup3 pipe eventfd epoll_create
        mkdir mkdirat rmdir unlink unlinkat rename renameat renameat2 link linkat symlink symlinkat creat
        chmod fchmod fchmodat chown lchown fchown fchownat truncate ftruncate fallocate utimensat umask
        chdir fchdir getdents64 statfs fstatfs pwrite64 flock fsync fdatasync sendfile copy_file_range
        pkey_alloc pkey_free pkey_mprotect mlock mlock2 munlock mincore membarrier msync get_mempolicy setitimer
    """,
    absent="clone3 openat2",
    makes_code=True,
)
"""For Node and Deno, from the execve that starts them: memory, threads, one connected socket, files read-only.

`execve` and reading files stay, because the loader comes after the filter: which files there are is for the root and
for landlock to say. `clone3` hides its flags behind a pointer. Processes and sockets are refused and not deadly:
ordinary libraries try them. What only an attacker does (ptrace, mount, bpf, setuid, …) kills.
"""
