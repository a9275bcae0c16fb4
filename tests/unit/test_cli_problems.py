"""Failures of the API as people and scripts are told them, each with its exit code."""

import json
from pathlib import Path

import grpc
import pytest

from server.cli.problems import RUN_REASONS, diagnostics
from server.errors import Aborted, FunctionFailed, InvalidArgument, NotFound, PermissionDenied, Unavailable
from server.functions.outcomes import TABLE
from tests.fix_cli import Atlas, FakeApi


def test_reasons_that_blame_the_function_are_the_outcomes_of_runs() -> None:
    outcomes = {reason for _, reason, _ in TABLE.values()}
    assert outcomes - {"OVERLOADED"} <= RUN_REASONS


FAILURES = [
    (
        FunctionFailed(
            "The function threw Error: x", reason="FUNCTION_EXCEPTION", metadata={"stack": "at f (a.ts:1:2)"}
        ),
        1,
    ),
    (InvalidArgument("slug", "Slug must be alphanumeric", reason="INVALID_SLUG", value="a b"), 3),
    (NotFound("JS source not found", reason="FUNCTION_NOT_FOUND"), 3),
    (PermissionDenied("This key may not", reason="ROLE"), 3),
    (Aborted("The first call still runs", reason="IN_PROGRESS"), 3),
    (Unavailable("No sandbox became free", reason="OVERLOADED", retry_after_ms=1000), 4),
]


@pytest.mark.parametrize(("failure", "code"), FAILURES, ids=lambda value: getattr(value, "reason", None))
def test_a_refusal_says_what_and_ends_with_its_code(
    failure: FunctionFailed, code: int, api: FakeApi, to_api: Atlas
) -> None:
    api.failure = failure
    ran = to_api("invoke", "f")
    assert (ran.code, ran.out) == (code, "")
    assert ran.err.startswith(f"error: {failure.message}\n")
    assert failure.metadata.get("stack", "") in ran.err
    told = to_api("invoke", "f", "--json")
    assert (told.code, told.out) == (code, "")
    assert told.error["reason"] == failure.reason
    assert told.error["exit_code"] == code
    assert told.error.get("metadata", {}) == failure.metadata
    if failure.field:
        assert told.error["fields"] == [{"field": failure.field, "description": failure.message}]


def test_a_server_that_is_not_there(atlas: Atlas) -> None:
    ran = atlas("functions", "--url", "http://127.0.0.1:1", "--project", "p", "--key", "k")
    assert ran.code == 4
    assert "http://127.0.0.1:1 cannot be reached" in ran.err
    assert "make run" in ran.err


def test_a_server_without_a_method_is_older(api: FakeApi, to_api: Atlas, monkeypatch: pytest.MonkeyPatch) -> None:
    def unknown(_: FakeApi, request: object, context: grpc.ServicerContext) -> None:
        context.abort(grpc.StatusCode.UNIMPLEMENTED, "Method not found!")

    monkeypatch.setattr(FakeApi, "_see", unknown)
    ran = to_api("runs")
    assert ran.code == 3
    assert "older than this command line" in ran.err


@pytest.mark.parametrize(("missing", "flag"), [("PROJECT_ID", "--project"), ("SERVICE_KEY", "--key")])
def test_without_project_or_key_it_says_how_to_give_them(
    missing: str, flag: str, to_api: Atlas, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv(missing)
    ran = to_api("functions")
    assert ran.code == 2
    assert flag in ran.err
    assert missing in ran.err


@pytest.mark.parametrize("arguments", [["bogus"], ["functions", "--bogus"], ["invoke"], ["logs", "--since", "soon"]])
def test_bad_command_lines(arguments: list[str], to_api: Atlas) -> None:
    assert to_api(*arguments).code == 2
    told = to_api(*arguments, "--json")
    assert told.code == 2
    assert told.error["exit_code"] == 2


def test_interrupted(api: FakeApi, to_api: Atlas, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("server.cli.client.Client.call", interrupt)
    assert to_api("functions").code == 130


def test_a_compilation_is_told_as_compilers_do(api: FakeApi, to_api: Atlas, tmp_path: Path) -> None:
    (tmp_path / "broken.js").write_text("const a = 1;\n\treturn a\n")
    api.failure = InvalidArgument(
        "source", 'Compilation failed: 2:2: Unexpected "return"; 1:7: Unused', reason="COMPILATION_FAILED", line="2"
    )
    (tmp_path / "broken.js").write_text("export const a = 1;\n\texport const b = a\n")
    ran = to_api("deploy", "broken.js")
    assert ran.code == 3
    assert ran.err == (
        'broken.js:2:2: error: Unexpected "return"\n  2 │  export const b = a\n    │  ^\n'
        "broken.js:1:7: error: Unused\n  1 │ export const a = 1;\n    │       ^\n"
    )
    assert to_api("deploy", "broken.js", "--json").error["reason"] == "COMPILATION_FAILED"


def test_diagnostics_of_a_message() -> None:
    assert list(diagnostics("Compilation failed: 2:17: a; b; 3:1: c")) == [(2, 17, "a; b"), (3, 1, "c")]
    assert list(diagnostics("Compilation failed: the module could not be loaded: Error: x")) == []


def test_what_a_function_wrote_does_nothing_to_the_terminal(api: FakeApi, to_api: Atlas) -> None:
    hostile = "\x1b]0;title\x07\x1b[2Jgone\x1b[31mred\x9b31m\r"
    api.failure = FunctionFailed(f"The function threw {hostile}", reason="FUNCTION_EXCEPTION")
    told = to_api("invoke", "f").err
    assert "\x1b]" not in told
    assert "\x1b[2J" not in told
    assert "\x9b" not in told
    assert "\\x1b]0;title\\x07" in told
    assert json.loads(to_api("invoke", "f", "--json").err)["error"]["message"] == f"The function threw {hostile}"
