"""`atlas functions`: the list, and what concerns a function as a whole."""

import click

from atlas.functions.v1 import functions_service_pb2 as service
from server.cli.output import plain, when
from server.cli.session import Session, options


@click.group(invoke_without_command=True)
@click.option("--deleted", is_flag=True, help="Those that were deleted and can be restored.")
@options
@click.pass_context
def functions(context: click.Context, session: Session, deleted: bool) -> None:
    """List functions; delete or restore one.

    \b
    atlas functions
    atlas functions delete hello
    atlas functions --deleted
    atlas functions undelete hello
    """
    if context.invoked_subcommand is not None:
        return None
    found = list(session.client.every_function(deleted=deleted))
    if session.out.json:
        return session.out.document({"functions": [plain(item) for item in found]})
    rows = ((item.slug, item.name, item.runtime, item.version, when(item.updated_at), item.id) for item in found)
    return session.out.table(("SLUG", "NAME", "RUNTIME", "VERSION", "UPDATED", "ID"), rows)


@functions.command()
@click.argument("slug")
@options
def delete(session: Session, slug: str) -> None:
    """Delete a function; for 30 days it can be restored."""
    client = session.client
    found = client.function(slug)
    client.call(
        client.functions.DeleteFunction,
        service.DeleteFunctionRequest(project_id=client.project_id, function_id=found.id),
    )
    if session.out.json:
        return session.out.document({"deleted": found.id, "slug": slug})
    return session.out.text(f"Deleted {slug}; bring it back with: atlas functions undelete {slug}")


@functions.command()
@click.argument("slug")
@options
def undelete(session: Session, slug: str) -> None:
    """Restore a deleted function with the version that was active."""
    client = session.client
    request = service.UndeleteFunctionRequest(
        project_id=client.project_id, function_id=client.function(slug, deleted=True).id
    )
    restored = client.call(client.functions.UndeleteFunction, request)
    if session.out.json:
        return session.out.document(plain(restored))
    return session.out.text(f"Restored {slug} at version {restored.version}")
