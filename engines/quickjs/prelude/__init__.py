"""The JavaScript every context begins with: one eager script, and units that are compiled when they are first used.

Comments, indentation and line breaks are dropped, so every frame of ours in a stack is on line 1 of "<input>"; a
program made by engines.build begins on line 2. End each statement with its semicolon, put comments on their own lines.
"""

import os  # not pathlib: what is imported here is mapped into every worker

_EAGER = ("core", "logs", "timers", "calls", "bridge", "globals")


def _joined(text: str) -> str:
    lines = (line.strip() for line in text.splitlines())
    return " ".join(line for line in lines if line and not line.startswith("//"))


_HERE = os.path.dirname(__file__)  # noqa: PTH120


def texts(folder: str | os.PathLike[str] = _HERE) -> dict[str, str]:
    """Every script of a folder by its name, each as one line."""
    with os.scandir(folder) as entries:
        paths = {entry.name[:-3]: entry.path for entry in entries if entry.name.endswith(".js")}
    found = {}
    for name in sorted(paths):
        with open(paths[name], encoding="utf-8") as file:  # noqa: PTH123
            found[name] = _joined(file.read())
    return found


def read() -> tuple[str, dict[str, str]]:
    """The eager script, an expression that gives `(name) => function`, and the source of each lazy unit by name.

    A lazy unit is a function expression that takes `core` and gives its exports.
    """
    units = texts()
    eager = " ".join(units.pop(name) for name in _EAGER)
    door = "return (name, source) => source === undefined ? bridge[name] : (sources[name] = source, undefined);"
    return f'(function () {{ "use strict"; {eager} {door} }})()', {name: f"({text})" for name, text in units.items()}
