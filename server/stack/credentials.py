"""The secrets between the parts, made once and kept in the state directory (mode 0600)."""

import json
import secrets
from dataclasses import asdict, dataclass
from pathlib import Path

from server.settings import Settings
from server.stack.account import private_file


class CredentialsError(Exception):
    """The file with the secrets cannot be used."""


@dataclass(frozen=True, slots=True)
class Credentials:
    admin_key: str
    master_key: str  # 64 hex digits
    valkey_password: str
    nats_token: str


def credentials(state: Path, settings: Settings) -> Credentials:
    """The kept ones, or new ones; a variable that is set goes first."""
    file = state / "secrets.json"
    try:
        made = Credentials(**json.loads(file.read_text()))
    except FileNotFoundError:
        made = Credentials(
            admin_key=f"atlas_admin_{secrets.token_urlsafe(32)}",
            master_key=secrets.token_hex(32),
            valkey_password=secrets.token_urlsafe(32),
            nats_token=secrets.token_urlsafe(32),
        )
        private_file(file, json.dumps(asdict(made)) + "\n")
    except (ValueError, TypeError):
        raise CredentialsError(
            f"{file} is damaged: restore it, or `python -m server reset` deletes all state"
        ) from None
    return Credentials(
        admin_key=settings.admin_key or made.admin_key,
        master_key=settings.master_key or made.master_key,
        valkey_password=made.valkey_password,
        nats_token=made.nats_token,
    )
