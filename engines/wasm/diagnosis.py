"""What our compiler says of a script, told as a place in the source its author wrote."""

import re
from typing import Final

from engines.build import CompileError, Diagnostic
from engines.sourcemap import CODE_FILE, locate
from engines.wasm.compiler import Refused

_PLACE: Final = re.compile(re.escape(CODE_FILE) + r"(\d{1,9})(?::(\d{1,9}))?")
_LINE_END: Final = re.compile(r"\r\n|[\r\n\u2028\u2029]")


def compile_error(refused: Refused, source: str, source_map: bytes | None) -> CompileError:
    """At 1:1 when the compiler named no place, or none that is the author's."""
    message = f"{refused.name}: {refused}" if refused.name else str(refused)
    line, column = 1, 1
    if source_map is not None and (place := _PLACE.search(refused.stack)) is not None:
        found = locate(source_map, int(place[1]), int(place[2] or 1))
        if found is not None:
            _, line, column = found
    lines = _LINE_END.split(source)
    text = lines[line - 1] if line <= len(lines) else ""
    return CompileError((Diagnostic(line, column, message, text[:500]),))
