"""How Node is started: the program module of its zygote."""

from engines.confinement import Confinement, Execution
from engines.v8 import program

_MAIN = program.HERE + "/node_main.cjs"
_REHEARSAL = program.HERE + "/node_rehearsal.mjs"

_ENVIRONMENT = {
    "OPENSSL_CONF": "/dev/null",  # its own is behind the jail, and Node ends when it cannot read that
    "UV_USE_IO_URING": "0",
    "UV_THREADPOOL_SIZE": "2",
}
_FLAGS = ["--experimental-vm-modules", "--no-addons", "--no-warnings", "--disable-sigusr1", "--disable-proto=delete"]


def preload(node: str) -> Confinement:
    """`node` is the path of the program."""
    return confine(node, main=_MAIN, scripts=program.scripts())


def confine(node: str, *, main: str, scripts: tuple[str, ...]) -> Confinement:
    """Children run `main` and read `scripts`."""
    permission = ["--permission", *(f"--allow-fs-read={script}" for script in scripts)]

    def command(memory_bytes: int) -> list[str]:
        heap = [f"--max-old-space-size={program.heap_mib(memory_bytes)}", "--max-semi-space-size=2"]
        return [node, *_FLAGS, *permission, *heap, main]

    rehearsal = [node, *_FLAGS, _REHEARSAL, node]
    execution = Execution(command=command, rehearsal=rehearsal, environment=_ENVIRONMENT, sockets=(3,))
    return program.confine(execution, scripts=scripts)
