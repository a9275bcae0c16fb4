"""The Deno engine: a jailed `deno` for each function version."""

from importlib import import_module
from pathlib import Path

from engines.v8.engine import V8


class Deno(V8):
    """`spares` blank children are kept once it is in use; requests wait at most `queue_ms` for a free child."""

    def __init__(
        self,
        *,
        spares: int = 1,
        max_children: int = 16,
        max_children_per_project: int = 8,
        queue_ms: int = 5_000,
        unsafe: bool = False,
        module: str = "engines.deno.program",
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
    """The executable of the package deno. Raises ModuleNotFoundError or FileNotFoundError without it."""
    return str(Path(import_module("deno").find_deno_bin()).resolve(strict=True))
