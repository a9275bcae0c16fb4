"""Environment, secrets and settings over the wire: what a function is given on every runtime, and who else sees it."""

import json
import secrets
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise
from typing import Any

import httpx
import pytest

from tests.fix_clients import Rest, eventually
from tests.fix_up import Stack

RUNTIMES = ["quickjs", "wasm", "node", "deno"]
SHAPE = """
export default (input, ctx) => ({
  env: Object.fromEntries(Object.entries(ctx.env).map(([name, value]) => [name + "!", value.length])),
  own: Object.getPrototypeOf({}) === Object.prototype && ({}).polluted === undefined,
  right: ctx.env.SECRET === input,
})
"""
ODD = {"__proto__": "x" * 3, "constructor": "", "toString": "s", "_": '\U0001f600é\u2028"\\\n', "polluted": "p"}


@pytest.mark.parametrize("runtime", RUNTIMES)
def test_every_runtime_gets_variables_and_secrets(patient: Rest, runtime: str) -> None:
    secret = "pässwörd\U0001f511\"'\\\n" + secrets.token_hex(8)
    large = "x" * 60_000
    patient.deployed(
        SHAPE, slug=f"env-{runtime}", runtime=runtime, env={**ODD, "LARGE": large}, secrets={"SECRET": secret}
    )
    answer = patient.invoke(f"env-{runtime}", secret)
    assert answer.status_code == 200, answer.text
    utf16 = {
        name: len(value.encode("utf-16-le")) // 2 for name, value in {**ODD, "LARGE": large, "SECRET": secret}.items()
    }
    assert answer.json()["result"] == {
        "env": {f"{name}!": length for name, length in utf16.items()},
        "own": True,
        "right": True,
    }


def test_a_secret_is_in_no_answer_and_in_no_file(running_stack: Stack, rest: Rest) -> None:
    value, replaced = (secrets.token_hex(20) for _ in range(2))
    source = (
        "export default (input, ctx) => { console.log('with', ctx.env.TOKEN.length); if (input) throw new Error('x') }"
    )
    deployed = rest.deploy(source, slug="sealed", env={"PLAIN": "seen"}, secrets={"TOKEN": value, "GONE": value})
    function_id = deployed.json()["id"]
    one, run_ids = f"/functions/{function_id}", []
    answers = [deployed]
    for body in (0, 1):
        answers.append(rest.invoke("sealed", body, headers={"idempotency-key": f"sealed {body}"}))
        run_ids.append(answers[-1].headers["atlas-run-id"])
    answers.append(rest.invoke("sealed", 0, headers={"prefer": "respond-async"}))
    for run_id in run_ids:
        rest.record(run_id)
    answers += [
        rest.manage("PATCH", one, json={"secrets": {"TOKEN": replaced}, "remove_secrets": ["GONE"]}),
        rest.manage("PATCH", one, json={"secrets": {"PLAIN": replaced}}),
        rest.manage("PATCH", one, json={"env": {"variables": {"TOKEN": "now plain"}}}),
        rest.manage("PATCH", one, json={"secrets": {"TOKEN": value + "\0"}}),
        rest.manage("PATCH", one, json={"secrets": {"TOKEN": value * 2000}}),
        rest.manage("PATCH", one, content=f'{{"secrets": {{"TOKEN": "{value}" "}}}}'.encode()),
        rest.deploy("export default (", slug="sealed", secrets={"TOKEN": value}),
        rest.deploy("throw new Error(); export default 1", slug="sealed", secrets={"TOKEN": value}),
        *(rest.manage("GET", path) for path in (one, "/functions", f"{one}/versions", f"{one}/versions/1", "/runs")),
        *(rest.manage("GET", f"{one}/versions/1/download", params={"form": form}) for form in ("source", "artifact")),
        *(rest.manage("GET", f"/runs/{run_id}") for run_id in run_ids),
        rest.request("GET", "/healthz"),
        rest.request("GET", "/metrics", key=rest.admin_key),
    ]
    assert [answer.status_code for answer in answers[4:11]] == [200, 400, 400, 400, 400, 400, 400]
    assert answers[4].json()["secret_names"] == ["TOKEN"]
    for answer in answers:
        assert value not in answer.text, answer.text
        assert replaced not in answer.text, answer.text
    files = [path for path in running_stack.home.rglob("*") if path.is_file() and not path.is_symlink()]
    assert any(path.parent.name == "pg_wal" for path in files)
    assert "seen" in (rest.manage("GET", one).text)
    for needle in (value.encode(), replaced.encode()):
        assert [path for path in files if needle in path.read_bytes()] == []


BAD = [
    ({"env": {"A\0": ""}}, "env"),
    ({"env": {"é": ""}}, "env"),
    ({"env": {"": ""}}, "env"),
    ({"env": {"1A": ""}}, "env"),
    ({"env": {"A" * 129: ""}}, "env"),
    ({"env": {"A": "\0"}}, "U+0000"),
    ({"env": {"A": "x" * 65_536}}, "65536"),
    ({"env": {f"A{number}": "" for number in range(129)}}, "128"),
    ({"secrets": {"A-B": "confidential"}}, "secrets"),
    ({"secrets": {"A": "confidential" * 6_000}}, "65536"),
    ({"secrets": {"A": "confidential"}, "env": {"A": ""}}, "plain variable"),
    ({"secrets": {"A": ["confidential"]}}, ""),
    ({"settings": {"timeout_ms": 9}}, "settings.timeout_ms"),
    ({"settings": {"timeout_ms": 2001}}, "limit of the project's tier"),
    ({"settings": {"memory_mb": 7}}, "settings.memory_mb"),
    ({"settings": {"memory_mb": 33}}, "limit of the project's tier"),
    ({"settings": {"concurrency": 0}}, "settings.concurrency"),
    ({"settings": {"timeout_ms": 10**12}}, "timeout_ms"),
]


@pytest.mark.parametrize(("fields", "text"), BAD, ids=[str(fields)[:40] for fields, _ in BAD])
def test_what_cannot_be_configured_is_named_and_changes_nothing(rest: Rest, fields: Any, text: str) -> None:
    answer = rest.deploy("export default () => 1", slug="misconfigured", **fields)
    assert answer.status_code == 400, answer.text
    assert text in answer.json()["error"]["message"]
    assert "confidential" not in answer.text
    assert rest.invoke("misconfigured").status_code == 404


def test_settings_lower_than_the_tier(rest: Rest) -> None:
    rest.deployed("export default () => { for (;;); }", slug="impatient", settings={"timeout_ms": 100})
    answer = rest.invoke("impatient")
    assert answer.status_code == 504
    assert reason(answer) == ("WALL_CLOCK_LIMIT", "100")
    source = "export default (n) => new Uint8Array(n * 1048576).fill(1).length"
    for memory_mb, status in ((8, 429), (24, 200)):
        rest.deployed(source, slug="frugal", settings={"memory_mb": memory_mb})
        answer = rest.invoke("frugal", 10)
        assert answer.status_code == status, answer.text
        if status != 200:
            assert reason(answer) == ("MEMORY_LIMIT", str(8 * 2**20))


def reason(answer: httpx.Response) -> tuple[str, str]:
    info = answer.json()["error"]["details"][0]
    return info["reason"], info["metadata"]["allowed"]


def test_one_at_a_time_over_two_processes(make_stack: Callable[..., Stack]) -> None:
    stack = make_stack(ATLAS_API_PROCESSES="2").start()
    env = stack.env
    with httpx.Client(base_url=stack.url, timeout=60, trust_env=False) as client:
        rest = Rest(client, env["PROJECT_ID"], env["SERVICE_KEY"], env["ANON_KEY"], env["ADMIN_KEY"])
        source = """export default async () => {
          const began = Date.now()
          await new Promise((resolve) => setTimeout(resolve, 40))
          return [began, Date.now()]
        }"""
        rest.deployed(source, slug="single", settings={"concurrency": 1})
        with ThreadPoolExecutor(16) as callers:
            answers = list(callers.map(lambda _: rest.invoke("single"), range(24)))
        assert [answer.text for answer in answers if answer.status_code != 200] == []
        spans = sorted(answer.json()["result"] for answer in answers)
        assert all(before[1] <= after[0] for before, after in pairwise(spans)), spans
    assert len(eventually(lambda: upstreams(stack, "/functions/v1/invoke/single", 24))) == 2


def upstreams(stack: Stack, path: str, lines: int) -> set[str]:
    """Who served requests for that path, once so many are in the access log, which Envoy writes every second."""
    text = (stack.run / "log" / "access.log").read_text()
    served = [line["upstream"] for line in map(json.loads, text.splitlines()) if line["path"] == path]
    return set(served) if len(served) == lines else set()
