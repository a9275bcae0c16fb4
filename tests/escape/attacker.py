"""A supervisor of its own that weakens itself as told, then lets every attack loose in its jail.

python attacker.py SETUP        prints JSON {"layers", "escaped": [self-test], "outcomes": {attack: outcome}}
python attacker.py SETUP:PROGRAM …      in workers of that program's zygote
python attacker.py control      the same attacks in plain children, no jail: {"outcomes"}
"""

import asyncio
import ctypes
import json
import os
import signal
import socket
import struct
import sys
import tempfile
from pathlib import Path

from engines import linux, seccomp, selftest
from engines.zygote import Zygote
from tests.escape import attacks

NOBODY = 65534
CAP_DAC_READ_SEARCH = 2
EINVAL, ENOSYS = 22, 38
TIMEOUT_S = 20
UNSHARE, MOUNT, PRCTL = {"x86_64": (272, 165, 157), "aarch64": (97, 40, 167)}[os.uname().machine]

LOAD_NUMBER, LOAD_ARGUMENT, IF_EQUAL, RETURN = (0x20, 0, 0, 0), (0x20, 0, 0, 16), 0x15, 0x06


SETUPS = ["plain", "container", "container-no_landlock"]
if os.getuid() == 0:
    SETUPS += [
        "no_sys_admin",
        "no_cap_kill",
        "no_sys_admin-container",
        "no_sys_admin-container-no_landlock",
        "unprivileged",
        "unprivileged-container",
        "unprivileged-container-no_landlock",
    ]
"""What weakens a supervisor of this user; see `weaken`."""


def deny(calls: tuple[int, ...], error: int = seccomp.EPERM) -> None:
    """Refuse system calls to this process and its heirs, as a container runtime would."""
    program = [LOAD_NUMBER]
    for number in calls:
        program += [(IF_EQUAL, 0, 1, number), (RETURN, 0, 0, seccomp.ERRNO | error)]
    confine(program)


def refuse_filters() -> None:
    """A kernel without seccomp: prctl(PR_SET_SECCOMP) is an invalid argument."""
    refused = (RETURN, 0, 0, seccomp.ERRNO | EINVAL)
    confine([LOAD_NUMBER, (IF_EQUAL, 0, 3, PRCTL), LOAD_ARGUMENT, (IF_EQUAL, 0, 1, linux.PR_SET_SECCOMP), refused])


def confine(program: list[seccomp.Instruction]) -> None:
    program.append((RETURN, 0, 0, seccomp.ALLOW))
    linux.prctl(linux.PR_SET_NO_NEW_PRIVS, 1)
    seccomp.install(b"".join(struct.pack("=HBBI", *instruction) for instruction in program))


def drop(capability: int) -> None:
    """Give up one capability, and after the next exec too."""
    linux.prctl(24, capability)  # PR_CAPBSET_DROP
    linux.keep_capabilities(*(number for number in range(41) if number != capability))


def become_nobody() -> None:
    """An ordinary user without privileges, but for reading this Python wherever it is installed."""
    linux.prctl(8, 1)  # PR_SET_KEEPCAPS
    os.setgroups([])
    os.setresgid(NOBODY, NOBODY, NOBODY)
    os.setresuid(NOBODY, NOBODY, NOBODY)
    bit = 1 << CAP_DAC_READ_SEARCH
    header, data = (ctypes.c_uint32 * 2)(0x20080522, 0), (ctypes.c_uint32 * 6)(bit, bit, bit)
    assert linux.libc.capset(header, data) == 0
    linux.prctl(47, 2, CAP_DAC_READ_SEARCH)  # PR_CAP_AMBIENT, PR_CAP_AMBIENT_RAISE
    linux.prctl(linux.PR_SET_DUMPABLE, 1)


def weaken(setup: str) -> None:
    """Each word of the set-up takes something away."""
    for word in setup.split("-"):
        match word:
            case "plain" | "unsafe":
                pass
            case "unprivileged":
                become_nobody()
            case "no_sys_admin":
                drop(linux.CAP_SYS_ADMIN)
            case "no_cap_kill":
                drop(linux.CAP_KILL)
            case "container":
                deny((UNSHARE, MOUNT))
            case "no_seccomp":
                refuse_filters()
            case "no_landlock":
                deny((444,), ENOSYS)
            case _:
                raise ValueError(word)


async def jailed(zygote: Zygote, order: bytes) -> str:
    """The outcome of one attack in a worker of the zygote."""
    loop = asyncio.get_running_loop()
    ours, theirs = socket.socketpair()
    with ours:
        ours.setblocking(False)
        worker = await zygote.spawn(theirs)
        answer = b""
        try:
            async with asyncio.timeout(TIMEOUT_S):
                await loop.sock_sendall(ours, order)
                answer = await loop.sock_recv(ours, 1024)
                if answer.startswith(b"more"):
                    answer = answer.removeprefix(b"more")
                    socket.send_fds(ours, [b"!"], [0])
                    answer = answer or await loop.sock_recv(ours, 1024)
        except ConnectionError:
            pass
        finally:
            worker.kill()
            ended = await worker.exited
    if not answer and ended.signal is signal.SIGSYS:
        return "held: killed by the filter"
    return answer.decode() or f"no proof: the worker ended with {ended.status}"


def in_the_open(order: bytes) -> str:
    """The outcome of one attack in a plain child."""
    ours, theirs = socket.socketpair()
    if os.fork() == 0:
        try:
            os.dup2(theirs.fileno(), attacks.SOCKET)
            attacks.serve(attacks.SOCKET)
        finally:
            os._exit(0)
    theirs.close()
    with ours:
        ours.settimeout(TIMEOUT_S)
        ours.send(order)
        if (answer := ours.recv(1024)) == b"more":
            socket.send_fds(ours, [b"!"], [0])
            answer = ours.recv(1024)
    os.wait()
    return answer.decode()


async def behind_the_wall(orders: dict[str, bytes], program: str, *, unsafe: bool) -> dict[str, object]:
    zygote = await Zygote.launch(program, unsafe=unsafe)
    try:
        escaped = await selftest.probe(zygote)
        return {
            "layers": zygote.layers,
            "escaped": escaped,
            "outcomes": {name: await jailed(zygote, order) for name, order in orders.items()},
        }
    finally:
        await zygote.close()


def main(setup: str, program: str, names: list[str], directory: Path) -> dict[str, object]:
    victim = directory / "victim"
    victim.write_text("untouched")
    with socket.create_server(("127.0.0.1", 0)) as server:
        target = {"supervisor": os.getpid(), "port": server.getsockname()[1]}
        target |= {"directory": str(directory), "victim": str(victim)}
        orders = {name: json.dumps({"attack": name, "target": target}).encode() for name in names}
        if setup == "control":
            return {"outcomes": {name: in_the_open(order) for name, order in orders.items()}}
        report = asyncio.run(behind_the_wall(orders, program, unsafe="unsafe" in setup))
        return report | {
            "left_behind": {path.name: path.read_text() if path.is_file() else "" for path in directory.iterdir()}
        }


if __name__ == "__main__":
    kind, _, workers = sys.argv[1].partition(":")
    if kind != "control":
        weaken(kind)
    with tempfile.TemporaryDirectory() as scratch:
        print(json.dumps(main(kind, workers or "tests.escape.attacks", sys.argv[2:], Path(scratch))))
