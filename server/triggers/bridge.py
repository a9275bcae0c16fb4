"""A table of users that stands for an auth service: its changes are auth.signup and auth.login to a trigger.

    auth.signup  {"table": "users"}                     an INSERT
    auth.login   {"table": "users",                     an UPDATE that changed the column to another value than null
                  "login_column": "last_sign_in_at"}

    data          default column         what may be in it
    user_id       id                     a string or a whole number, told as a string; a row without it is none
    email         email                  a string
    phone         -                      a string
    provider      -                      a string, such as email or google
    created_at    created_at             a string; of a signup
    logged_in_at  the login_column       a string; of a login
    metadata      -                      an object

`map` names other columns. What a row does not have, or has as null, is left out. Such a trigger answers the table and
not what is published under its type, so that nobody is welcomed twice.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import Any, Final

from server.errors import InvalidArgument
from server.events.envelope import Event
from server.events.json_text import Json
from server.events.types import escape
from server.fields import shown
from server.triggers.conditions import changed
from server.triggers.paths import Envelope
from server.triggers.row_changes import require_column
from server.triggers.values import kind
from server.triggers.view import envelope_of

AUTH: Final = "auth"
SIGNUP: Final = "auth.signup"
LOGIN: Final = "auth.login"
BRIDGE_KEYS: Final = ("table", "map", "login_column")

OPERATIONS: Final = {SIGNUP: "INSERT", LOGIN: "UPDATE"}
_WHEN: Final = {SIGNUP: "created_at", LOGIN: "logged_in_at"}
_MEMBERS: Final = ("user_id", "email", "phone", "provider", "metadata")
_DEFAULTS: Final[Mapping[str, str]] = MappingProxyType({"user_id": "id", "email": "email"})
_DEFAULT_LOGIN: Final = "last_sign_in_at"
_OF_ROWS: Final = ("op", "schema", "table", "old", "changed", "unavailable", "lsn")


@dataclass(frozen=True, slots=True)
class Bridge:
    """`columns`: by the member of the data that each becomes."""

    event_type: str
    table: str
    columns: Mapping[str, str]
    login_column: str | None = None

    @property
    def pattern(self) -> str:
        """The events that it listens to."""
        return f"cdc.{OPERATIONS[self.event_type]}.{escape(self.table)}"

    def seen(self, envelope: Envelope) -> Envelope | None:
        """The auth event that a change of the table is, or None. Never raises."""
        row = envelope.get("data")
        if not isinstance(row, dict) or not self._is_login(envelope, row):
            return None
        data = {member: value for member, name in self.columns.items() if (value := _told(member, row.get(name)))}
        if "user_id" not in data:
            return None
        kept = {name: value for name, value in envelope.items() if name not in _OF_ROWS}
        return kept | {"type": self.event_type, "subject": data["user_id"][:255], "data": data}

    def event(self, event: Event) -> Event | None:
        """The same, of a whole event."""
        seen = self.seen(envelope_of(event))
        if seen is None:
            return None
        data = Json(json.dumps(seen["data"]), seen["data"])
        return replace(event, type=self.event_type, subject=_subject(seen["subject"]), data=data, change=None)

    def _is_login(self, envelope: Envelope, row: dict[str, Any]) -> bool:
        if self.login_column is None:
            return True
        return row.get(self.login_column) is not None and changed(("data", self.login_column), envelope)


def bridge_of(event_type: str, config: Mapping[str, object], field: str = "config") -> Bridge | None:
    """None without a `table`. InvalidArgument names the key that is wrong."""
    if not config.keys() & {*BRIDGE_KEYS}:
        return None
    if event_type not in OPERATIONS:
        raise InvalidArgument(
            f"{field}.table", f"{field}.table can stand for {SIGNUP} or {LOGIN}; event_type is {shown(event_type)}"
        )
    if "table" not in config:
        raise InvalidArgument(f"{field}.table", f"{field}.table is missing; it is the name of a table of users")
    columns = dict(_DEFAULTS) | {_WHEN[event_type]: "created_at"}
    login_column = None
    if event_type == LOGIN:
        login_column = require_column(config.get("login_column", _DEFAULT_LOGIN), f"{field}.login_column")
        columns |= {_WHEN[event_type]: login_column}
    elif "login_column" in config:
        raise InvalidArgument(f"{field}.login_column", f"{field}.login_column is of {LOGIN}; {SIGNUP} has none")
    columns |= _mapped(config.get("map", {}), f"{field}.map", (*_MEMBERS, _WHEN[event_type]))
    return Bridge(event_type, require_column(config["table"], f"{field}.table"), columns, login_column)


def _mapped(value: object, field: str, known: tuple[str, ...]) -> dict[str, str]:
    if not isinstance(value, dict):
        raise InvalidArgument(field, f"{field} is {kind(value)}; it must be an object of names of columns")
    for member in value:
        if member not in known:
            raise InvalidArgument(
                f"{field}.{member[:40]}", f"{field} has the key {shown(member)}; known are {', '.join(known)}"
            )
    return {member: require_column(name, f"{field}.{member}") for member, name in value.items()}


def _told(member: str, value: object) -> Any:
    """As the contract has it; None for what it has no place for."""
    if member == "metadata":
        return value if isinstance(value, dict) else None
    if isinstance(value, int) and not isinstance(value, bool):
        return str(value) if abs(value) < 10**40 else None
    return value if isinstance(value, str) and value else None


def _subject(text: str) -> str | None:
    """As events may have one."""
    return text if text.isprintable() and text.strip() else None
