"""The event types that a trigger names: one, or a pattern of them as in subjects of NATS.

    cdc.INSERT.orders     that type alone
    cdc.*.orders          `*` is exactly one token: every operation on the table
    cdc.INSERT.*          every insert
    order.>               `>` at the end is one token or more: order.paid and order.item.added, but not order

The first token is always written out, so that a trigger belongs to one family. Of the reserved families cdc has
cdc.{operation}.{table} and cdc.gap, and cron is one word; a tick reaches the trigger that it names and no other.
"""

from typing import Final

from server.errors import InvalidArgument
from server.events.types import MAX_TOKENS, MAX_TYPE_CHARS, escape, is_event_type
from server.fields import shown

ONE: Final = "*"
REST: Final = ">"
CRON: Final = "cron"
CDC_OPERATIONS: Final = ("INSERT", "UPDATE", "DELETE", "TRUNCATE")


def parse_pattern(field: str, value: str) -> str:
    """The pattern as it is; InvalidArgument when no event could ever match it."""
    if not value:
        raise InvalidArgument(field, f"{field} is missing; it is a type such as cdc.INSERT.orders or order.paid")
    tokens = value.split(".")
    if tokens[0] in (ONE, REST):
        raise _refused(field, value, "its first token must be written out, such as cdc, auth, storage or order")
    if REST in tokens[:-1]:
        raise _refused(field, value, "> stands for all that follows, so that it must be the last token")
    if not is_event_type(".".join("x" if token in (ONE, REST) else token for token in tokens)):
        raise _refused(field, value, _spelling(value, tokens))
    if rule := _family_rule(tokens):
        raise _refused(field, value, rule)
    return value


def matches(pattern: str, event_type: str) -> bool:
    """Whether an event of that type is meant."""
    wanted, found = pattern.split("."), event_type.split(".")
    if wanted[-1] == REST:
        wanted.pop()
        if len(found) <= len(wanted):
            return False
    elif len(found) != len(wanted):
        return False
    return all(one in (ONE, other) for one, other in zip(wanted, found, strict=False))


def matching(event_type: str) -> list[str]:
    """All patterns that mean events of that type, itself included; 2^8 at most."""
    first, *rest = event_type.split(".")
    found, begun = [], [first]
    for token in rest:
        found += [f"{each}.{REST}" for each in begun]
        begun = [f"{each}.{next_token}" for each in begun for next_token in (token, ONE)]
    return found + begun


def _family_rule(tokens: list[str]) -> str | None:
    """What a reserved family asks for and these do not give."""
    family, *rest = tokens
    if family == CRON and rest:
        return "events of schedules are of the type cron, without anything behind it"
    if family in ("auth", "storage") and not rest:
        return f"it lacks what happened, such as {family}.{'login' if family == 'auth' else 'upload'} or {family}.>"
    if family != "cdc" or rest in ([REST], ["gap"]):
        return None
    if len(rest) != 2 or rest[0] not in (ONE, *CDC_OPERATIONS):
        operations = ", ".join(CDC_OPERATIONS)
        return (
            f"changes of the database are cdc.{{operation}}.{{table}} with an operation of {operations} or *, or cdc.>"
        )
    return None


def _spelling(value: str, tokens: list[str]) -> str:
    if len(tokens) > MAX_TOKENS or len(value) > MAX_TYPE_CHARS:
        return f"at most {MAX_TOKENS} tokens and {MAX_TYPE_CHARS} characters are allowed"
    if "" in tokens:
        return "there must be a token before and behind each dot"
    rule = "a token is *, a last >, or letters, digits, _ and - with every other byte as %XX"
    if "%" in value or not value.isprintable():
        return rule
    spelled = ".".join(token if token in (ONE, REST) else escape(token) for token in tokens)
    return f"{rule}: {spelled}"


def _refused(field: str, value: str, rule: str) -> InvalidArgument:
    return InvalidArgument(field, f"{field} is {shown(value)}; {rule}", value=value[:100])
