"""The jail: its layers, in the only order that works, and the report of what is in force.

    Jail.enter()        once, in the process about to fork the zygote   namespaces
    jail.close()        once, in the zygote                             root, privileges, landlock
    jail.lock_worker()  in every worker, last before hostile code       uid, capabilities, limits, seccomp

`layers` maps a layer to "on" or what it became ("abi7", "empty_tmpfs", "per-worker"), or "off: why". What it says is on
is on in every worker, or that worker does not run: `lock_worker` raises instead. Only seccomp is mandatory, because
nothing gets past it alone; whoever launches a zygote refuses to go on without it. All the others are depth.
"""

import errno
import functools
import os
import resource
import signal

from engines import landlock, linux, namespaces, seccomp
from engines.confinement import Confinement

WORKER_SLOTS = 4096  # how many workers of one zygote may live at a time, each with a uid of its own
_FIRST_UID = 2_000_000
_UID_BLOCKS = 500_000


def uid_block(supervisor_pid: int) -> range:
    """The user and group ids of one supervisor's workers; neighbours on a machine get other ones."""
    first = _FIRST_UID + supervisor_pid % _UID_BLOCKS * WORKER_SLOTS
    return range(first, first + WORKER_SLOTS)


class Jail:
    """Made by `enter`. One for each zygote."""

    def __init__(self, uids: range, confinement: Confinement) -> None:
        self.layers: dict[str, str] = {}
        self._uids = uids
        self._confinement = confinement
        self._filter = b""
        self._pid = 0

    @classmethod
    def enter(cls, supervisor_pid: int, confinement: Confinement) -> "Jail":
        """Leave the supervisor's namespaces. The first child forked afterwards is the zygote if `pidns` is on."""
        jail = cls(uid_block(supervisor_pid), confinement)
        supervisor_can_kill = linux.has_capability(linux.CAP_KILL)  # it has what we had when we started
        jail.layers |= namespaces.enter(jail._uids)
        jail.layers["uid"] = _uid_layer(jail._uids, supervisor_can_kill=supervisor_can_kill)
        return jail

    def close(self) -> None:
        """Shut this process, the zygote, in. Raises OSError where not even no_new_privs is to be had."""
        self._pid = os.getpid()
        self.layers["oom_first"] = namespaces.attempt(_offer_to_oom_killer)
        files, links, own_mounts = self._confinement.files, self._confinement.links, self.layers["mountns"] == "on"
        close_root = functools.partial(namespaces.root_of, files, links) if files else namespaces.empty_root
        self.layers["root"] = close_root(own_mounts=own_mounts)
        if self.layers["uid"] == "per-worker":
            os.setgroups([])
        linux.keep_capabilities(linux.CAP_SETUID, linux.CAP_SETGID, linux.CAP_KILL)
        linux.prctl(linux.PR_SET_DUMPABLE, 0)
        linux.prctl(linux.PR_SET_NO_NEW_PRIVS, 1)
        self.layers["no_new_privs"] = "on"
        self.layers["mdwe"] = self._refuse_new_code()
        try:
            abi = landlock.deny_all(but_read=files, but_execute=self._confinement.programs)
            self.layers["landlock"] = f"abi{abi}"
        except OSError as why:
            self.layers["landlock"] = namespaces.refusal(why)
        self.layers["seccomp"] = self._try_filter()

    def lock_worker(self, slot: int, data_bytes: int = 0) -> None:
        """Give up, for good, all this process may do but compute and talk. Raises OSError if a layer does not hold.

        `data_bytes` bounds its writable private memory, mapped or touched; 0 does not.
        """
        if self.layers["uid"] == "per-worker":
            uid = self._uids[slot]
            os.setresgid(uid, uid, uid)
            os.setresuid(uid, uid, uid)
        linux.keep_capabilities()
        linux.prctl(linux.PR_SET_DUMPABLE, 0)
        linux.prctl(linux.PR_SET_PDEATHSIG, signal.SIGKILL)  # after setresuid, which clears it
        if os.getppid() != self._pid:
            raise ProcessLookupError("the zygote died")
        for limit, value in self._confinement.limits.items():
            if limit != resource.RLIMIT_NPROC or not value or self.layers["uid"] == "per-worker":
                resource.setrlimit(limit, (value, value))
        if data_bytes:
            resource.setrlimit(resource.RLIMIT_DATA, (data_bytes, data_bytes))
        if self.layers["seccomp"] == "on":
            profile = self._confinement.profile
            seccomp.install(seccomp.compile_here(profile) if profile.is_personal else self._filter)

    def _refuse_new_code(self) -> str:
        if self._confinement.profile.makes_code:
            return "off: it loads compiled code"
        return namespaces.attempt(lambda: linux.prctl(linux.PR_SET_MDWE, linux.PR_MDWE_REFUSE_EXEC_GAIN))

    def _try_filter(self) -> str:
        """Prove on a child that the filter can be installed and that it kills."""
        try:
            self._filter = seccomp.compile_here(self._confinement.profile)
        except KeyError:
            return f"off: no system call table for {os.uname().machine}"
        child = os.fork()
        if child == 0:
            status = 0
            try:
                seccomp.install(self._filter)
                os.sync()  # forbidden, and harmless where it is not
            except OSError as why:
                status = why.errno or errno.EIO
            finally:
                os._exit(status)
        status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        if status == -signal.SIGSYS:
            return "on"
        return namespaces.refusal(OSError(status, "")) if status else "off: it does not kill"


def _uid_layer(uids: range, *, supervisor_can_kill: bool) -> str:
    if not (linux.has_capability(linux.CAP_SETUID) and linux.has_capability(linux.CAP_SETGID)):
        return "off: no CAP_SETUID"
    if not namespaces.maps(uids):
        return "off: ids not mapped"
    return "per-worker" if supervisor_can_kill else "off: no CAP_KILL"


def _offer_to_oom_killer() -> None:
    with open("/proc/self/oom_score_adj", "w") as file:  # noqa: PTH123 - pathlib would double the zygote
        file.write("500")
