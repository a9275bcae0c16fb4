"""A runtime: an engine, and how what an author deploys becomes what that engine loads."""

from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Protocol

from engines.build import Built, Language
from engines.contract import Engine, Program


class Build(Protocol):
    """Compiles one module for an engine. CompileError says what is wrong with the source, and where."""

    async def __call__(self, source: str, language: Language, *, filename: str) -> Built: ...


class ModuleRefused(Exception):
    """A module that was deployed as bytes cannot be run here; the message says why in a sentence, for its author."""


class EngineNotReady(Exception):
    """The engine itself is still being built, or did not start; the message says so in a sentence for its caller."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Runtime:
    engine: Engine
    build: Build
    accept: Callable[[bytes], Awaitable[Built]] | None = None  # a module made elsewhere; ModuleRefused
    standalone: Callable[[Program], Awaitable[bytes]] | None = None  # the same program, for any WASI runtime
