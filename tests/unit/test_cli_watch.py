"""When `deploy --watch` deploys again."""

import json
import os
from collections.abc import Callable, Iterable
from contextlib import suppress
from pathlib import Path

import pytest

from server.cli.watch import changes, watched
from tests.fix_cli import Atlas, FakeApi


class Script:
    """In place of waiting, does the next thing; ends the watch when there is none left."""

    def __init__(self, *steps: Callable[[], object] | None) -> None:
        self.steps = list(steps)

    def __call__(self, _: float) -> None:
        if not self.steps:
            raise KeyboardInterrupt
        if (step := self.steps.pop(0)) is not None:
            step()


def count(files: Iterable[Path], pause: Script, busy: Callable[[], None] | None = None) -> int:
    """How many changes there are until the script ends; `busy` is what happens meanwhile, at the beginning."""
    found = -1  # the first is the beginning
    with suppress(KeyboardInterrupt):
        for _ in changes(lambda: files, pause):
            found += 1
            if found == 0 and busy is not None:
                busy()
    assert not pause.steps
    return found


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "index.js"
    path.write_text("1")
    return path


def touch(path: Path) -> Callable[[], None]:
    """A change that the coarsest clock of a file system shows."""

    def change() -> None:
        path.write_text(path.read_text() + "x" if path.exists() else "x")
        stamp = path.stat().st_mtime_ns + len(path.read_text()) * 10**9
        os.utime(path, ns=(stamp, stamp))

    return change


def test_nothing_changes(file: Path) -> None:
    assert count([file], Script(None, None, None)) == 0


def test_a_burst_is_one_change(file: Path) -> None:
    assert count([file], Script(None, touch(file), touch(file), file.unlink, touch(file), None, None)) == 1


def test_two_changes_with_rest_between(file: Path) -> None:
    assert count([file], Script(touch(file), None, None, touch(file), None, None)) == 2


def test_a_change_while_the_caller_is_busy_is_seen(file: Path) -> None:
    assert count([file], Script(None, None), busy=touch(file)) == 1


def test_a_file_that_appears_beside_is_a_change(file: Path) -> None:
    assert count([file], Script((file.parent / "missing.js").touch, None)) == 1


def test_libraries_are_not_watched(file: Path) -> None:
    assert watched([file, file.parent / "node_modules" / "x" / "y.js"]) == {file, file.parent}


def test_deploys_again_on_change_and_goes_on_after_an_error(
    api: FakeApi, to_api: Atlas, file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    good = "export default () => 1\n"
    file.write_text(good)

    def write(text: str) -> Callable[[], None]:
        def change() -> None:
            file.write_text(text)
            touch(file)()

        return change

    def stamp() -> None:
        os.utime(file, ns=(0, 0))

    fixed = good.replace("1", "2")
    script = Script(write("export default (\n"), None, write(fixed), None, stamp, None, touch(file))
    monkeypatch.setattr("server.cli.watch.changes.__defaults__", (script,))
    ran = to_api("deploy", "index.js", "--slug", "hello", "--watch", "--json")
    assert ran.code == 130
    assert [request.source for request in api.asked] == [good, fixed + "x"]
    assert [json.loads(line)["version"] for line in ran.out.splitlines()] == [1, 2]
    assert json.loads(ran.err)["error"]["reason"] == "BUNDLE_FAILED"


def test_a_file_that_was_found_meanwhile_and_has_changed_since_is_read_again(file: Path) -> None:
    known = [file]
    found = 0
    with suppress(KeyboardInterrupt):
        for _ in changes(lambda: known, Script(None, None, None)):
            found += 1
            if found == 1:
                other = file.parent / "lib" / "other.js"
                other.parent.mkdir()
                other.write_text("1")
                known.append(other)
    assert found == 2
