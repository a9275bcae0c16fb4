"""Which API a command line talks to, and as whom."""

from pathlib import Path

import pytest

from server.cli.problems import Problem
from server.cli.target import find_env, resolve
from server.stack.bootstrap import Env

ENV = Env(
    ATLAS_URL="http://localhost:3999",
    PROJECT_ID="p",
    SERVICE_KEY="s'k",
    ANON_KEY="a",
    ADMIN_KEY="x",
    TENANT_DATABASE_URL="y",
)


@pytest.fixture
def below(tmp_path: Path) -> Path:
    """A folder two below that of a running stack's file."""
    (tmp_path / ".atlas").mkdir()
    (tmp_path / ".atlas" / "env").write_text(ENV.text())
    folder = tmp_path / "a" / "b"
    folder.mkdir(parents=True)
    return folder


def test_the_nearest_file_of_a_stack_is_found_above(below: Path) -> None:
    target = resolve(None, None, None, start=below)
    assert (target.url, target.address, target.project_id, target.key) == (
        "http://localhost:3999",
        "localhost:3999",
        "p",
        "s'k",
    )


def test_what_is_given_wins_and_the_rest_is_the_files(below: Path) -> None:
    target = resolve("http://localhost:3999/", "other", None, start=below)
    assert (target.project_id, target.key) == ("other", "s'k")


def test_a_file_of_one_api_gives_no_key_to_another(below: Path) -> None:
    target = resolve("https://functions.example", None, None, start=below)
    assert (target.project_id, target.key, target.tls, target.address) == ("", "", True, "functions.example:443")


def test_a_file_of_another_user_is_not_believed(below: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    owner = (below.parents[1] / ".atlas" / "env").stat().st_uid
    assert find_env(below) is not None
    monkeypatch.setattr("os.geteuid", lambda: owner + 1)
    assert (find_env(below) is not None) is (owner == 0)


@pytest.mark.parametrize(
    "url", ["localhost:3000", "ftp://x", "http://", "http://x:port", "http://x/api", "http://[::1", "http://u:p@x"]
)
def test_what_is_no_url_is_refused_with_an_example(url: str, tmp_path: Path) -> None:
    with pytest.raises(Problem, match="The URL of the API is") as caught:
        resolve(url, None, None, start=tmp_path)
    assert caught.value.exit_code == 2
    assert "http://localhost:3000" in caught.value.hint


@pytest.mark.parametrize(
    ("url", "address", "local"),
    [("http://[::1]:5", "[::1]:5", True), ("http://127.0.0.1", "127.0.0.1:80", True), ("http://h:1", "h:1", False)],
)
def test_addresses(url: str, address: str, local: bool, tmp_path: Path) -> None:
    target = resolve(url, None, None, start=tmp_path)
    assert (target.address, target.local) == (address, local)


def test_a_damaged_file_is_named(below: Path) -> None:
    path = below.parents[1] / ".atlas" / "env"
    path.write_text("export X='")
    with pytest.raises(Problem, match=r"\.atlas/env cannot be read"):
        resolve(None, None, None, start=below)
