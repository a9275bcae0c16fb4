"""`atlas workflows`: graphs of steps, and in `workflow_runs` what becomes of them."""

import json
from pathlib import Path
from typing import Any

import click

from atlas.workflows.v1 import workflows_service_pb2 as service
from server.cli.client import Client, json_body
from server.cli.commands import workflow_runs
from server.cli.json_input import object_text
from server.cli.output import plain, when
from server.cli.session import Session, options


@click.group(invoke_without_command=True)
@options
@click.pass_context
def workflows(context: click.Context, session: Session) -> None:
    """List workflows; deploy, run and watch them.

    \b
    atlas workflows deploy order.json
    atlas workflows run order --data '{"amount": 120}' --watch
    atlas workflows runs order --state failed
    """
    if context.invoked_subcommand is not None:
        return None
    found = list(session.client.every_workflow())
    if session.out.json:
        return session.out.document({"workflows": [plain(item) for item in found]})
    rows = ((item.name, item.version, when(item.updated_at), item.id) for item in found)
    return session.out.table(("NAME", "VERSION", "UPDATED", "WORKFLOW"), rows)


@workflows.command()
@click.argument("workflow", metavar="ID|NAME")
@options
def get(session: Session, workflow: str) -> None:
    """Show one workflow with its definition, as JSON."""
    client = session.client
    workflow_id = client.workflow_id(workflow)
    request = service.GetWorkflowHttpRequest(project_id=client.project_id, workflow_id=workflow_id)
    session.out.document(client.call_json(client.workflows.GetWorkflowHttp, request))


@workflows.command()
@click.argument("file")
@click.option("--name", help="Of the workflow. [the name of the file]")
@click.option("--check", is_flag=True, help="Check the definition, and write nothing.")
@options
def deploy(session: Session, file: str, name: str | None, check: bool) -> None:
    """Create the workflow of a definition, or a new version of the one with its name; FILE may be - for stdin.

    \b
    {"nodes": [{"id": "charge", "type": "function", "config": {"function": "charge"}}], "edges": []}
    """
    if name is None and file == "-" and not check:
        raise click.UsageError("What comes from stdin needs a --name")
    definition = object_text(file if file == "-" else f"@{file}", "FILE")
    client = session.client
    if check:
        checked = service.ValidateWorkflowHttpRequest(
            project_id=client.project_id, body=json_body(f'{{"definition": {definition}}}')
        )
        found = client.call(client.workflows.ValidateWorkflowHttp, checked)
        if session.out.json:
            return session.out.document(plain(found))
        return session.out.text(f"The definition is right: {found.nodes} nodes, {found.edges} edges")
    deployed = _deploy(client, name or Path(file).stem, definition)
    if session.out.json:
        return session.out.document(deployed)
    return session.out.text(f"{deployed['name']} is at version {deployed['version']}: {deployed['id']}")


@workflows.command()
@click.argument("workflow", metavar="ID|NAME")
@options
def delete(session: Session, workflow: str) -> None:
    """Delete a workflow that no trigger starts; runs that have begun go on to their end."""
    client = session.client
    workflow_id = client.workflow_id(workflow)
    request = service.DeleteWorkflowRequest(project_id=client.project_id, workflow_id=workflow_id)
    client.call(client.workflows.DeleteWorkflow, request)
    if session.out.json:
        return session.out.document({"deleted": workflow_id})
    return session.out.text(f"Deleted {workflow_id}")


for _command in (
    *(workflow_runs.run, workflow_runs.runs, workflow_runs.show),
    *(workflow_runs.step, workflow_runs.watch, workflow_runs.cancel),
):
    workflows.add_command(_command)


def _deploy(client: Client, name: str, definition: str) -> dict[str, Any]:
    if not any(item.name == name for item in client.every_workflow()):
        body = json_body(f'{{"name": {json.dumps(name)}, "definition": {definition}}}')
        request = service.CreateWorkflowHttpRequest(project_id=client.project_id, body=body)
        made: dict[str, Any] = client.call_json(client.workflows.CreateWorkflowHttp, request)
        return made
    changes = service.UpdateWorkflowHttpRequest(
        project_id=client.project_id,
        workflow_id=client.workflow_id(name),
        body=json_body(f'{{"definition": {definition}}}'),
    )
    changed: dict[str, Any] = client.call_json(client.workflows.UpdateWorkflowHttp, changes)
    return changed
