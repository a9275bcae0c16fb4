r"""Templates: places in a node's configuration that are filled in from the event and from the steps before.

    "{{trigger.data.amount}}"              a string that is one template alone becomes the value itself, of any type
    "Order {{ trigger.subject }} is paid"  inside text a value is spelled out: strings as they are, null as nothing,
                                           everything else as JSON
    "\{{"                                  two braces that begin no template

Paths are those of conditions (`server.triggers.paths`). What they lead into:

    trigger           the event as in the stream; below it a name that the event does not have is one of its data, so
                      that trigger.amount is trigger.data.amount
    steps.ID.output   what a step handed on; null when it failed or was skipped
    steps.ID.error    {"reason", "message"} of a step that failed and whose workflow went on, else null
    steps.ID.state    succeeded, failed or skipped
    run.id            of the run

A path that leads nowhere is null. Names of members are never templates, nothing is ever evaluated.
"""

import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Final

from server.errors import InvalidArgument
from server.fields import shown, well_formed
from server.triggers.paths import MISSING, Path, parse_path, resolve

ROOTS: Final = ("trigger", "steps", "run")
OF_STEP: Final = ("output", "error", "state")


class TooLarge(Exception):
    """Filled in, the input has more than so many bytes."""


@dataclass(frozen=True, slots=True)
class Template:
    """Text and paths in turn; one path alone is the value there."""

    parts: tuple[str | Path, ...]


@dataclass(frozen=True)
class Scope:
    """What templates of one run see. `event` is the whole event; `steps` those that the node reads."""

    event: Mapping[str, Any]
    steps: Mapping[str, Mapping[str, Any]]
    run: Mapping[str, Any]

    @property
    def members(self) -> dict[str, Any]:
        """As conditions see it."""
        data = self.event.get("data")
        merged = {**data, **self.event} if isinstance(data, dict) else dict(self.event)
        return {"trigger": merged, "steps": dict(self.steps), "run": dict(self.run)}


def compiled(value: Any, field: str) -> Any:
    """The value with a Template for each string that has one. InvalidArgument names the place under `field`."""
    if isinstance(value, str):
        return _template(value, field)
    if isinstance(value, dict):
        return {name: compiled(item, f"{field}.{name[:40]}") for name, item in value.items()}
    if isinstance(value, list):
        return [compiled(item, f"{field}[{index}]") for index, item in enumerate(value)]
    return value


def paths(value: Any) -> Iterator[Path]:
    """Of all templates in a compiled value."""
    if isinstance(value, Template):
        yield from (part for part in value.parts if not isinstance(part, str))
    elif isinstance(value, dict):
        for item in value.values():
            yield from paths(item)
    elif isinstance(value, list | tuple):
        for item in value:
            yield from paths(item)


def is_dynamic(value: Any) -> bool:
    return next(paths(value), None) is not None


def parse_reference(text: str, field: str) -> Path:
    """A path into the scope: ("steps", "a", "output", …). InvalidArgument when it leads into nothing there is."""
    if text.startswith("$"):
        raise _refused(field, text, f"a path begins with one of {', '.join(ROOTS)}")
    path = parse_path(text, field)[1:]  # without "data", where paths of conditions begin
    if path[0] not in ROOTS:
        raise _refused(field, text, f"a path begins with one of {', '.join(ROOTS)}")
    if path[0] == "run" and path != ("run", "id"):
        raise _refused(field, text, "of the run there is run.id alone")
    if path[0] == "steps" and (len(path) < 3 or path[2] not in OF_STEP):
        raise _refused(field, text, f"of a step there are {', '.join(f'steps.ID.{name}' for name in OF_STEP)}")
    return path


class Filling:
    """Fills in the templates of one step, `most_bytes` of JSON in all. `fill` raises TooLarge."""

    def __init__(self, scope: Scope, most_bytes: int) -> None:
        self._event = scope.event
        self._members = scope.members
        self._left = most_bytes
        self._sizes: dict[Path, int] = {}

    def fill(self, value: Any) -> Any:
        if isinstance(value, Template):
            return self._filled(value)
        if isinstance(value, dict):
            self._take(2 * len(value))
            return {name: self.fill(item) for name, item in value.items()}
        if isinstance(value, list):
            self._take(2 * len(value))
            return [self.fill(item) for item in value]
        if isinstance(value, str):
            self._take(len(value))
        return value

    def _filled(self, template: Template) -> Any:
        if len(template.parts) == 1 and not isinstance(template.parts[0], str):
            return self._value(template.parts[0])
        return "".join(part if isinstance(part, str) else self._spelled(part) for part in template.parts)

    def _spelled(self, path: Path) -> str:
        found = self._value(path)
        if found is None:
            return ""
        return found if isinstance(found, str) else dumped(found).decode()

    def _value(self, path: Path) -> Any:
        found: Any = self._event if path == ("trigger",) else resolve(path, self._members)
        if found is MISSING:
            found = None
        if path not in self._sizes:
            self._sizes[path] = len(dumped(found))
        self._take(self._sizes[path])
        return found

    def _take(self, size: int) -> None:
        self._left -= size
        if self._left < 0:
            raise TooLarge


def dumped(value: Any) -> bytes:
    """JSON text; whole numbers keep all their digits, lone surrogates become question marks."""
    return well_formed(json.dumps(value, ensure_ascii=False, separators=(",", ":"))).encode()


def _template(text: str, field: str) -> str | Template:
    if "{{" not in text:
        return text
    parts: list[str | Path] = []
    words = ""
    at = 0
    for found in _MARK.finditer(text):
        if found.start() < at:
            continue
        words += text[at : found.start()]
        if found[0].startswith("\\"):
            words += "{{"
            at = found.end()
            continue
        end = text.find("}}", found.end())
        if end < 0:
            raise _refused(
                field, text[found.start() :], r"a template ends with }}; write \{{ for the braces themselves"
            )
        if words:
            parts.append(words)
        words = ""
        parts.append(parse_reference(text[found.end() : end].strip(" "), field))
        at = end + 2
    words += text[at:]
    if not parts:
        return words
    return Template((*parts, words) if words else tuple(parts))


def _refused(field: str, text: str, rule: str) -> InvalidArgument:
    return InvalidArgument(field, f"{field} has the template {shown(text)}; {rule}", value=text[:100])


_MARK: Final = re.compile(r"\\?\{\{")
