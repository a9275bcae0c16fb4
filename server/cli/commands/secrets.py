"""`atlas secrets`: values that the API never gives back, in `ctx.env` of a function."""

import sys

import click

from atlas.functions.v1 import functions_service_pb2 as service
from server.cli.session import Session, options


@click.group()
def secrets() -> None:
    """Set, list and remove the secrets of a function.

    \b
    atlas secrets set hello API_TOKEN              (asks, and does not echo)
    atlas secrets set hello API_TOKEN < token.txt
    atlas secrets list hello
    atlas secrets rm hello API_TOKEN
    """


@secrets.command("set")
@click.argument("slug")
@click.argument("names", nargs=-1, required=True, metavar="NAME[=VALUE]...")
@options
def set_(session: Session, slug: str, names: tuple[str, ...]) -> None:
    """Add or replace secrets: a new version with the same code.

    A value on the command line is seen by others of this machine and kept in the shell's history; without one, it is
    read from stdin, or asked for on a terminal.
    """
    values = dict(_valued(word, single=len(names) == 1) for word in names)
    _update(session, slug, secrets=values)


@secrets.command("list")
@click.argument("slug")
@options
def list_(session: Session, slug: str) -> None:
    """List the names."""
    found = list(session.client.function(slug).secret_names)
    if session.out.json:
        return session.out.document({"secret_names": found})
    return session.out.table(("NAME",), ((name,) for name in found))


@secrets.command("rm")
@click.argument("slug")
@click.argument("names", nargs=-1, required=True)
@options
def remove(session: Session, slug: str, names: tuple[str, ...]) -> None:
    """Remove secrets: a new version with the same code."""
    _update(session, slug, remove=names)


def _update(
    session: Session, slug: str, *, secrets: dict[str, str] | None = None, remove: tuple[str, ...] = ()
) -> None:
    client = session.client
    request = service.UpdateFunctionRequest(
        project_id=client.project_id, function_id=client.function(slug).id, secrets=secrets, remove_secrets=remove
    )
    now = client.call(client.functions.UpdateFunction, request)
    if session.out.json:
        return session.out.document({"version": now.version, "secret_names": list(now.secret_names)})
    return session.out.text(f"{slug} is at version {now.version}; secrets: {', '.join(now.secret_names) or 'none'}")


def _valued(word: str, *, single: bool) -> tuple[str, str]:
    name, sign, value = word.partition("=")
    if not name:
        raise click.UsageError("A secret has no name")
    if sign:
        return name, value
    if sys.stdin.isatty():
        return name, str(click.prompt(name, hide_input=True, err=True))
    if not single:
        raise click.UsageError("Of several secrets, none can be read from stdin: give NAME=VALUE, or one at a time")
    return name, sys.stdin.read().removesuffix("\n").removesuffix("\r")
