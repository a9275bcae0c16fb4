"""`NAME=VALUE` on the command line."""

from collections.abc import Iterable

import click


def pairs(words: Iterable[str]) -> dict[str, str]:
    """Raises UsageError for a word without a name or an equals sign. The server judges names and sizes."""
    found: dict[str, str] = {}
    for word in words:
        name, sign, value = word.partition("=")
        if not sign or not name:
            raise click.UsageError(f'"{word}" is not NAME=VALUE')
        found[name] = value
    return found
