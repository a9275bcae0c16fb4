"""`python -m server up` from start to end, with everything that may happen to it in between."""

import contextlib
import json
import os
import shutil
import signal
import socket
import stat
import subprocess
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import pytest

from server.stack import postgres
from server.stack.binaries import in_wheel
from tests.fix_up import ROOT, Stack

MakeStack = Callable[..., Stack]
PARTS = ("postgres", "nats-server", "valkey-server", "envoy", "api-0", "worker-0")


def healthy(stack: Stack) -> bool:
    try:
        return httpx.get(f"{stack.url}/healthz", timeout=10, trust_env=False).status_code == 200
    except httpx.HTTPError:
        return False


def running_invocations(stack: Stack) -> int:
    report = httpx.get(f"{stack.url}/healthz", trust_env=False).json()
    return sum(
        int(count)
        for state, count in report["sandbox"]["quickjs"]["children"].items()
        if state in ("running", "waiting")
    )


def psql(url: str, command: str) -> str:
    program = in_wheel(postgres.WHEEL, "psql")
    done = subprocess.run(
        [program, url, "-qAtX", "-v", "ON_ERROR_STOP=1", "-c", command], capture_output=True, text=True, env={}
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def test_a_second_ctrl_c_does_not_wait(make_stack: MakeStack) -> None:
    stack = make_stack().start()
    os.kill(stack.processes()["api-0"], signal.SIGSTOP)  # it will not hear the first
    assert stack.process
    stack.process.send_signal(signal.SIGINT)
    stack.until(lambda: "Stopping" in stack.said, 5, "it does not stop")
    assert stack.stop(signal.SIGINT) == 0
    assert "Killing." in stack.said
    assert not stack.leftovers()


def test_the_env_file_can_be_sourced_and_its_url_used_with_psql(running_stack: Stack) -> None:
    file = running_stack.state / "env"
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    names = ("ATLAS_URL", "PROJECT_ID", "SERVICE_KEY", "ANON_KEY", "ADMIN_KEY", "TENANT_DATABASE_URL")
    echo = " ".join(f'"${name}"' for name in names)
    shown = subprocess.run(
        ["sh", "-euc", f'. "{file}"; printf "%s\\n" {echo}'], capture_output=True, text=True, env={}, check=True
    )
    assert shown.stdout.splitlines() == [running_stack.env[name] for name in names]
    url = running_stack.env["TENANT_DATABASE_URL"]
    role = "proj_" + running_stack.env["PROJECT_ID"].replace("-", "")
    assert psql(url, "SELECT current_user") == role
    assert psql(url, "CREATE TABLE kept_here (n int); DROP TABLE kept_here; SELECT 'done'") == "done"


def test_no_secret_is_on_a_command_line_or_readable_by_others(running_stack: Stack) -> None:
    secrets = json.loads((running_stack.state / "secrets.json").read_text()).values()
    for pid in running_stack.processes().values():
        words = Path(f"/proc/{pid}/cmdline").read_text()
        assert not [secret for secret in secrets if secret in words]
    for folder in (running_stack.state, running_stack.run):
        for path in folder.rglob("*"):
            if path.is_file() and not path.is_relative_to(running_stack.run / "bin"):
                mode = path.stat().st_mode
                text = path.read_bytes() if not mode & stat.S_IXUSR and path.stat().st_size < 1 << 20 else b""
                assert not mode & 0o044 or not [secret for secret in secrets if secret.encode() in text], path


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


def test_a_second_up_on_the_same_state_is_refused(running_stack: Stack) -> None:
    refused = running_stack.command("up")
    assert refused.returncode == 1
    assert running_stack.process
    assert f"already running, as process {running_stack.process.pid}" in refused.stderr
    assert healthy(running_stack)


def test_a_taken_port_is_named(make_stack: MakeStack) -> None:
    stack = make_stack()
    with socket.create_server(("127.0.0.1", stack.port)):
        refused = stack.command("up")
    assert refused.returncode == 1
    assert f"port {stack.port}: Address already in use" in refused.stderr
    assert "ATLAS_PORT" in refused.stderr
    assert not stack.leftovers()


def test_two_stacks_run_side_by_side(running_stack: Stack, make_stack: MakeStack) -> None:
    other = make_stack().start()
    assert healthy(other)
    assert healthy(running_stack)
    assert other.env["PROJECT_ID"] != running_stack.env["PROJECT_ID"]


def test_whatever_is_killed_comes_back(make_stack: MakeStack) -> None:
    stack = make_stack().start()
    for name in PARTS:
        before = stack.processes()[name]
        os.kill(before, signal.SIGKILL)
        stack.until(lambda name=name, before=before: stack.processes().get(name, before) != before, 20, f"no {name}")  # type: ignore[misc]
        stack.until(lambda: healthy(stack), 20, f"not healthy after {name} was killed")
    assert stack.stop() == 0
    assert not stack.leftovers()


def test_a_run_whose_process_is_killed_is_told_so(make_stack: MakeStack) -> None:
    stack = make_stack().start()
    env = stack.env
    source = "export default async () => { await new Promise((done) => setTimeout(done, 8000)) }"
    with httpx.Client(base_url=stack.url, trust_env=False, timeout=20) as client, ThreadPoolExecutor(1) as thread:
        deployed = client.post(
            f"/v1/projects/{env['PROJECT_ID']}/functions/deploy",
            json={"name": "slow", "slug": "slow", "runtime": "quickjs", "source": source},
            headers={"authorization": f"Bearer {env['SERVICE_KEY']}"},
        )
        assert deployed.status_code == 200, deployed.text
        pending = thread.submit(client.post, "/functions/v1/invoke/slow", headers={"apikey": env["ANON_KEY"]})
        stack.until(lambda: running_invocations(stack) == 1, 10, "the function does not run")
        os.kill(stack.processes()["api-0"], signal.SIGKILL)
        answer = pending.result()
    assert answer.status_code == 503
    assert answer.json()["error"]["code"] == "unavailable"
    assert "while it served the request" in answer.json()["error"]["message"]


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


def test_migrate(make_stack: MakeStack, fresh_database: str) -> None:
    stack = make_stack(ATLAS_DATABASE_URL=fresh_database)
    assert "0001_" in stack.command("migrate").stdout
    assert stack.command("migrate").stdout == "Nothing to apply.\n"
    del stack.variables["ATLAS_DATABASE_URL"]
    assert "ATLAS_DATABASE_URL is not set" in stack.command("migrate").stderr


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


def test_it_starts_again_after_everything_was_killed_at_once(make_stack: MakeStack) -> None:
    stack = make_stack().start()
    assert stack.process
    for pid in (stack.process.pid, *stack.leftovers()):
        with contextlib.suppress(ProcessLookupError):  # the first deaths entail others
            os.kill(pid, signal.SIGKILL)
    stack.process.wait()
    stack.start()
    assert healthy(stack)


def test_a_server_that_is_elsewhere_is_not_started(make_stack: MakeStack, nats_url: str, valkey_url: str) -> None:
    stack = make_stack(ATLAS_NATS_URL=nats_url, ATLAS_REDIS_URL=valkey_url).start()
    assert set(stack.processes()) >= {"postgres", "envoy", "api-0"}
    assert not {"nats-server", "valkey-server"} & set(stack.processes())
    assert healthy(stack)


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


def test_a_damaged_cluster_ends_it_loudly(make_stack: MakeStack) -> None:
    stack = make_stack().start()
    stack.stop()
    shutil.rmtree(stack.run / "postgres" / "cluster" / "global")
    failed = stack.command("up")
    assert failed.returncode == 1
    assert "postgres ended with status" in failed.stderr
    assert "pg_control" in failed.stderr  # the tail of its log
    assert not stack.leftovers()


@pytest.mark.parametrize(("name", "value"), [("ATLAS_PORT", "0"), ("ATLAS_HOST", "not an address")])
def test_bad_settings_are_named_before_anything_starts(make_stack: MakeStack, name: str, value: str) -> None:
    stack = make_stack(**{name: value})
    refused = stack.command("up")
    assert refused.returncode in (1, 2)
    assert f"{name}=" in refused.stderr
    assert not (stack.run / "postgres").exists()
