"""Commands against an API of their own: what they ask for, and what they print."""

import importlib
import json
import tomllib
from pathlib import Path
from typing import Any

import pytest

from atlas.functions.v1 import functions_pb2
from atlas.runs.v1 import runs_pb2
from tests.fix_cli import PROJECT_ID, RUN_ID, Atlas, FakeApi


def test_help_and_version(atlas: Atlas) -> None:
    assert "atlas init hello" in atlas("--help").out
    assert atlas("--version").out.startswith("atlas ")
    for command in ("init", "deploy", "invoke", "logs", "runs", "secrets", "env", "functions", "rollback"):
        ran = atlas(command, "--help")
        assert (ran.code, ran.err) == (0, "")
        assert f"Usage: atlas {command}" in ran.out


def test_completion(atlas: Atlas, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setenv("_ATLAS_COMPLETE", "bash_complete")
    monkeypatch.setenv("COMP_WORDS", "atlas rol")
    monkeypatch.setenv("COMP_CWORD", "1")
    with pytest.raises(SystemExit):
        atlas()
    assert capsys.readouterr().out == "plain,rollback\n"


def test_functions_are_listed_from_all_pages(api: FakeApi, to_api: Atlas) -> None:
    for slug in ("one", "two", "three"):
        api.add(slug)
    ran = to_api("functions")
    assert [line.split()[0] for line in ran.out.splitlines()] == ["SLUG", "one", "two", "three"]
    assert {request.project_id for request in api.asked} == {PROJECT_ID}
    assert [item["slug"] for item in to_api("functions", "--json").json["functions"]] == [
        "one",
        "two",
        "three",
    ]


def test_delete_and_undelete(api: FakeApi, to_api: Atlas) -> None:
    api.add("hello")
    assert to_api("functions", "delete", "hello").code == 0
    assert to_api("functions", "delete", "hello").code == 3
    assert to_api("functions", "--deleted", "--json").json["functions"][0]["slug"] == "hello"
    assert to_api("functions", "undelete", "hello", "--json").json["slug"] == "hello"
    assert "hello" in api.functions


def test_invoke_prints_the_result(api: FakeApi, to_api: Atlas) -> None:
    result = '{"z": [1, 2.5, null, "é"], "a": 12345678901234567890}'
    api.answer = (None, f'{{"result":{result},"metrics":{{"wall_ms":1}}}}'.encode())
    ran = to_api("invoke", "f", "--data", '{"x": 1.0}', "--path", "/p/q", "--idempotency-key", "k")
    assert ran.out == json.dumps(json.loads(result), indent=2, ensure_ascii=False) + "\n"
    sent = api.asked[-1]
    assert (sent.slug, sent.rest, sent.body.data, api.headers["idempotency-key"]) == ("f", "p/q", b'{"x": 1.0}', "k")
    told = to_api("invoke", "f", "--json").json
    assert told == {"result": json.loads(result), "metrics": {"wall_ms": 1}, "run_id": RUN_ID}
    assert api.asked[-1].body.data == b"null"
    assert "idempotency-key" not in api.headers
    assert "prefer" not in api.headers


def test_invoke_takes_its_input_from_a_file_or_stdin(api: FakeApi, to_api: Atlas, tmp_path: Path) -> None:
    (tmp_path / "input.json").write_text("[1]")
    assert to_api("invoke", "f", "--data", "@input.json").code == 0
    assert api.asked[-1].body.data == b"[1]"
    assert to_api("invoke", "f", "--data", "-", stdin='"text"').code == 0
    assert api.asked[-1].body.data == b'"text"'


@pytest.mark.parametrize(
    ("data", "text"), [("{", "1:2"), ("NaN", "NaN"), ("@none", "none cannot be read"), ("[" * 100000, "input")]
)
def test_an_input_that_is_no_json(data: str, text: str, api: FakeApi, to_api: Atlas) -> None:
    ran = to_api("invoke", "f", "--data", data)
    assert ran.code == 2
    assert text in ran.err
    assert not api.asked


def test_a_response_is_printed_as_it_is(api: FakeApi, to_api: Atlas) -> None:
    api.answer = (404, b"no\n")
    ran = to_api("invoke", "f")
    assert (ran.code, ran.out, ran.err) == (0, "no\n", "HTTP status 404\n")
    response = to_api("invoke", "f", "--json").json["response"]
    assert response == {"status": 404, "content_type": "application/json", "body": "no\n"}
    api.answer = (200, b"\xff")
    assert to_api("invoke", "f", "--json").json["response"]["body_base64"] == "/w=="


def test_an_asynchronous_run_and_its_result(api: FakeApi, to_api: Atlas) -> None:
    queued = b'{"run_id":"r1","state":"queued"}'
    api.answer = (202, queued)
    assert to_api("invoke", "f", "--async").out == "r1\n"
    assert api.headers["prefer"] == "respond-async"
    assert to_api("invoke", "f", "--async", "--json").json == json.loads(queued)
    api.results = [(202, queued)]
    assert to_api("result", "r1").json == json.loads(queued)
    api.results = [(202, queued), (202, queued), (None, b'{"result":{"a":1},"metrics":{}}')]
    assert to_api("result", "r1", "--wait").json == {"a": 1}
    api.results = [(201, b"[made]")]
    assert to_api("result", "r1", "--wait").out == "[made]"


def run_of(number: int, **fields: Any) -> runs_pb2.Run:
    logs = [runs_pb2.LogLine(level="info", text=f"line {number}\nmore", at_ms=1.25)]
    made = runs_pb2.Run(id=f"r{number}", slug="hello", version=2, state="finished", outcome="ok", logs=logs, **fields)
    made.created_at.FromSeconds(1_700_000_000 + number)
    return made


def test_verbose_tells_metrics_and_console(api: FakeApi, to_api: Atlas) -> None:
    api.answer = (None, b'{"result":1,"metrics":{}}')
    api.runs[RUN_ID] = run_of(1, metrics=runs_pb2.RunMetrics(wall_ms=2, memory_bytes=2**20))
    ran = to_api("invoke", "hello", "--verbose")
    assert ran.out == "1\n"
    assert "2.0 ms, 1.0 MiB" in ran.err
    assert "line 1\n" + " " * 22 + "more" in ran.err


def test_logs_are_printed_oldest_first(api: FakeApi, to_api: Atlas) -> None:
    api.add("hello")
    failed = runs_pb2.RunError(reason="FUNCTION_EXCEPTION", message="Error: boom", stack="  at f (index.ts:3:4)\n")
    api.runs = {"r2": run_of(2, error=failed), "r1": run_of(1)}
    ran = to_api("logs", "hello", "--outcome", "ok", "--since", "1h")
    assert ran.out.index("line 1") < ran.out.index("line 2") < ran.out.index("index.ts:3:4")
    asked = next(item for item in api.asked if hasattr(item, "outcome"))
    assert (asked.function, asked.outcome) == (api.functions["hello"].id, "ok")
    assert asked.HasField("since")
    lines = to_api("logs", "--json").out.splitlines()
    assert [json.loads(line)["id"] for line in lines] == ["r1", "r2"]


def test_logs_are_followed_until_the_server_refuses(api: FakeApi, to_api: Atlas) -> None:
    api.runs = {"r1": run_of(1)}
    ran = to_api("logs", "--follow")
    assert ran.code == 3
    assert "line 1" in ran.out
    assert "3 runs were left out" in ran.err
    assert "The project is gone" in ran.err


def test_runs_run_and_cancel(api: FakeApi, to_api: Atlas) -> None:
    api.runs = {"r1": run_of(1, metrics=runs_pb2.RunMetrics(wall_ms=12.5, fuel_consumed=7))}
    table = to_api("runs", "--limit", "1").out.splitlines()
    assert table[0].split()[:3] == ["TIME", "FUNCTION", "VERSION"]
    assert table[1].split()[-1] == "r1"
    shown = to_api("run", "r1").out
    assert "12.5 ms" in shown
    assert "7 fuel" in shown
    assert to_api("run", "r1", "--json").json["metrics"]["wall_ms"] == 12.5
    assert to_api("cancel", "r1").out == "r1: cancelled\n"


def test_versions_and_rollback(api: FakeApi, to_api: Atlas) -> None:
    api.add("hello")
    api.versions = [
        functions_pb2.FunctionVersion(version=2, active=True, note="second", runtime="quickjs"),
        functions_pb2.FunctionVersion(version=1),
    ]
    lines = to_api("versions", "hello").out.splitlines()
    assert lines[1].startswith("*")
    assert lines[1].endswith("second")
    assert to_api("rollback", "hello").out == "hello is at version 1\n"
    assert to_api("rollback", "hello", "--to", "2", "--json").json["version"] == 2


def test_download(api: FakeApi, to_api: Atlas, tmp_path: Path) -> None:
    api.add("hello")
    api.file = b"export default 1"
    assert to_api("download", "hello").out == "export default 1"
    assert to_api("download", "hello", "--form", "artifact", "-o", "x.js").code == 0
    assert (tmp_path / "x.js").read_bytes() == api.file
    assert api.asked[-1].form == "artifact"
    assert to_api("download", "hello", "-o", "none/x.js").code == 2


def test_secrets_are_never_echoed(api: FakeApi, to_api: Atlas) -> None:
    api.add("hello")
    ran = to_api("secrets", "set", "hello", "TOKEN", stdin="s3cret\n")
    assert "s3cret" not in ran.out + ran.err
    assert dict(api.asked[-1].secrets) == {"TOKEN": "s3cret"}
    assert to_api("secrets", "set", "hello", "A=1", "B=x=y", "--json").json["secret_names"] == ["A", "B", "TOKEN"]
    assert dict(api.asked[-1].secrets) == {"A": "1", "B": "x=y"}
    assert to_api("secrets", "rm", "hello", "A").code == 0
    assert to_api("secrets", "list", "hello", "--json").json == {"secret_names": ["B", "TOKEN"]}
    assert to_api("secrets", "set", "hello", "A", "B", stdin="x").code == 2
    assert to_api("secrets", "set", "hello", "=x").code == 2


def test_environment(api: FakeApi, to_api: Atlas) -> None:
    api.add("hello")
    assert to_api("env", "set", "hello", "A=1", "B=two words").code == 0
    assert to_api("env", "set", "hello", "A=2").code == 0
    assert to_api("env", "list", "hello", "--json").json["env"] == {"A": "2", "B": "two words"}
    assert to_api("env", "rm", "hello", "NONE").code == 3
    assert to_api("env", "rm", "hello", "A", "B").code == 0
    assert api.asked[-1].HasField("env")
    assert to_api("env", "list", "hello").out.splitlines() == ["NAME  VALUE"]
    assert to_api("env", "set", "hello", "A").code == 2


def test_an_unknown_function_is_named(api: FakeApi, to_api: Atlas) -> None:
    api.add("hello")
    ran = to_api("versions", "helo")
    assert ran.code == 3
    assert '"helo"' in ran.err
    assert "atlas functions" in ran.err


def test_the_installed_program_is_the_declared_one() -> None:
    declared = tomllib.loads((Path(__file__).parents[2] / "pyproject.toml").read_text())["project"]["scripts"]
    module, _, name = declared["atlas"].partition(":")
    assert getattr(importlib.import_module(module), name) is importlib.import_module("server.cli.__main__").main
