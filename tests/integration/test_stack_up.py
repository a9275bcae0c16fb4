"""`python -m server up` as it starts: what it says, where it can be reached, who is refused and why."""

import json
import socket
import stat
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.fix_up import Stack, healthy, psql

MakeStack = Callable[..., Stack]


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


def test_migrate(make_stack: MakeStack, fresh_database: str) -> None:
    stack = make_stack(ATLAS_DATABASE_URL=fresh_database)
    assert "0001_" in stack.command("migrate").stdout
    assert stack.command("migrate").stdout == "Nothing to apply.\n"
    del stack.variables["ATLAS_DATABASE_URL"]
    assert "ATLAS_DATABASE_URL is not set" in stack.command("migrate").stderr


def test_a_server_that_is_elsewhere_is_not_started(make_stack: MakeStack, nats_url: str, valkey_url: str) -> None:
    stack = make_stack(ATLAS_NATS_URL=nats_url, ATLAS_REDIS_URL=valkey_url).start()
    assert set(stack.processes()) >= {"postgres", "envoy", "api-0"}
    assert not {"nats-server", "valkey-server"} & set(stack.processes())
    assert healthy(stack)


@pytest.mark.parametrize(("name", "value"), [("ATLAS_PORT", "0"), ("ATLAS_HOST", "not an address")])
def test_bad_settings_are_named_before_anything_starts(make_stack: MakeStack, name: str, value: str) -> None:
    stack = make_stack(**{name: value})
    refused = stack.command("up")
    assert refused.returncode in (1, 2)
    assert f"{name}=" in refused.stderr
    assert not (stack.run / "postgres").exists()
