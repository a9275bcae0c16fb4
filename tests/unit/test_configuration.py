"""What the next version's variables and secrets are, given the active one's; and what is refused."""

from dataclasses import replace
from typing import Any

import pytest

from server.errors import InvalidArgument
from server.functions.configuration import (
    MAX_BYTES,
    MAX_VARIABLES,
    UNCHANGED,
    Configuration,
    Reconfiguration,
    reconfigured,
)
from server.functions.secrets import OVERHEAD_BYTES
from server.functions.settings import FunctionSettings


def seal(name: str, value: str) -> bytes:
    return bytes(OVERHEAD_BYTES) + value.encode()[::-1]


ACTIVE = Configuration(
    settings=FunctionSettings(timeout_ms=50), env={"A": "1", "B": "2"}, secrets={"S": seal("S", "old"), "T": b"t" * 60}
)


def after(change: Reconfiguration, active: Configuration = ACTIVE) -> Configuration:
    change.check()
    return reconfigured(active, change, "quickjs", seal)


def test_nothing_given_leaves_everything() -> None:
    assert after(UNCHANGED) == ACTIVE


def test_variables_and_settings_are_replaced_whole() -> None:
    assert after(Reconfiguration(env={"C": "3"})).env == {"C": "3"}
    assert after(Reconfiguration(env={})).env == {}
    assert after(Reconfiguration(settings=FunctionSettings())).settings == FunctionSettings()


def test_once_it_is_exactly_once_it_stays_so_until_told() -> None:
    assert not after(UNCHANGED).exactly_once
    once = after(Reconfiguration(exactly_once=True))
    assert once.exactly_once
    assert after(UNCHANGED, once) == once
    assert after(Reconfiguration(env={}), once).exactly_once
    assert after(Reconfiguration(exactly_once=False), once) == ACTIVE


@pytest.mark.parametrize(
    ("active", "given", "message"),
    [
        (False, True, 'exactly_once is true; it must be false with the runtime "wasm"'),
        (True, None, "exactly_once of the active version is true"),
    ],
)
def test_what_has_no_database_is_not_exactly_once(active: bool, given: bool | None, message: str) -> None:
    change = Reconfiguration(exactly_once=given)
    with pytest.raises(InvalidArgument, match=message) as caught:
        reconfigured(Configuration(exactly_once=active), change, "wasm", seal)
    assert caught.value.field == "exactly_once"
    assert not reconfigured(
        Configuration(exactly_once=active), replace(change, exactly_once=False), "wasm", seal
    ).exactly_once
    for runtime in ("quickjs", "node", "deno"):
        assert reconfigured(Configuration(exactly_once=active), change, runtime, seal).exactly_once


def test_secrets_are_added_replaced_and_removed_one_by_one() -> None:
    made = after(Reconfiguration(secrets={"S": "new", "U": "u"}, remove_secrets=("T",)))
    assert made.secrets == {"S": seal("S", "new"), "U": seal("U", "u")}
    assert (made.env, made.settings) == (ACTIVE.env, ACTIVE.settings)


def test_a_variable_becomes_a_secret_and_back_in_one_step() -> None:
    made = after(Reconfiguration(env={"B": "2", "S": "plain"}, secrets={"A": "hidden"}, remove_secrets=("S",)))
    assert (made.env, sorted(made.secrets)) == ({"B": "2", "S": "plain"}, ["A", "T"])


@pytest.mark.parametrize(
    ("change", "field", "message"),
    [
        ({"env": {"1A": "x"}}, "env", 'env has the name "1A"'),
        ({"env": {"": "x"}}, "env", 'env has the name ""'),
        ({"secrets": {"a-b": "x"}}, "secrets", 'secrets has the name "a-b"'),
        ({"secrets": {"Ä": "x"}}, "secrets", "names are letters, digits and underscores"),
        ({"env": {"A\n": "x"}}, "env", "has the name"),
        ({"env": {"A" * 129: "x"}}, "env", "1 to 128 characters"),
        ({"env": {"A": "a\0b"}}, "env", "value of A in env has the character U+0000 at position 1"),
        ({"secrets": {"A": "\0"}}, "secrets", "value of A in secrets has the character U+0000"),
        ({"env": {"A": "ab\ud800"}}, "env", "half of a surrogate pair at position 2"),
        ({"secrets": {"A": "x" * (MAX_BYTES + 1)}}, "secrets", "has 65537 characters"),
        ({"env": {f"N{n}": "" for n in range(MAX_VARIABLES + 1)}}, "env", "129 variables and secrets; at most 128"),
        ({"env": {f"N{n}": "" for n in range(MAX_VARIABLES - 1)}}, "env", "129 variables and secrets; at most 128"),
        ({"env": {"A": "é" * (MAX_BYTES // 2)}}, "env", "bytes together; at most 65536 (64 KiB)"),
        ({"secrets": {"A": "x"}}, "secrets", "A is a plain variable of the function"),
        ({"env": {"S": "x"}}, "env", "S is a secret of the function"),
        ({"env": {"X": "x"}, "secrets": {"X": "y"}}, "secrets", "X is a plain variable"),
        ({"remove_secrets": ("NO",)}, "remove_secrets", 'no secret "NO"'),
        ({"remove_secrets": ("A",)}, "remove_secrets", 'no secret "A"'),
        ({"secrets": {"S": "x"}, "remove_secrets": ("S",)}, "remove_secrets", "to be set and to be removed"),
    ],
)
def test_what_is_refused_names_the_field(change: dict[str, Any], field: str, message: str) -> None:
    with pytest.raises(InvalidArgument) as caught:
        after(Reconfiguration(**change))
    assert (caught.value.field, message in caught.value.message) == (field, True), caught.value.message


def test_the_largest_is_accepted_and_secrets_count_by_their_own_length() -> None:
    active = Configuration(env={"A": "x" * 1023}, secrets={"S": seal("S", "y" * 1023)})
    exact = Reconfiguration(secrets={"B": "é" * (MAX_BYTES // 2 - 1025) + "z"})
    assert len(after(exact, active).secrets) == 2
    with pytest.raises(InvalidArgument, match="65537 bytes together"):
        after(Reconfiguration(secrets={"B": exact.secrets["B"] + "z"}), active)


def test_no_value_of_a_secret_is_told() -> None:
    value = "hunter2"
    change = Reconfiguration(secrets={"A": value * 20_000, "S": value})
    with pytest.raises(InvalidArgument) as caught:
        after(change)
    assert value not in repr(caught.value) + str(caught.value.metadata) + repr(change)
