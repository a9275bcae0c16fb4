"""Checks of the fields of a deploy: the clean value, or InvalidArgument that says field, value and rule."""

import re
import unicodedata
from dataclasses import dataclass
from typing import Final, cast, get_args

from engines import build
from engines.contract import Isolation
from server.errors import InvalidArgument
from server.fields import parse_choice, shown
from server.functions.catalog import SLUG
from server.functions.records import Language, RuntimeName

MAX_SOURCE_BYTES: Final = 1024 * 1024
MAX_MODULE_BYTES: Final = 2 * 1024 * 1024
MAX_NOTE_CHARS: Final = 1_000

_ENTRYPOINT: Final = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]{0,119}\.(?:js|mjs|ts|mts|wasm)")
_SUFFIXES: Final[dict[Language, str]] = {"javascript": ".js", "typescript": ".ts", "wasm": ".wasm"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Source:
    """What an author hands over: UTF-8 text of a module, or the bytes of one when `language` is `wasm`."""

    data: bytes
    language: Language
    filename: str  # what all that is said about it calls it
    field: str  # of the request, which an error names


def parse_source(slug: str, language: str, source: str, module: bytes) -> Source:
    """Of a deploy, which has either source or a module."""
    if module:
        if source:
            raise InvalidArgument("module", "Both source and module are given; a function is made of one of them")
        if language:
            raise InvalidArgument(
                "language", f"language is {shown(language)}; a module is deployed without one", value=language[:100]
            )
        return checked(Source(data=module, language="wasm", filename=slug + ".wasm", field="module"))
    parsed = cast(build.Language, parse_choice("language", language or "javascript", get_args(build.Language)))
    data = source.encode("utf-8", "surrogatepass")
    return checked(Source(data=data, language=parsed, filename=slug + _SUFFIXES[parsed], field="source"))


def parse_entrypoint(entrypoint: str) -> Language:
    """The language of a file in the project's folder, by its name."""
    if not _ENTRYPOINT.fullmatch(entrypoint):
        raise InvalidArgument(
            "entrypoint",
            f"entrypoint is {shown(entrypoint)}; it must be a file name of letters, digits, dots, hyphens and"
            " underscores that ends in .js, .mjs, .ts, .mts or .wasm, without directories",
            value=entrypoint[:100],
        )
    if entrypoint.endswith(".wasm"):
        return "wasm"
    return "typescript" if entrypoint.endswith("ts") else "javascript"


def checked(source: Source) -> Source:
    """The same unless it is empty, too large or not what its language is written in."""
    if len(source.data) > most_bytes(source.language):
        raise too_large(source.field, source.language, len(source.data))
    if source.language == "wasm":
        return source
    if not source.data.strip():
        raise InvalidArgument(source.field, "The source is empty; it must be an ES module with a default export")
    try:
        source.data.decode()
    except UnicodeDecodeError as why:
        raise InvalidArgument(
            source.field, f"The source is not UTF-8: byte {why.start} is 0x{source.data[why.start]:02x}"
        ) from None
    return source


def most_bytes(language: Language) -> int:
    return MAX_MODULE_BYTES if language == "wasm" else MAX_SOURCE_BYTES


def too_large(field: str, language: Language, used: int) -> InvalidArgument:
    allowed = most_bytes(language)
    what = "module has {} bytes" if language == "wasm" else "source has {} bytes of UTF-8"
    return InvalidArgument(
        field,
        f"The {what.format(used)}; at most {allowed} ({allowed // 2**20} MiB) are allowed",
        reason="SOURCE_TOO_LARGE",
        used=str(used),
        allowed=str(allowed),
    )


def parse_slug(slug: str) -> str:
    if not SLUG.fullmatch(slug):
        raise InvalidArgument(
            "slug",
            f"Slug must be alphanumeric: {shown(slug)} may have letters, digits, hyphens and underscores, 1 to 63",
            reason="INVALID_SLUG",
            value=slug[:100],
        )
    return slug


def parse_runtime(runtime: str, language: Language) -> RuntimeName:
    """A runtime that can run that language: modules run on `wasm` alone."""
    parsed = cast(RuntimeName, parse_choice("runtime", runtime, get_args(RuntimeName)))
    if language == "wasm" and parsed != "wasm":
        raise InvalidArgument(
            "runtime", f'runtime is "{parsed}"; a module needs the runtime "wasm"', value=parsed, allowed="wasm"
        )
    return parsed


def parse_isolation(isolation: str) -> Isolation:
    return cast(Isolation, parse_choice("isolation", isolation, get_args(Isolation)))


def parse_note(note: str) -> str:
    """Text for people, in any number of lines."""
    if len(note) > MAX_NOTE_CHARS:
        raise InvalidArgument(
            "note",
            f"note has {len(note)} characters; at most {MAX_NOTE_CHARS} are allowed",
            used=str(len(note)),
            allowed=str(MAX_NOTE_CHARS),
        )
    for place, char in enumerate(note):
        if unicodedata.category(char) in ("Cc", "Cs") and char not in "\n\r\t":
            raise InvalidArgument(
                "note", f"note has the control character U+{ord(char):04X} at position {place}; use printable text"
            )
    return note
