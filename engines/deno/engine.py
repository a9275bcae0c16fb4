"""The Deno engine: a jailed `deno` for each function version."""

from importlib import import_module
from pathlib import Path

from engines.v8.engine import V8


def program() -> str:
    """The executable of the package deno. Raises ModuleNotFoundError or FileNotFoundError without it."""
    return str(Path(import_module("deno").find_deno_bin()).resolve(strict=True))


class Deno(V8):
    MODULE = "engines.deno.program"
    executable = staticmethod(program)
