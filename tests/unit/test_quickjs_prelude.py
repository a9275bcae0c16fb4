"""The prelude's texts keep the rules that stacks and the loader rely on."""

import re

from engines.quickjs import prelude

EAGER, UNITS = prelude.read()


def test_everything_is_on_line_one() -> None:
    assert "\n" not in EAGER
    assert all("\n" not in source for source in UNITS.values())


def test_no_comment_hides_the_rest_of_a_line() -> None:
    for source in (EAGER, *UNITS.values()):
        assert " // " not in source


def test_every_unit_that_is_needed_is_there() -> None:
    needed = {name for text in (EAGER, *UNITS.values()) for name in re.findall(r"""\bneed\("(\w+)"\)""", text)}
    assert needed <= set(UNITS)
    offered = re.search(r"const units = \{(.*?)\};", EAGER)
    assert offered is not None
    assert set(re.findall(r"(\w+): \[", offered[1])) <= set(UNITS)
