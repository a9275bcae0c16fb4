"""How Deno is started: the program module of its zygote."""

from engines.confinement import Confinement, Execution
from engines.v8 import program

_MAIN = program.HERE + "/deno_main.js"
_REHEARSAL = program.HERE + "/deno_rehearsal.mjs"

_ENVIRONMENT = {
    "DENO_DIR": "/dev/null",  # it keeps its caches in memory when it cannot write them
    "DENO_NO_UPDATE_CHECK": "1",
    "NO_COLOR": "1",
}
_FLAGS = ["--quiet", "--no-prompt", "--no-remote", "--no-npm", "--no-config", "--no-lock", "--cached-only"]
_FLAGS += ["--no-check", "--unstable-raw-imports"]


def preload(deno: str) -> Confinement:
    """`deno` is the path of the program."""
    return confine(deno, main=_MAIN, scripts=program.scripts())


def confine(deno: str, *, main: str, scripts: tuple[str, ...]) -> Confinement:
    """Children run `main` and read `scripts`."""

    def command(memory_bytes: int) -> list[str]:
        v8 = f"--v8-flags=--max-old-space-size={program.heap_mib(memory_bytes)},--max-semi-space-size=2"
        return [deno, "run", *_FLAGS, v8, main]

    rehearsal = [deno, "run", "--allow-all", *_FLAGS, _REHEARSAL, deno]
    execution = Execution(command=command, rehearsal=rehearsal, environment=_ENVIRONMENT, sockets=(0, 1))
    return program.confine(execution, scripts=scripts)
