"""What a command says: tables and text for people, JSON for scripts. Results on stdout, everything else on stderr."""

import json
import re
import sys
from collections.abc import Iterable, Sequence
from datetime import UTC
from typing import Any, Final

import click
from google.protobuf.json_format import MessageToDict
from google.protobuf.message import Message
from google.protobuf.timestamp_pb2 import Timestamp

from server.cli.problems import Problem, diagnostics

_CONTROL: Final = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]")
_COLOUR: Final = re.compile(r"(\x1b\[[0-9;]{0,20}m)")


class Output:
    """`json`: one document a command, one a line for streams. Colours only for a terminal, and not with `plain`."""

    def __init__(self) -> None:
        self.json = False
        self.plain = False

    def document(self, value: object) -> None:
        """The one JSON document of a command."""
        self._write(_json(value, indent=2))

    def line(self, value: object) -> None:
        """One JSON document of a stream."""
        self._write(_json(value))

    def text(self, text: str) -> None:
        self._write(text)

    def data(self, data: bytes) -> None:
        """Bytes as they are."""
        sys.stdout.buffer.write(data)

    def note(self, text: str) -> None:
        """For people who watch; on stderr, and not with --json."""
        if not self.json:
            self._write(text, err=True)

    def table(self, names: Sequence[str], rows: Iterable[Sequence[object]]) -> None:
        """Columns as wide as their widest cell; the last one is not padded."""
        cells = [list(names), *([visible(str(cell)) for cell in row] for row in rows)]
        widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
        for number, row in enumerate(cells):
            line = "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
            self._write(self.style(line, dim=True) if number == 0 else line)

    def problem(self, problem: Problem) -> None:
        if self.json:
            self._write(_json(problem.document(), indent=2), err=True)
            return
        if problem.source and (found := list(diagnostics(problem.message))):
            self._diagnostics(*problem.source, found)
            return
        self._write(self.style("error", fg="red", bold=True, err=True) + f": {problem.message}", err=True)
        for name, text in problem.fields:
            if text != problem.message:
                self._write(f"  {name}: {text}", err=True)
        if problem.details:
            self._write("\n".join("  " + line for line in problem.details.splitlines()), err=True)
        if problem.hint:
            self._write(f"  {problem.hint}", err=True)

    def _diagnostics(self, file: str, source: str, found: Iterable[tuple[int, int, str]]) -> None:
        """As compilers tell them: place, message, and the line with a mark below."""
        lines = re.split(r"\r\n|[\r\n\u2028\u2029]", source)
        error, mark = (self.style(text, fg="red", bold=True, err=True) for text in ("error", "^"))
        for line, column, message in found:
            self._write(f"{self.style(f'{file}:{line}:{column}', bold=True, err=True)}: {error}: {message}", err=True)
            if line <= len(lines):
                text, margin = lines[line - 1].replace("\t", " ")[:200], " " * len(str(line))
                self._write(f"  {line} │ {text}\n  {margin} │ {' ' * (column - 1)}{mark}", err=True)

    def style(self, text: str, *, err: bool = False, **looks: Any) -> str:
        return click.style(text, **looks) if self.colour(err=err) else text

    def colour(self, *, err: bool = False) -> bool:
        stream = sys.stderr if err else sys.stdout
        return stream.isatty() and not self.plain and not self.json

    def _write(self, text: str, *, err: bool = False) -> None:
        click.echo(visible(text), err=err, color=None if not self.plain else False)


def visible(text: str) -> str:
    """Text that does nothing to a terminal: what a function wrote may be hostile. Colours stay, and end."""
    parts = _COLOUR.split(text)
    parts[::2] = [_CONTROL.sub(lambda char: f"\\x{ord(char[0]):02x}", part) for part in parts[::2]]
    return "".join(parts) + ("\x1b[0m" if len(parts) > 1 else "")


def _json(value: object, indent: int | None = None) -> str:
    """JSON that does nothing to a terminal either."""
    text = json.dumps(value, ensure_ascii=False, indent=indent)
    return re.sub(r"[\x7f-\x9f\ud800-\udfff]", lambda char: f"\\u{ord(char[0]):04x}", text)


def plain(message: Message) -> dict[str, Any]:
    """A message as the REST API shows it."""
    shown: dict[str, Any] = MessageToDict(
        message, preserving_proto_field_name=True, always_print_fields_with_no_presence=True
    )
    return shown


def when(stamp: Timestamp) -> str:
    """In the reader's own time zone, to the second."""
    return stamp.ToDatetime(UTC).astimezone().strftime("%Y-%m-%d %H:%M:%S") if stamp.seconds else ""
