"""`atlas` around a function: its runs and logs, its secrets and variables, and runs that nobody waits for."""

import json
import subprocess
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from tests.fix_cli import PROGRAM, Program
from tests.fix_clients import Rest, eventually

SLOW = "export default () => new Promise((resolve) => setTimeout(resolve, 60_000))\n"
SPEAKS = """
export default (input, ctx) => {
  console.warn("said", input);
  if (input === "fail") throw new Error("on purpose");
  return { env: { ...ctx.env } };
}
"""


def deploy(program: Program, slug: str, source: str) -> None:
    (program.folder / f"{slug}.js").write_text(source)
    program.run("deploy", f"{slug}.js")


def test_logs_and_runs(program: Program) -> None:
    deploy(program, "speaks", SPEAKS)
    program.run("invoke", "speaks", "--data", '"well"')
    program.run("invoke", "speaks", "--data", '"fail"', code=1)
    found = eventually(lambda: [item for item in [program.json("runs", "speaks")["runs"]] if len(item) == 2])[0]
    assert [item["outcome"] for item in found] == ["exception", "ok"]
    said = program.run("logs", "speaks").stdout
    assert said.index("said well") < said.index("said fail") < said.index("speaks.js:4:")
    failed = program.json("runs", "speaks", "--outcome", "exception", "--since", "1h")["runs"]
    assert [item["id"] for item in failed] == [found[0]["id"]]
    assert "said fail" in program.run("run", found[0]["id"]).stdout
    program.run("run", "00000000-0000-0000-0000-000000000000", code=3)


def test_logs_are_followed(program: Program) -> None:
    deploy(program, "followed", SPEAKS)
    command = [str(PROGRAM), "logs", "followed", "--follow", "--json"]
    with subprocess.Popen(
        command, env=program.variables, cwd=program.folder, stdout=subprocess.PIPE, text=True
    ) as tail:
        invoker = subprocess.Popen(  # a tail shows what ends after it began, and nobody says when it has
            ["sh", "-c", f'while :; do "{PROGRAM}" invoke followed --data 1 >/dev/null; done'],
            env=program.variables,
            cwd=program.folder,
        )
        try:
            assert tail.stdout
            run = json.loads(tail.stdout.readline())
        finally:
            invoker.kill()
            invoker.wait()
            tail.terminate()
    assert (run["slug"], run["logs"][0]["text"]) == ("followed", "said 1")


def test_verbose_shows_the_console(program: Program) -> None:
    deploy(program, "verbose", SPEAKS)
    assert "said 1" in program.run("invoke", "verbose", "--data", "1", "--verbose").stderr


def test_secrets_and_variables_reach_the_function_and_secrets_nobody_else(program: Program) -> None:
    deploy(program, "sealed", SPEAKS)
    program.run("secrets", "set", "sealed", "TOKEN", stdin="s3cret-value\n")
    program.run("env", "set", "sealed", "GREETING=Hi")
    assert program.json("invoke", "sealed")["result"]["env"] == {"TOKEN": "s3cret-value", "GREETING": "Hi"}
    assert program.json("secrets", "list", "sealed")["secret_names"] == ["TOKEN"]
    shown = program.run("functions", "--json").stdout + program.run("versions", "sealed", "--json").stdout
    assert "s3cret-value" not in shown
    program.run("secrets", "rm", "sealed", "TOKEN")
    program.run("env", "rm", "sealed", "GREETING")
    assert program.json("invoke", "sealed")["result"]["env"] == {}
    program.run("rollback", "sealed")
    assert program.json("invoke", "sealed")["result"]["env"] == {"GREETING": "Hi"}


def test_an_asynchronous_run_and_its_result(program: Program) -> None:
    deploy(program, "later", SPEAKS)
    run_id = program.run("invoke", "later", "--async").stdout.strip()
    assert json.loads(program.run("result", run_id, "--wait").stdout) == {"env": {}}


def test_a_run_is_cancelled(program: Program, new_project: Callable[..., Rest]) -> None:
    """Of a project whose runs may take a minute: that many commands do not fit into the two seconds of the others."""
    project = new_project(tier="enterprise")
    keys = {"PROJECT_ID": project.project_id, "SERVICE_KEY": project.service_key, "ANON_KEY": project.anon_key}
    program = replace(program, variables={**program.variables, **keys})
    deploy(program, "slow", SLOW)
    run_id = program.run("invoke", "slow", "--async").stdout.strip()
    eventually(lambda: program.json("run", run_id)["state"] == "running")
    assert program.json("cancel", run_id)["outcome"] == "cancelled"
    program.run("cancel", run_id, code=3)
    program.run("result", run_id, code=1)


def test_deleted_and_restored(program: Program) -> None:
    deploy(program, "restored", SPEAKS)
    program.run("functions", "delete", "restored")
    program.run("invoke", "restored", code=3)
    program.run("functions", "undelete", "restored")
    program.run("invoke", "restored")


def test_download(program: Program, tmp_path: Path) -> None:
    deploy(program, "fetched", SPEAKS)
    program.run("download", "fetched", "-o", "copy.js")
    assert (tmp_path / "copy.js").read_text() == SPEAKS
