"""Why a source was refused, in terms of the source as its author wrote it."""

import re
from typing import Final

from engines.build import CompileError
from engines.contract import Outcome, Result
from engines.runtimes import ModuleRefused
from engines.sourcemap import translate_stack
from server.errors import AtlasError, InvalidArgument
from server.functions.outcomes import error_of, quantity

MAX_DIAGNOSTICS: Final = 10
"""Of one compilation, told to the caller."""


def compilation_failed(field: str, error: CompileError) -> InvalidArgument:
    """What the compiler says, each place as line:column of the source as it was sent, both from 1."""
    first = error.diagnostics[0]
    told = [f"{item.line}:{item.column}: {item.message}" for item in error.diagnostics[:MAX_DIAGNOSTICS]]
    if (more := len(error.diagnostics) - MAX_DIAGNOSTICS) > 0:
        told.append(f"and {more} more")
    return InvalidArgument(
        field,
        "Compilation failed: " + "; ".join(told),
        reason="COMPILATION_FAILED",
        line=str(first.line),
        column=str(first.column),
        line_text=first.line_text[:200],
    )


def module_refused(field: str, why: ModuleRefused) -> InvalidArgument:
    """Why a module that was compiled elsewhere cannot run here."""
    return InvalidArgument(field, f"The module was refused. {why}", reason="MODULE_REFUSED")


def load_failed(field: str, filename: str, result: Result, source_map: bytes | None) -> AtlasError:
    """Why a module that compiles cannot be deployed. When that is not its own fault, the error says so."""
    if result.outcome in (Outcome.OVERLOADED, Outcome.CANCELLED, Outcome.CRASHED):
        return error_of(result)
    metadata: dict[str, str] = {"outcome": result.outcome}
    if (hit := result.limit) is not None:
        used, allowed = quantity(hit.used, hit.unit), quantity(hit.allowed, hit.unit)
        over = f"used {used} of {allowed} of {hit.limit.replace('_', ' ')}"
        why = f"its top level {f'needs more memory than {allowed}' if hit.limit == 'memory' else over}"
        metadata |= {"limit": hit.limit, "used": f"{hit.used:g}", "allowed": f"{hit.allowed:g}", "unit": hit.unit}
    elif (error := result.error) is not None:
        why = f"{error.name}: {error.message}"
        stack = translate_stack(error.stack, source_map) if source_map else error.stack
        metadata["stack"] = stack
        if place := re.search(re.escape(filename) + r":(\d{1,9}):(\d{1,9})", stack):
            why += f" (at {place[1]}:{place[2]})"
            metadata |= {"line": place[1], "column": place[2]}
    else:
        why = result.outcome.value.replace("_", " ")
    return InvalidArgument(
        field,
        f"Compilation failed: the module could not be loaded: {why}",
        reason="COMPILATION_FAILED",
        **metadata,
    )
