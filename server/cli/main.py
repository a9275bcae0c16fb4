"""The program `atlas`: its commands by name, and what becomes of their failures."""

import sys
import tomllib
from pathlib import Path
from typing import Final

import click

from server.cli.commands.build import build
from server.cli.commands.deliveries import deliveries
from server.cli.commands.deploy import deploy
from server.cli.commands.environment import environment
from server.cli.commands.events import events
from server.cli.commands.functions import functions
from server.cli.commands.init import init
from server.cli.commands.invoke import invoke, result
from server.cli.commands.logs import logs
from server.cli.commands.runs import cancel, run, runs
from server.cli.commands.secrets import secrets
from server.cli.commands.storage import storage
from server.cli.commands.triggers import triggers
from server.cli.commands.versions import download, rollback, versions
from server.cli.commands.workflows import workflows
from server.cli.problems import USAGE, Problem
from server.cli.session import Session

INTERRUPTED: Final = 130
PROJECT: Final = Path(__file__).parents[2] / "pyproject.toml"


def _version() -> str:
    """Of the checkout that this is a part of."""
    project: str = tomllib.loads(PROJECT.read_text())["project"]["version"]
    return project


@click.group(
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
    epilog="Exit codes: 0 done, 1 the function failed, 2 bad usage, 3 refused, 4 no server, 130 interrupted.",
)
@click.version_option(_version(), prog_name="atlas", message="%(prog)s %(version)s")
def atlas() -> None:
    """Deploy functions, run them, and see what they did.

    \b
    atlas init hello && atlas deploy hello
    atlas invoke hello --data '{"name": "Ada"}'
    atlas logs hello --follow

    Where the API is and who asks comes from `.atlas/env` of a running stack, in this folder or one above, from the
    variables ATLAS_URL, PROJECT_ID and SERVICE_KEY, or from --url, --project and --key.

    \b
    Completion: eval "$(_ATLAS_COMPLETE=bash_source atlas)"; zsh_source and fish_source likewise.
    """


for command in (
    *(init, deploy, build, invoke, result, logs, runs, run, cancel),
    *(functions, versions, rollback, download, secrets, environment),
    *(events, triggers, deliveries, workflows, storage),
):
    atlas.add_command(command)


def main(arguments: list[str] | None = None) -> None:
    """Run one command line and exit with its code."""
    sys.exit(status(sys.argv[1:] if arguments is None else arguments))


def status(arguments: list[str]) -> int:
    """Run one command line; its exit code."""
    session = Session()
    session.out.json = "--json" in arguments  # also for a command line that cannot be parsed
    try:
        ended = atlas.main(args=arguments, prog_name="atlas", standalone_mode=False, obj=session)
    except Problem as problem:
        session.out.problem(problem)
        return problem.exit_code
    except click.ClickException as why:
        if session.out.json:
            session.out.problem(Problem(why.format_message(), USAGE))
        else:
            why.show()
        return USAGE
    except click.Abort:
        return INTERRUPTED
    finally:
        session.close()
    return ended if isinstance(ended, int) else 0
