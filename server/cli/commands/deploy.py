"""`atlas deploy`: a folder or a file becomes the next version of its function."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import click

from atlas.functions.v1 import functions_pb2 as pb
from atlas.functions.v1 import functions_service_pb2 as service
from server.cli.bundle import Source, source_of
from server.cli.client import DEPLOY_S
from server.cli.output import plain
from server.cli.pairs import pairs
from server.cli.problems import Problem
from server.cli.project import CONFIG, RUNTIMES, Project, load
from server.cli.session import Session, options
from server.cli.watch import changes


@click.command()
@click.argument("path", type=click.Path(path_type=Path), default=".")
@click.option("--slug", help="In place of the one in atlas.json, or of the file's name.")
@click.option("--name", help="For people; the slug when nothing else is said.")
@click.option("--runtime", type=click.Choice(RUNTIMES))
@click.option("--isolation", type=click.Choice(("warm", "fresh")))
@click.option(
    "--exactly-once/--no-exactly-once",
    default=None,
    help="All that a run does in the database is one transaction, done once for all attempts at a delivery.",
)
@click.option("--note", default="", help="About this version, for those who read the list later.")
@click.option("--env", "env", multiple=True, metavar="K=V", help="An environment variable; more than once for more.")
@click.option("--watch", "-w", is_flag=True, help="Deploy again on every change, until Ctrl-C.")
@options
def deploy(
    session: Session,
    path: Path,
    slug: str | None,
    name: str | None,
    runtime: str | None,
    isolation: str | None,
    exactly_once: bool | None,
    note: str,
    env: tuple[str, ...],
    watch: bool,
) -> None:
    """Bundle a function folder, or a single source file, and make it the active version.

    Imports are put into one file by esbuild. Environment variables, when there are any, replace those of the version
    before; secrets and what is not given stay.

    \b
    atlas deploy
    atlas deploy hello.ts --slug greet --note "say hello"
    atlas deploy module.wasm
    atlas deploy --watch
    """
    given = {
        "slug": slug,
        "name": name,
        "runtime": runtime,
        "isolation": isolation,
        "exactly_once": exactly_once,
    }
    changed = {field: value for field, value in given.items() if value is not None}
    extra = pairs(env)

    def project() -> Project:
        loaded = load(path)
        return replace(loaded, **changed, env={**loaded.env, **extra})  # type: ignore[arg-type]

    if watch:
        return _watch(session, path, project, note)
    chosen = project()
    function = _send(session, chosen, _source(session, chosen), note)
    if session.out.json:
        session.out.document(plain(function))
    return None


def _watch(session: Session, path: Path, project: Callable[[], Project], note: str) -> None:
    """Deploy again whenever what would be sent has changed. Failures are told, and the next change is waited for."""
    files = [path / CONFIG if path.is_dir() else path]
    sent: tuple[Project, str, bytes] | None = None
    for _ in changes(lambda: iter(files)):
        try:
            chosen = project()
            source = _source(session, chosen)
            files[:] = [*source.files, *([chosen.config] if chosen.config else [])]
            if sent == (chosen, source.text, source.module):
                continue
            function = _send(session, chosen, source, note)
            sent = (chosen, source.text, source.module)
            if session.out.json:
                session.out.line(plain(function))
        except Problem as problem:
            session.out.problem(problem)
        session.out.note("Watching for changes; Ctrl-C ends")


def _source(session: Session, project: Project) -> Source:
    source = source_of(project.entry, project.runtime, colour=session.out.colour(err=True))
    if not source.mapped:
        session.out.note("The source map was left out, to keep within 1 MiB: stacks will show the bundle's lines")
    return source


def _send(session: Session, project: Project, source: Source, note: str) -> pb.EdgeFunction:
    client = session.client
    request = service.DeployFunctionRequest(
        project_id=client.project_id,
        name=project.name or project.slug,
        slug=project.slug,
        runtime=project.runtime,
        language=source.language,
        source=source.text,
        module=source.module,
        isolation=project.isolation,
        note=note,
        env=project.env,
        exactly_once=project.exactly_once,
        settings=None if project.settings is None else pb.FunctionSettings(**project.settings),
    )
    try:
        function = client.call(client.functions.DeployFunction, request, DEPLOY_S)
    except Problem as problem:
        if problem.reason == "COMPILATION_FAILED" and not source.bundled:
            problem.source = (str(project.entry), source.text)
        raise
    if not session.out.json:
        what = f"{len(source.files)} files, " if source.bundled else ""
        size = f"{source.size_bytes / 1024:.1f} KiB"
        session.out.text(
            f"Deployed {function.slug} version {function.version} ({function.runtime}, {what}{size})\n"
            f"{client.target.url}/functions/v1/invoke/{function.slug}"
        )
    return function
