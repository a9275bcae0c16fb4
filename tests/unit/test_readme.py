"""README's tables are the code's: limits, configuration, and the paths of the API."""

import dataclasses
import re
from pathlib import Path

from google.api import annotations_pb2
from google.protobuf.descriptor_pb2 import FileDescriptorSet

from server.settings import Settings, variable
from server.telemetry.metrics import FAMILIES, RUN_S, WAIT_S
from server.tiers import MIB, TABLE

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text()


def section(name: str) -> str:
    found = re.search(rf"<!-- {name}:begin.*?-->\n(.*?)<!-- {name}:end -->", README, re.DOTALL)
    assert found, name
    return found[1]


def test_limits_table_is_the_codes() -> None:
    rows = {
        line.split("|")[1].strip(): [cell.strip() for cell in line.split("|")[2:5]]
        for line in section("limits").splitlines()
    }
    units = {100_000_000: "100M", 1_000_000_000: "1B", 10_000_000_000: "10B"}
    tiers = TABLE.values()
    assert rows["Fuel (Wasm)"] == [units[limits.fuel] for limits in tiers]
    assert rows["Memory"] == [f"{limits.memory_bytes // MIB} MB" for limits in tiers]
    assert rows["Wall clock"] == [f"{limits.wall_ms // 1000}s" for limits in tiers]
    assert rows["Fetch calls (QuickJS)"] == [str(limits.fetch_calls) for limits in tiers]


def configuration_table() -> str:
    lines = ["| Variable | Default | Description |", "|---|---|---|"]
    for item in dataclasses.fields(Settings):
        default = {"": "", "()": "", "None": "", "False": "`0`"}.get(str(item.default), f"`{item.default}`")
        if isinstance(item.default, Path):
            default = f"`./{item.default}`"
        lines.append(f"| `{variable(item.name)}` | {default} | {item.metadata['doc']} |")
    return "\n".join(lines) + "\n"


def metrics_table() -> str:
    lines = ["| Metric | Type | Labels | What |", "|---|---|---|---|"]
    for family in FAMILIES.values():
        labels = ", ".join(f"`{label}`" for label in family.labels)
        lines.append(f"| `{family.name}` | {family.kind} | {labels} | {family.text} |")
    return "\n".join(lines) + "\n"


def test_metrics_table_is_the_codes() -> None:
    assert section("metrics") == metrics_table(), f"put this into README.md:\n{metrics_table()}"
    for buckets_s in (RUN_S, WAIT_S):
        assert " ".join(f"{bound:g}" for bound in buckets_s) in " ".join(README.split())


def test_configuration_table_is_the_codes() -> None:
    assert section("configuration") == configuration_table(), f"put this into README.md:\n{configuration_table()}"


def test_every_rest_path_is_in_the_api_table() -> None:
    described = FileDescriptorSet.FromString((ROOT / "gen" / "descriptors.binpb").read_bytes())
    table = README[README.index("## API") : README.index("Debugging with")]
    for file in described.file:
        for service in file.service:
            for method in service.method:
                rule = method.options.Extensions[annotations_pb2.http]
                verb = rule.WhichOneof("pattern")
                if verb is None:
                    assert f"{method.name}Http" in [other.name for other in service.method], "it has no path at all"
                    continue
                path = getattr(rule, verb)
                ending = path.removeprefix("/v1/projects/{project_id}").removeprefix("/functions/{function_id}")
                assert verb.upper() in table, method.name
                assert path in table or (ending and ending in table), f"{verb.upper()} {path} is not in README"
