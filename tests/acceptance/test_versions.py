"""Versions of a function over the wire: notes, roll back and forth, delete and restore, and every form of download."""

import base64
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import wasmtime

from tests.fix_clients import Rest

TYPED = "export default (input: { n: number }): number => input.n + 1\n"


def versions(rest: Rest, function_id: str) -> list[tuple[int, bool, str]]:
    found = rest.manage("GET", f"/functions/{function_id}/versions").json()["versions"]
    return [(item["version"], item["active"], item["note"]) for item in found]


def test_notes_activation_and_rollback(rest: Rest) -> None:
    for number, note in ((1, "first\nin two lines"), (2, ""), (3, "thïrd")):
        function_id = rest.deployed(f"export default () => {number}", slug="history", note=note)
    assert versions(rest, function_id) == [(3, True, "thïrd"), (2, False, ""), (1, False, "first\nin two lines")]
    activated = rest.manage("POST", f"/functions/{function_id}/versions/1:activate", json={})
    assert (activated.json()["version"], rest.invoke("history").json()["result"]) == (1, 1)
    for expected in (3, 2, 1):
        rolled = rest.manage("POST", f"/functions/{function_id}:rollback", json={})
        assert (rolled.json()["version"], rest.invoke("history").json()["result"]) == (expected, expected)
    none = rest.manage("POST", f"/functions/{function_id}:rollback", json={})
    assert (none.status_code, none.json()["error"]["details"][0]["reason"]) == (400, "NO_EARLIER_VERSION")
    assert versions(rest, function_id)[2][1] is True


def test_versions_are_paged_and_their_tokens_are_their_own(rest: Rest) -> None:
    for number in range(3):
        function_id = rest.deployed(f"export default () => {number}", slug="paged")
    other = rest.deployed("export default () => 1", slug="other-paged")
    path = f"/functions/{function_id}/versions"
    first = rest.manage("GET", path, params={"page_size": 2}).json()
    token = first["next_page_token"]
    rest_of_it = rest.manage("GET", path, params={"page_size": 2, "page_token": token}).json()
    assert [item["version"] for item in first["versions"] + rest_of_it["versions"]] == [3, 2, 1]
    assert rest_of_it["next_page_token"] == ""
    for elsewhere in (f"/functions/{other}/versions", "/functions", "/runs"):
        assert rest.manage("GET", elsewhere, params={"page_token": token}).status_code == 400, elsewhere


def test_a_version_keeps_what_it_was_configured_with(rest: Rest) -> None:
    source = "export default (_, ctx) => ({ ...ctx.env })"
    function_id = rest.deployed(source, slug="configured", env={"A": "1"}, settings={"timeout_ms": 500})
    changed = rest.manage(
        "PATCH",
        f"/functions/{function_id}",
        json={"env": {"variables": {"B": "2"}}, "settings": {}, "isolation": "fresh", "note": "n"},
    ).json()
    assert (changed["version"], changed["env"], changed["settings"], changed["isolation"]) == (
        2,
        {"B": "2"},
        {},
        "fresh",
    )
    assert rest.invoke("configured").json()["result"] == {"B": "2"}
    back = rest.manage("POST", f"/functions/{function_id}:rollback", json={}).json()
    assert (back["env"], back["settings"], back["isolation"]) == ({"A": "1"}, {"timeout_ms": 500}, "warm")
    assert rest.invoke("configured").json()["result"] == {"A": "1"}


def test_delete_and_restore(rest: Rest) -> None:
    function_id = rest.deployed("export default () => 'first'", slug="mortal")
    for _ in range(2):
        assert rest.manage("DELETE", f"/functions/{function_id}").status_code == 200
    assert rest.invoke("mortal").status_code == 404
    listed = rest.manage("GET", "/functions", params={"deleted": True}).json()["functions"]
    assert [item["slug"] for item in listed if item["id"] == function_id and item["deleted_at"]] == ["mortal"]
    replacement = rest.deployed("export default () => 'second'", slug="mortal")
    taken = rest.manage("POST", f"/functions/{function_id}:undelete", json={})
    assert (taken.status_code, taken.json()["error"]["details"][0]["reason"]) == (409, "SLUG_TAKEN")
    rest.manage("DELETE", f"/functions/{replacement}")
    restored = rest.manage("POST", f"/functions/{function_id}:undelete", json={}).json()
    assert (restored["id"], "deleted_at" in restored) == (function_id, False)
    assert rest.invoke("mortal").json()["result"] == "first"


def test_source_and_artifact_are_downloaded(rest: Rest) -> None:
    function_id = rest.deployed(TYPED, slug="typed-source", language="typescript")
    path = f"/functions/{function_id}/versions/1/download"
    source = rest.manage("GET", path)
    assert (source.text, source.headers["content-type"]) == (TYPED, "application/typescript; charset=utf-8")
    assert source.headers["content-disposition"] == 'attachment; filename="typed-source-v1.ts"'
    artifact = rest.manage("GET", path, params={"form": "artifact", "version": 7, "function_id": "forged"})
    assert "number" not in artifact.text
    assert "input.n + 1" in artifact.text
    assert rest.manage("GET", path, params={"form": "standalone"}).status_code == 400
    assert rest.manage("GET", path, params={"form": "../etc"}).status_code == 400
    assert rest.manage("GET", f"/functions/{function_id}/versions/2/download").status_code == 404


def run_standalone(module: bytes, stdin: bytes, folder: Path) -> Any:
    """As any WASI preview 1 runtime would."""
    (folder / "stdin").write_bytes(stdin)
    streams = wasmtime.WasiConfig()
    streams.stdin_file, streams.stdout_file = folder / "stdin", folder / "stdout"
    with wasmtime.Engine() as engine, wasmtime.Store(engine) as store:
        store.set_wasi(streams)
        linker = wasmtime.Linker(engine)
        linker.define_wasi()
        start = linker.instantiate(store, wasmtime.Module(engine, module)).exports(store)["_start"]
        assert isinstance(start, wasmtime.Func)
        start(store)
    return json.loads((folder / "stdout").read_bytes())


def test_a_standalone_module_runs_elsewhere_and_comes_back_as_a_module(rest: Rest, tmp_path: Path) -> None:
    function_id = rest.deployed(TYPED, slug="portable", language="typescript", runtime="wasm")
    standalone = rest.manage("GET", f"/functions/{function_id}/versions/1/download", params={"form": "standalone"})
    assert standalone.headers["content-type"] == "application/wasm"
    assert run_standalone(standalone.content, b'{"n": 41}', tmp_path) == 42

    module = base64.b64encode(standalone.content).decode()
    fields = {"name": "m", "slug": "module", "runtime": "wasm", "module": module}
    deployed = rest.manage("POST", "/functions/deploy", json=fields).json()
    assert (deployed["language"], deployed["entrypoint"]) == ("wasm", "module.wasm")
    answers = [rest.invoke("module", {"n": 1}).json() for _ in range(2)]
    assert [answer["result"] for answer in answers] == [2, 2]
    assert len({answer["metrics"]["fuel_consumed"] for answer in answers}) == 1
    same = rest.manage("GET", f"/functions/{deployed['id']}/versions/1/download")
    assert same.content == standalone.content


GARBAGE = [
    ({"module": "!!!"}, "module"),
    ({"module": "AAAA"}, "no WebAssembly module"),
    ({"module": "AGFzbQEAAAA="}, "_start"),
    ({"module": "AGFzbQEAAAD7/w=="}, "no valid module"),
    ({"module": ["AGFzbQEAAAA="]}, ""),
    ({"module": base64.b64encode(bytes(2 * 2**20 + 1)).decode()}, "2 MiB"),
    ({"module": "AGFzbQEAAAA=", "runtime": "node"}, "runtime"),
    ({"module": "AGFzbQEAAAA=", "source": "export default () => 1"}, "module"),
    ({"module": "AGFzbQEAAAA=", "language": "javascript"}, "language"),
]


@pytest.mark.parametrize(("fields", "text"), GARBAGE, ids=[str(fields)[:50] for fields, _ in GARBAGE])
def test_what_is_no_module_is_refused(rest: Rest, fields: dict[str, object], text: str) -> None:
    answer = rest.manage("POST", "/functions/deploy", json={"name": "m", "slug": "no", "runtime": "wasm", **fields})
    assert answer.status_code == 400, answer.text
    assert text in answer.json()["error"]["message"]


@pytest.mark.parametrize("note", ["\0", "\x1b[31m", "\x85", "x" * 1001, "a\rb\x7f"])
def test_a_note_is_text_for_people(rest: Rest, note: str) -> None:
    answer = rest.deploy("export default () => 1", slug="noted", note=note)
    assert (answer.status_code, "note" in answer.json()["error"]["message"]) == (400, True)


def test_another_project_reaches_nothing_of_it(rest: Rest, new_project: Callable[..., Rest]) -> None:
    function_id = rest.deployed("export default () => 'ours'", slug="ours")
    stranger = new_project()
    stranger.deployed("export default () => 'theirs'", slug="ours")
    one = f"/functions/{function_id}"
    for method, path in [
        ("GET", one),
        ("PATCH", one),
        ("DELETE", one),
        ("POST", f"{one}:undelete"),
        ("POST", f"{one}:rollback"),
        ("GET", f"{one}/versions"),
        ("GET", f"{one}/versions/1"),
        ("GET", f"{one}/versions/1/download"),
        ("POST", f"{one}/versions/1:activate"),
    ]:
        body = {} if method == "GET" else {"json": {"name": "x"} if method == "PATCH" else {}}
        assert stranger.manage(method, path, **body).status_code == 404, (method, path)
        with_our_path = rest.request(method, f"/v1/projects/{rest.project_id}{path}", key=stranger.service_key, **body)
        assert with_our_path.status_code == 403, (method, path)
        assert (
            rest.request(method, f"/v1/projects/{rest.project_id}{path}", key=rest.anon_key, **body).status_code == 403
        )
    assert rest.invoke("ours").json()["result"] == "ours"
