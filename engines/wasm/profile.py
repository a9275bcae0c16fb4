"""The system calls of a Wasm sandbox: a script's, an alarm, and, until its module is loaded, the making of code.

A child is forked under LOADING. Once the compiled module of its one tenant is in place it seals itself: from then on
no page of it becomes executable, whatever the module does. No page is ever writable and executable at a time.
"""

from engines import linux, seccomp
from engines.seccomp import SCRIPT, Argument, Profile

_NONE, _READ, _READ_WRITE, _READ_EXECUTE = 0, 1, 3, 5

SEALED = Profile(allow=" ".join((*SCRIPT.allow, "setitimer")), allow_if=SCRIPT.allow_if, deny=" ".join(SCRIPT.deny))

LOADING = Profile(
    allow=" ".join((*SEALED.allow, "membarrier")),  # aarch64: code that was written is code for every core
    allow_if=SCRIPT.allow_if
    | {
        "mprotect": Argument(2, among=(_NONE, _READ, _READ_WRITE, _READ_EXECUTE)),
        "prctl": Argument(0, among=(linux.PR_SET_SECCOMP,)),  # a filter more, never one less
    },
    deny=" ".join(SCRIPT.deny),
    makes_code=True,
)


def compile_seal() -> bytes:
    """The second filter, for `seal`. Make it before the fork: it takes a while."""
    return seccomp.compile_here(SEALED)


def seal(program: bytes) -> None:
    """No more code in this process, for good. Raises OSError."""
    seccomp.install(program)
