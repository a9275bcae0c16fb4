"""Function folders: what `init` makes, what `deploy` sends of them, and what is wrong with one."""

import json
from pathlib import Path

import pytest

from server.cli.project import slug_of
from tests.fix_cli import Atlas, FakeApi


def configure(folder: Path, **fields: object) -> None:
    config = {"slug": "hello", "entry": "index.js", **fields}
    (folder / "atlas.json").write_text(json.dumps(config))
    (folder / "index.js").write_text("export default () => 1\n")


def test_init_makes_a_folder_and_overwrites_nothing(atlas: Atlas, tmp_path: Path) -> None:
    ran = atlas("init", "my function", "--runtime", "node", "--json")
    assert ran.json["files"] == ["atlas.json", ".gitignore", "index.ts", "atlas.d.ts", "tsconfig.json"]
    config = json.loads((tmp_path / "my function" / "atlas.json").read_text())
    assert (config["slug"], config["runtime"], config["entry"]) == ("my-function", "node", "index.ts")
    before = {path: path.read_bytes() for path in (tmp_path / "my function").iterdir()}
    again = atlas("init", "my function", "--javascript")
    assert again.code == 2
    assert "is there already" in again.err
    assert {path: path.read_bytes() for path in (tmp_path / "my function").iterdir()} == before


def test_init_in_this_folder_keeps_its_gitignore(atlas: Atlas, tmp_path: Path) -> None:
    (tmp_path / ".gitignore").write_text("mine\n")
    assert atlas("init", "--javascript").code == 0
    assert (tmp_path / ".gitignore").read_text() == "mine\n"
    assert (tmp_path / "index.js").exists()


def test_deploy_sends_what_the_folder_says(api: FakeApi, to_api: Atlas, tmp_path: Path) -> None:
    configure(tmp_path, name="Hello", isolation="fresh", settings={"timeout_ms": 500}, env={"A": "1"})
    ran = to_api("deploy", "--note", "first", "--env", "B=2")
    assert ran.out.startswith("Deployed hello version 1 (quickjs, 0.0 KiB)\n")
    assert f"{api.url}/functions/v1/invoke/hello" in ran.out
    sent = api.asked[-1]
    assert (sent.slug, sent.name, sent.runtime, sent.isolation, sent.note) == (
        "hello",
        "Hello",
        "quickjs",
        "fresh",
        "first",
    )
    assert (sent.language, sent.source) == ("javascript", "export default () => 1\n")
    assert dict(sent.env) == {"A": "1", "B": "2"}
    assert sent.settings.timeout_ms == 500
    assert not sent.settings.HasField("memory_mb")


def test_what_is_not_said_is_left_as_it_is(api: FakeApi, to_api: Atlas, tmp_path: Path) -> None:
    configure(tmp_path)
    assert to_api("deploy", "--json").json["version"] == 1
    assert not api.asked[-1].HasField("settings")
    assert not api.asked[-1].env


def test_flags_win(api: FakeApi, to_api: Atlas, tmp_path: Path) -> None:
    configure(tmp_path)
    assert to_api("deploy", "--slug", "other", "--runtime", "node", "--name", "N", "--isolation", "warm").code == 0
    sent = api.asked[-1]
    assert (sent.slug, sent.runtime, sent.name, sent.isolation) == ("other", "node", "N", "warm")


@pytest.mark.parametrize(
    ("config", "flags", "sent"),
    [
        ({}, [], None),
        ({"exactly_once": True}, [], True),
        ({"exactly_once": None}, ["--exactly-once"], True),
        ({"exactly_once": True}, ["--no-exactly-once"], False),
        ({"exactly_once": False}, [], False),
    ],
)
def test_whether_it_is_exactly_once(
    config: dict[str, bool], flags: list[str], sent: bool | None, api: FakeApi, to_api: Atlas, tmp_path: Path
) -> None:
    configure(tmp_path, **config)
    assert to_api("deploy", *flags).code == 0
    asked = api.asked[-1]
    assert (asked.exactly_once if asked.HasField("exactly_once") else None) is sent


def test_a_single_file_is_named_by_itself(api: FakeApi, to_api: Atlas, tmp_path: Path) -> None:
    (tmp_path / "say hi.ts").write_text("export default (n: number) => n\n")
    assert to_api("deploy", "say hi.ts").code == 0
    sent = api.asked[-1]
    assert (sent.slug, sent.name, sent.language) == ("say-hi", "say-hi", "typescript")
    assert sent.source == "export default (n: number) => n\n"


def test_a_wasm_module_is_sent_as_bytes(api: FakeApi, to_api: Atlas, tmp_path: Path) -> None:
    (tmp_path / "sum.wasm").write_bytes(b"\0asm\1\0\0\0")
    assert to_api("deploy", "sum.wasm").code == 0
    sent = api.asked[-1]
    assert (sent.runtime, sent.module, sent.source) == ("wasm", b"\0asm\1\0\0\0", "")


@pytest.mark.parametrize(
    ("config", "text"),
    [
        ("{", "atlas.json:1:2"),
        ("[]", "one JSON object"),
        ('{"slugg": "x"}', "slugg is not known"),
        ('{"slug": 7}', "slug must be a string"),
        ('{"env": {"A": 1}}', "env.A must be a string"),
        ('{"env": []}', "env must be an object"),
        ('{"settings": {"timeout": 1}}', "settings.timeout is not known"),
        ('{"settings": {"timeout_ms": "1"}}', "settings.timeout_ms must be a whole number"),
        ('{"settings": {"timeout_ms": true}}', "settings.timeout_ms must be a whole number"),
        ('{"exactly_once": 1}', "exactly_once must be true or false"),
        ('{"entry": "none.ts"}', '"none.ts", and there is no such file'),
    ],
)
def test_a_wrong_config_names_file_and_field(
    config: str, text: str, api: FakeApi, to_api: Atlas, tmp_path: Path
) -> None:
    (tmp_path / "atlas.json").write_text(config)
    ran = to_api("deploy")
    assert ran.code == 2
    assert text in ran.err
    assert not api.asked


def test_a_number_that_the_wire_cannot_hold(api: FakeApi, to_api: Atlas, tmp_path: Path) -> None:
    configure(tmp_path, settings={"timeout_ms": 2**40})
    ran = to_api("deploy")
    assert ran.code == 2
    assert "settings.timeout_ms" in ran.err


@pytest.mark.parametrize("arguments", [["deploy"], ["deploy", "none.ts"], ["build", "none"]])
def test_nothing_to_deploy(arguments: list[str], to_api: Atlas) -> None:
    assert to_api(*arguments).code == 2


@pytest.mark.parametrize(
    ("text", "slug"), [("a b", "a-b"), ("..", "function"), ("é", "function"), ("x" * 99, "x" * 63)]
)
def test_slugs(text: str, slug: str) -> None:
    assert slug_of(text) == slug
