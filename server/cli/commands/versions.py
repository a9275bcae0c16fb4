"""`atlas versions`, `rollback` and `download`: the history of a function."""

from collections.abc import Iterator
from pathlib import Path

import click

from atlas.functions.v1 import functions_pb2 as pb
from atlas.functions.v1 import functions_service_pb2 as service
from server.cli.client import Client
from server.cli.files import write
from server.cli.output import plain, when
from server.cli.session import Session, options


@click.command()
@click.argument("slug")
@options
def versions(session: Session, slug: str) -> None:
    """List the versions of a function, the newest first; * is the active one."""
    client = session.client
    found = list(_every_version(client, client.function(slug).id))
    if session.out.json:
        return session.out.document({"versions": [plain(item) for item in found]})
    rows = (
        ("*" if item.active else "", item.version, item.runtime, when(item.created_at), item.source_bytes, item.note)
        for item in found
    )
    return session.out.table(("", "VERSION", "RUNTIME", "CREATED", "BYTES", "NOTE"), rows)


@click.command()
@click.argument("slug")
@click.option("--to", "version", type=click.IntRange(1), metavar="N", help="This version; else the one active before.")
@options
def rollback(session: Session, slug: str, version: int | None) -> None:
    """Make another version the active one, at once.

    \b
    atlas rollback hello
    atlas rollback hello --to 3
    """
    client = session.client
    place = {"project_id": client.project_id, "function_id": client.function(slug).id}
    if version is None:
        now = client.call(client.functions.RollbackFunction, service.RollbackFunctionRequest(**place))
    else:
        request = service.ActivateFunctionVersionRequest(**place, version=version)
        now = client.call(client.functions.ActivateFunctionVersion, request)
    if session.out.json:
        return session.out.document(plain(now))
    return session.out.text(f"{slug} is at version {now.version}")


@click.command()
@click.argument("slug")
@click.option("--version", "version", type=click.IntRange(1), metavar="N", help="The active one when not given.")
@click.option("--form", type=click.Choice(("source", "artifact", "standalone")), default="source", show_default=True)
@click.option("--output", "-o", type=click.Path(path_type=Path), help="A file; stdout when not given.")
@options
def download(session: Session, slug: str, version: int | None, form: str, output: Path | None) -> None:
    """Get the bytes of a version: its source as deployed, its artifact, or a module that any WASI runtime runs.

    \b
    atlas download hello
    atlas download hash --form standalone -o hash.wasm
    """
    client = session.client
    function = client.function(slug)
    request = service.DownloadFunctionVersionRequest(
        project_id=client.project_id, function_id=function.id, version=version or function.version, form=form
    )
    write(session.out, output, client.call(client.functions.DownloadFunctionVersion, request).data)


def _every_version(client: Client, function_id: str) -> Iterator[pb.FunctionVersion]:
    request = service.ListFunctionVersionsRequest(project_id=client.project_id, function_id=function_id, page_size=200)
    while True:
        page = client.call(client.functions.ListFunctionVersions, request)
        yield from page.versions
        request.page_token = page.next_page_token
        if not request.page_token:
            return
