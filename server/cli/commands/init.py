"""`atlas init`: a folder to begin with."""

import json
from pathlib import Path
from typing import Final

import click

from server.cli.problems import USAGE, Problem
from server.cli.project import CONFIG, RUNTIMES, slug_of
from server.cli.session import Session, options

TEMPLATES: Final = Path(__file__).parent.parent / "templates"


@click.command()
@click.argument("folder", type=click.Path(path_type=Path, file_okay=False), default=".", metavar="[DIR]")
@click.option("--runtime", type=click.Choice(RUNTIMES), default="quickjs", show_default=True)
@click.option("--typescript/--javascript", default=True, help="The language; TypeScript unless said otherwise.")
@options
def init(session: Session, folder: Path, runtime: str, typescript: bool) -> None:
    """Make a function folder: atlas.json, a source file, and the types of atlas.*.

    Overwrites nothing.

    \b
    atlas init hello
    atlas init hello --runtime node --javascript
    """
    slug = slug_of(folder.resolve().name)
    entry = "index.ts" if typescript else "index.js"
    files = {CONFIG: config_of(slug, runtime, entry), ".gitignore": "node_modules/\n.atlas/\n"}
    for name in (entry, "atlas.d.ts", "tsconfig.json"):
        files[name] = (TEMPLATES / name).read_text()
    if there := [name for name in files if (folder / name).exists() and name != ".gitignore"]:
        raise Problem(f"{folder / there[0]} is there already", USAGE, hint="choose another folder; nothing was written")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        made = [name for name, text in files.items() if _write(folder / name, text)]
    except OSError as why:
        raise Problem(f"{why.filename} cannot be written: {why.strerror}", USAGE) from why
    if session.out.json:
        return session.out.document({"folder": str(folder), "slug": slug, "runtime": runtime, "files": made})
    session.out.text(f"Made {folder}: {', '.join(made)}")
    session.out.note(f"Deploy it: atlas deploy {folder}")
    return None


def config_of(slug: str, runtime: str, entry: str) -> str:
    fields = {
        "slug": slug,
        "name": slug,
        "runtime": runtime,
        "entry": entry,
        "isolation": "warm",
        "settings": {},
        "env": {},
    }
    return json.dumps(fields, indent=2) + "\n"


def _write(path: Path, text: str) -> bool:
    """Whether it was written: a file that is there stays."""
    try:
        with path.open("x", encoding="utf-8") as file:
            file.write(text)
    except FileExistsError:
        return False
    return True
