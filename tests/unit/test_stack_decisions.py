"""Decisions of the stack that need no process: when to start again, where things lie."""

import os
from pathlib import Path

import pytest

from server.settings import Settings
from server.stack import api
from server.stack.bootstrap import Env, read_env
from server.stack.places import PlaceError, Places, places
from server.stack.supervisor import LONGEST_DELAY_S, STEADY_S, Restarts


def test_each_start_waits_longer_and_it_is_never_given_up() -> None:
    restarts = Restarts()
    delays = [restarts.after_failure(now_s=10.0 + n) for n in range(10_000)]
    assert delays[:9] == [0.1, 0.2, 0.4, 0.8, 1.6, 3.2, 6.4, 12.8, 25.6]
    assert set(delays[9:]) == {LONGEST_DELAY_S}


def test_what_was_ready_for_a_while_is_started_at_once() -> None:
    restarts = Restarts()
    for n in range(20):
        restarts.ready(now_s=n * 100.0)
        assert restarts.after_failure(now_s=n * 100.0 + STEADY_S) == 0.1
    restarts.ready(now_s=5_000.0)
    assert restarts.after_failure(now_s=5_000.0 + STEADY_S / 2) == 0.2


def test_two_states_never_share_a_place() -> None:
    found = [places(Settings(state_dir=Path(f"/somewhere/{name}/.atlas"))) for name in ("a", "b")]
    assert found[0].run != found[1].run
    assert found[0].mark != found[1].mark


def test_sockets_fit_whatever_the_path_of_the_checkout() -> None:
    here = places(Settings(state_dir=Path("/" + "long/" * 60 + "with space/.atlas")))
    assert len(os.fsencode(here.run)) < 60


def test_a_run_dir_that_is_too_long_is_refused(tmp_path: Path) -> None:
    with pytest.raises(PlaceError, match="ATLAS_RUN_DIR to a shorter one"):
        places(Settings(state_dir=tmp_path, run_dir=tmp_path / ("x" * 100))).make()
    assert not list(tmp_path.iterdir())


def test_a_place_that_another_made_is_refused(tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "run").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(PlaceError, match="belongs to another user"):
        Places(tmp_path / "state", tmp_path / "run", tmp_path / "run").make()


def test_the_env_file_reads_back_as_it_was_written(tmp_path: Path) -> None:
    env = Env(
        ATLAS_URL="http://[::1]:3000",
        PROJECT_ID="p",
        SERVICE_KEY="it's $HOME `x`",
        ANON_KEY="a b",
        ADMIN_KEY="",
        TENANT_DATABASE_URL="postgresql://r@/tenants?host=%2Fvar%2Ftmp%2Fa%20b&port=5432",
    )
    (tmp_path / "env").write_text(env.text())
    assert read_env(tmp_path / "env") == {name: getattr(env, name) for name in env.__slots__}


def test_an_api_process_gets_what_up_decided_and_keeps_what_a_person_set(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ATLAS_ADMIN_KEY", "of the shell")
    monkeypatch.delenv("GRPC_EXPERIMENTS", raising=False)
    decided = api.environment(Settings(admin_key="decided"))
    assert decided["ATLAS_API_SOCKET"] == decided["ATLAS_METRICS_DIR"] == ""
    assert decided["ATLAS_ADMIN_KEY"] == "decided"
    assert decided["GRPC_EXPERIMENTS"] == api.GRPC["GRPC_EXPERIMENTS"]
    monkeypatch.setenv("GRPC_EXPERIMENTS", "mine")
    assert api.environment(Settings())["GRPC_EXPERIMENTS"] == "mine"
