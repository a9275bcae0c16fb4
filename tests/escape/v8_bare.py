"""The program module of a zygote whose Node or Deno children run an attack script, with no checks of their own.

argument   the path of node or deno
"""

from pathlib import Path

from engines.confinement import Confinement, Execution
from engines.v8 import program

SCRIPT = str(Path(__file__).with_name("v8_attacks.mjs"))


def preload(engine: str) -> Confinement:
    sockets: tuple[int, ...]
    if Path(engine).name == "node":
        command, sockets = [engine, "--no-warnings", SCRIPT], (3,)
        environment = {"OPENSSL_CONF": "/dev/null"}
    else:
        command, sockets = (
            [engine, "run", "--quiet", "--allow-all", "--unstable-net", "--no-config", "--no-lock", SCRIPT],
            (0, 1),
        )
        environment = {"DENO_DIR": "/dev/null"}
    execution = Execution(
        command=lambda _: [*command, engine], rehearsal=[*command, engine], environment=environment, sockets=sockets
    )
    return program.confine(execution, scripts=(SCRIPT,))
