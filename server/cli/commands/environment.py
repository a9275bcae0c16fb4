"""`atlas env`: plain environment variables, in `ctx.env` of a function."""

import click

from atlas.functions.v1 import functions_pb2 as pb
from atlas.functions.v1 import functions_service_pb2 as service
from server.cli.pairs import pairs
from server.cli.problems import REFUSED, Problem
from server.cli.session import Session, options


@click.group("env")
def environment() -> None:
    """List, set and remove the environment variables of a function.

    \b
    atlas env list hello
    atlas env set hello GREETING=Hi LIMIT=10
    atlas env rm hello LIMIT
    """


@environment.command("list")
@click.argument("slug")
@options
def list_(session: Session, slug: str) -> None:
    """List names and values."""
    _show(session, session.client.function(slug))


@environment.command("set")
@click.argument("slug")
@click.argument("words", nargs=-1, required=True, metavar="NAME=VALUE...")
@options
def set_(session: Session, slug: str, words: tuple[str, ...]) -> None:
    """Add or replace variables: a new version with the same code."""
    changed = pairs(words)
    function = session.client.function(slug)
    _update(session, function, {**function.env, **changed})


@environment.command("rm")
@click.argument("slug")
@click.argument("names", nargs=-1, required=True)
@options
def remove(session: Session, slug: str, names: tuple[str, ...]) -> None:
    """Remove variables: a new version with the same code."""
    function = session.client.function(slug)
    if unknown := [name for name in names if name not in function.env]:
        raise Problem(f'{slug} has no variable "{unknown[0]}"', REFUSED, hint=f"see `atlas env list {slug}`")
    _update(session, function, {name: value for name, value in function.env.items() if name not in names})


def _update(session: Session, function: pb.EdgeFunction, variables: dict[str, str]) -> None:
    client = session.client
    request = service.UpdateFunctionRequest(
        project_id=client.project_id, function_id=function.id, env=service.Environment(variables=variables)
    )
    now = client.call(client.functions.UpdateFunction, request)
    if not session.out.json:
        session.out.note(f"{now.slug} is at version {now.version}")
    _show(session, now)


def _show(session: Session, function: pb.EdgeFunction) -> None:
    if session.out.json:
        return session.out.document({"version": function.version, "env": dict(function.env)})
    return session.out.table(("NAME", "VALUE"), sorted(function.env.items()))
