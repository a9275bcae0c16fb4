"""`python -m server up` as it ends, asked or killed: nothing of it is left, its state is kept until it is reset."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable

from tests.fix_up import PARTS, ROOT, Stack, psql

MakeStack = Callable[..., Stack]


def test_a_second_ctrl_c_does_not_wait(make_stack: MakeStack) -> None:
    stack = make_stack().start()
    os.kill(stack.processes()["api-0"], signal.SIGSTOP)  # it will not hear the first
    assert stack.process
    stack.process.send_signal(signal.SIGINT)
    stack.until(lambda: "Stopping" in stack.said, 5, "it does not stop")
    assert stack.stop(signal.SIGINT) == 0
    assert "Killing." in stack.said
    assert not stack.leftovers()


def test_ctrl_c_stops_all_of_it_within_ten_seconds_and_the_state_is_kept(make_stack: MakeStack) -> None:
    stack = make_stack().start()
    first = stack.env
    psql(first["TENANT_DATABASE_URL"], "CREATE TABLE kept (n int); INSERT INTO kept VALUES (42)")
    assert set(stack.processes()) >= set(PARTS)

    began_s = time.monotonic()
    assert stack.stop(signal.SIGINT) == 0
    assert time.monotonic() - began_s < 10
    assert not stack.leftovers()
    assert not stack.sockets()
    told = [json.loads(line) for line in (stack.run / "log" / "api-0.log").read_text().splitlines()]
    assert [line for line in told if line["level"] != "info"] == []
    assert told[-1]["action"] == "api.draining"

    stack.start()
    assert stack.env == first
    assert psql(first["TENANT_DATABASE_URL"], "SELECT n FROM kept") == "42"

    stack.stop()  # and a lost file gets new keys for the same project
    (stack.state / "env").unlink()
    stack.start()
    assert stack.env["PROJECT_ID"] == first["PROJECT_ID"]
    assert stack.env["ADMIN_KEY"] == first["ADMIN_KEY"]
    assert stack.env["SERVICE_KEY"] != first["SERVICE_KEY"]


def test_ctrl_c_while_it_starts(make_stack: MakeStack) -> None:
    stack = make_stack()
    stack.launch()
    stack.until(lambda: "valkey" in stack.said, 20, "it does not start")
    assert stack.stop() == 0
    assert "Ready in" not in stack.said
    assert not stack.leftovers()


def test_no_stack_outlives_killed_tests(make_stack: MakeStack) -> None:
    stack = make_stack()
    program = f"""
import time
from pathlib import Path
from tests.fix_up import ROOT, Stack
stack = Stack(Path({str(stack.home)!r}), {{}})
stack.launch()
stack.until(lambda: "nats" in stack.said, 20, "it does not start")
print("started", flush=True)
time.sleep(60)
"""
    with subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, cwd=ROOT) as tests:
        assert tests.stdout
        assert tests.stdout.readline() == b"started\n"
        assert stack.leftovers()
        tests.kill()
    stack.wait_gone()


def test_nothing_outlives_a_killed_up_and_the_next_one_starts_at_once(make_stack: MakeStack) -> None:
    stack = make_stack().start()
    first = stack.env
    psql(first["TENANT_DATABASE_URL"], "CREATE TABLE kept (n int)")
    assert stack.process
    stack.process.kill()
    stack.process.wait()
    stack.start()
    assert stack.env == first
    assert psql(first["TENANT_DATABASE_URL"], "SELECT count(*) FROM kept") == "0"
    stack.process.kill()
    stack.process.wait()
    stack.wait_gone()


def test_reset_deletes_the_state_but_not_under_a_running_stack(make_stack: MakeStack) -> None:
    stack = make_stack().start()
    project = stack.home / "functions" / stack.env["PROJECT_ID"]
    project.mkdir(parents=True, exist_ok=True)
    (stack.home / "functions" / "somebody-elses").mkdir()
    (stack.state / "somebody-elses").touch()
    refused = stack.command("reset")
    assert refused.returncode == 1
    assert "already running" in refused.stderr
    first = stack.env
    stack.stop()
    assert stack.command("reset").returncode == 0
    assert [path.name for path in stack.state.iterdir()] == ["somebody-elses"]
    assert not stack.run.exists()
    assert [path.name for path in (stack.home / "functions").iterdir()] == ["somebody-elses"]
    assert stack.command("reset").returncode == 0
    stack.start()
    assert stack.env["PROJECT_ID"] != first["PROJECT_ID"]
