"""What all commands share: the options that say where the API is and how to print, and what is made of them."""

from collections.abc import Callable
from functools import cached_property
from pathlib import Path
from typing import Any, TypeVar

import click

from server.cli.client import Client
from server.cli.output import Output
from server.cli.target import resolve

Command = TypeVar("Command", bound=Callable[..., Any])


class Session:
    """One command line's. `client` is made when first used, so that commands without the API need none."""

    def __init__(self) -> None:
        self.out = Output()
        self.url: str | None = None
        self.project: str | None = None
        self.key: str | None = None
        self.admin = False  # whether the key must be that of an operator

    @cached_property
    def client(self) -> Client:
        return Client(resolve(self.url, self.project, self.key, start=Path.cwd(), admin=self.admin))

    def close(self) -> None:
        if "client" in self.__dict__:
            self.client.close()


def options(command: Command) -> Command:
    """The options of every command, and the Session as its first argument."""
    return _with((_URL, _PROJECT, _KEY, _JSON, _PLAIN), command)


def admin_options(command: Command) -> Command:
    """The same of a command for operators, whose key is the admin key."""
    return _with((_URL, _ADMIN_KEY, _JSON, _PLAIN), command)


def _with(found: tuple[Callable[[Command], Command], ...], command: Command) -> Command:
    for option in reversed(found):
        command = option(command)
    return click.pass_obj(command)  # type: ignore[return-value]


def _keep_admin(context: click.Context, parameter: click.Parameter, value: str | None) -> None:
    context.obj.admin = True
    _keep(context, parameter, value)


def _keep(context: click.Context, parameter: click.Parameter, value: str | None) -> None:
    if value is not None:
        setattr(context.obj, str(parameter.name), value)


def _keep_json(context: click.Context, _: click.Parameter, value: bool) -> None:
    context.obj.out.json |= value


def _keep_plain(context: click.Context, _: click.Parameter, value: str | None) -> None:
    context.obj.out.plain |= bool(value)


_SHARED: Any = {"expose_value": False, "callback": _keep}
_URL = click.option("--url", envvar="ATLAS_URL", metavar="URL", help="Of the API. [ATLAS_URL, .atlas/env]", **_SHARED)
_PROJECT = click.option(
    "--project", envvar="PROJECT_ID", metavar="UUID", help="The project. [PROJECT_ID, .atlas/env]", **_SHARED
)
_KEY = click.option(
    "--key", envvar=["SERVICE_KEY", "ANON_KEY"], help="An API key. [SERVICE_KEY, ANON_KEY, .atlas/env]", **_SHARED
)
_ADMIN_KEY = click.option(
    "--key", envvar="ADMIN_KEY", help="The admin key. [ADMIN_KEY, .atlas/env]", expose_value=False, callback=_keep_admin
)
_JSON = click.option("--json", "json_", is_flag=True, expose_value=False, callback=_keep_json, help="Print JSON.")
_PLAIN = click.option("--plain", envvar="NO_COLOR", hidden=True, expose_value=False, callback=_keep_plain)
