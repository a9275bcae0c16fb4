"""Processes that count in one directory: summed while they live, when they are killed, and when they come back."""

import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from prometheus_client.parser import text_string_to_metric_families

from server.telemetry.exposition import exposition
from server.telemetry.metrics import Metrics
from server.telemetry.numbers import SUFFIX, Numbers, read_all

COUNTING = """
import sys
from pathlib import Path
from server.telemetry.metrics import Metrics
from server.telemetry.numbers import Numbers

metrics = Metrics(Numbers(Path(sys.argv[1]), sys.argv[2]))
for _ in range(int(sys.argv[3])):
    metrics.invocations("quickjs", "ok").add()
    metrics.invocation_s("quickjs").observe(0.002)
metrics.children("quickjs", "idle").set(int(sys.argv[3]))
print("counted", flush=True)
sys.stdin.read()
"""

Start = Callable[[str, int], "subprocess.Popen[str]"]


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Start]:
    """A process of that role which counts so many runs, and then lives until its stdin ends."""
    started: list[subprocess.Popen[str]] = []

    def begin(role: str, count: int) -> "subprocess.Popen[str]":
        argv = [sys.executable, "-c", COUNTING, str(tmp_path), role, str(count)]
        process = subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        started.append(process)
        assert process.stdout is not None
        assert process.stdout.readline() == "counted\n"
        return process

    yield begin
    for process in started:
        process.kill()
        process.communicate()


def kill(process: "subprocess.Popen[str]") -> None:
    process.kill()
    process.communicate()


def scraped(directory: Path) -> dict[str, list[tuple[dict[str, str], float]]]:
    found: dict[str, list[tuple[dict[str, str], float]]] = {}
    for family in text_string_to_metric_families(exposition(directory, Numbers()).decode()):
        for sample in family.samples:
            found.setdefault(sample.name, []).append((sample.labels, sample.value))
    return found


def total(directory: Path, name: str) -> float:
    return sum(value for _, value in scraped(directory).get(name, []))


def test_living_processes_are_summed(start: Start, tmp_path: Path) -> None:
    processes = [start("api", 3), start("api", 4), start("worker", 5)]
    assert total(tmp_path, "atlas_invocations_total") == 12
    assert total(tmp_path, "atlas_invocation_duration_seconds_count") == 12
    assert total(tmp_path, "atlas_invocation_duration_seconds_sum") == pytest.approx(0.024)
    assert total(tmp_path, "atlas_sandbox_children") == 12
    told = {(labels["role"], labels["pid"]) for labels, _ in scraped(tmp_path)["process_resident_memory_bytes"]}
    assert told == {(role, str(each.pid)) for role, each in zip(("api", "api", "worker"), processes, strict=True)}


def test_what_a_killed_process_counted_stays_and_its_gauges_go(start: Start, tmp_path: Path) -> None:
    killed, alive = start("api", 3), start("api", 4)
    kill(killed)
    assert total(tmp_path, "atlas_invocations_total") == 7
    assert total(tmp_path, "atlas_sandbox_children") == 4
    assert [labels["pid"] for labels, _ in scraped(tmp_path)["process_open_fds"]] == [str(alive.pid)]


def test_a_process_that_comes_back_goes_on_counting_in_the_file_that_was_left(start: Start, tmp_path: Path) -> None:
    for _ in range(5):
        kill(start("api", 2))
    start("api", 1)
    assert total(tmp_path, "atlas_invocations_total") == 11
    assert total(tmp_path, "atlas_sandbox_children") == 1
    assert len(list(tmp_path.glob(f"*{SUFFIX}"))) == 1


def test_a_file_of_another_version_is_begun_anew(tmp_path: Path) -> None:
    (tmp_path / f"api-0{SUFFIX}").write_bytes(b"atlas-n0" + b"\1" * 1000)
    numbers = Numbers(tmp_path, "api")
    Metrics(numbers).invocations("wasm", "ok").add()
    assert total(tmp_path, "atlas_invocations_total") == 1
    numbers.close()


def test_a_file_that_nobody_has_begun_is_passed_over(tmp_path: Path) -> None:
    (tmp_path / f"api-0{SUFFIX}").touch()
    (tmp_path / f"api-1{SUFFIX}").write_bytes(b"\xff" * 5000)
    assert list(read_all(tmp_path)) == []


def test_others_cannot_read_what_is_counted(tmp_path: Path) -> None:
    directory = tmp_path / "metrics"
    numbers = Numbers(directory, "api")
    assert directory.stat().st_mode & 0o777 == 0o700
    assert [path.stat().st_mode & 0o777 for path in directory.iterdir()] == [0o600]
    numbers.close()
