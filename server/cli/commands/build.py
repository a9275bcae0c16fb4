"""`atlas build`: what would be deployed, on the author's own disk."""

from pathlib import Path
from typing import Final

import click

from server.cli.bundle import source_of
from server.cli.files import write
from server.cli.problems import USAGE, Problem
from server.cli.project import RUNTIMES, load
from server.cli.session import Session, options

ENGINES: Final = Path(__file__).parents[3] / "build" / "engines"


@click.command()
@click.argument("path", type=click.Path(path_type=Path), default=".")
@click.option("--runtime", type=click.Choice(RUNTIMES), help="In place of the one in atlas.json.")
@click.option("--standalone", is_flag=True, help="A module for any WASI runtime, JSON on stdin to JSON on stdout.")
@click.option(
    "--engine-cache", type=click.Path(path_type=Path), envvar="ATLAS_ENGINE_CACHE_DIR", default=ENGINES, hidden=True
)
@click.option("--output", "-o", type=click.Path(path_type=Path), help="A file; stdout when not given.")
@options
def build(
    session: Session, path: Path, runtime: str | None, standalone: bool, engine_cache: Path, output: Path | None
) -> None:
    """Bundle a function folder, or a single source file, as deploy would, without deploying.

    \b
    atlas build -o function.js
    atlas build --standalone -o function.wasm && echo '{"a": 1}' | wasmtime function.wasm
    """
    project = load(path)
    target = "wasm" if standalone else runtime or project.runtime
    source = source_of(project.entry, target, colour=session.out.colour(err=True))
    if not standalone:
        return write(session.out, output, source.module or source.text.encode())
    if source.module:
        raise Problem(f"{project.entry} is a module already", USAGE)
    from server.cli.standalone import standalone as compiled  # Wasmtime takes time to load

    module = compiled(source, project.entry.name, cache_dir=engine_cache, say=session.out.note)
    return write(session.out, output, module)
