"""Deploy over REST: what is refused and how it is said, TypeScript, versions, and deploying under load."""

import threading
from typing import Any

import pytest

from tests.fix_clients import Rest

GOOD = {
    "name": "n",
    "slug": "refused",
    "runtime": "quickjs",
    "language": "javascript",
    "source": "export default () => 1",
}


def deploy(rest: Rest, **fields: object) -> tuple[int, Any]:
    path = f"/v1/projects/{rest.project_id}/functions/deploy"
    body = {name: value for name, value in {**GOOD, **fields}.items() if value is not None}
    answer = rest.request("POST", path, key=rest.service_key, json=body)
    return answer.status_code, answer.json()


BAD_FIELDS = [
    ({"slug": "has space"}, 400, "Slug must be alphanumeric"),
    ({"slug": "ünicode"}, 400, "Slug must be alphanumeric"),
    ({"slug": "a" * 64}, 400, "63"),
    ({"slug": "../../etc"}, 400, "Slug must be alphanumeric"),
    ({"slug": ""}, 400, "lug"),
    ({"slug": None}, 400, "lug"),
    ({"name": ""}, 400, "name"),
    ({"name": "x" * 101}, 400, "100"),
    ({"runtime": "php"}, 400, "php"),
    ({"runtime": None}, 400, "runtime"),
    ({"language": "coffeescript"}, 400, "coffeescript"),
    ({"isolation": "none"}, 400, "none"),
    ({"source": ""}, 400, "source"),
    ({"source": "export default () => 1;" + " " * 1024 * 1024}, 400, "1048576"),
    ({"slug": 7}, 400, ""),
    ({"slug": ["x"]}, 400, ""),
]


@pytest.mark.parametrize(("fields", "status", "text"), BAD_FIELDS, ids=lambda value: str(value)[:40])
def test_a_bad_field_is_named_with_its_value_and_changes_nothing(
    rest: Rest, fields: dict[str, object], status: int, text: str
) -> None:
    got, body = deploy(rest, **fields)
    assert got == status, body
    assert text in body["error"]["message"]
    assert rest.invoke("refused").status_code == 404


BROKEN_SOURCES = [
    ("export default function(input) {\n  return input +;\n}", "2:17"),
    ("const a = 1;\nexport const b = 2;", "default"),
    ("export default 42", "default"),
    ("throw new Error('top level');\nexport default () => 1", "top level"),
    ("import fs from 'node:fs';\nexport default () => 1", "node:fs"),
    ("import x from './secrets.json';\nexport default () => 1", "secrets.json"),
    ("for (;;);\nexport default () => 1", ""),
]


@pytest.mark.parametrize(("source", "text"), BROKEN_SOURCES)
def test_source_that_cannot_run_is_a_400_that_says_where(rest: Rest, source: str, text: str) -> None:
    status, body = deploy(rest, source=source)
    assert status == 400, body
    assert body["error"]["message"].startswith("Compilation failed"), body
    assert text in body["error"]["message"]
    assert rest.invoke("refused").status_code == 404


@pytest.mark.parametrize("runtime", ["quickjs", "wasm", "node", "deno"])
def test_every_runtime_of_the_specification_deploys_and_runs(patient: Rest, runtime: str) -> None:
    source = "export default async (input, ctx) => ({ sum: input.a + input.b, slug: ctx.request.path })"
    status, body = deploy(patient, runtime=runtime, slug=f"on-{runtime}", source=source)
    assert status == 200, body
    assert body["runtime"] == runtime
    assert body["entrypoint"] == f"on-{runtime}." + ("wasm" if runtime == "wasm" else "js")
    answer = patient.invoke(f"on-{runtime}/below", {"a": 1, "b": 2})
    assert answer.status_code == 200, answer.text
    told = answer.json()
    assert told["result"] == {"sum": 3, "slug": "/below"}
    assert ("fuel_consumed" in told["metrics"]) == (runtime == "wasm")


def test_typescript(rest: Rest) -> None:
    source = """
    import type { Nothing } from "./types";
    enum Color { Red = 1, Green }
    namespace Geometry { export const area = (w: number, h: number): number => w * h; }
    interface Input { w: number; h: number }
    const pick = <T,>(items: readonly T[], index: number): T => items[index]!;
    export default async function (input: Input): Promise<unknown> {
      const satisfied = { color: Color.Green } satisfies { color: Color };
      return { area: Geometry.area(input.w, input.h), color: Color[satisfied.color], first: pick(["a"], 0) };
    }"""
    result = rest.run(source, {"w": 3, "h": 4}, slug="typed", language="typescript")
    assert result == {"area": 12, "color": "Green", "first": "a"}


def test_a_warm_module_keeps_its_state_and_a_fresh_one_does_not(new_project: Any) -> None:
    project = new_project()
    source = "let calls = 0; export default () => ++calls"
    for isolation, expected in (("warm", True), ("fresh", False)):
        assert project.deploy(source, slug=isolation, isolation=isolation).json()["isolation"] == isolation
        counts = [project.invoke(isolation).json()["result"] for _ in range(10)]
        assert (max(counts) > 1) is expected, counts


def test_versions_are_listed_and_activated_back_and_forth(rest: Rest) -> None:
    for number in (1, 2, 3):
        assert rest.run(f"export default () => {number}", slug="versioned") == number
    functions = f"/v1/projects/{rest.project_id}/functions"
    found = [
        item
        for item in rest.request("GET", functions, key=rest.service_key).json()["functions"]
        if item["slug"] == "versioned"
    ]
    path = f"{functions}/{found[0]['id']}/versions"
    versions = rest.request("GET", path, key=rest.service_key).json()["versions"]
    assert [(item["version"], item["active"]) for item in versions] == [(3, True), (2, False), (1, False)]
    rolled = rest.request("POST", f"{path}/1:activate", key=rest.service_key, json={})
    assert rolled.json()["version"] == 1, rolled.text
    assert rest.invoke("versioned").json()["result"] == 1
    unknown = rest.request("POST", f"{path}/9:activate", key=rest.service_key, json={})
    assert unknown.status_code == 404


def test_functions_are_paged_newest_first(new_project: Any) -> None:
    project = new_project()
    for number in range(5):
        assert project.deploy("export default () => 1", slug=f"page-{number}").status_code == 200
    path = f"/v1/projects/{project.project_id}/functions"
    slugs: list[str] = []
    token = ""
    for _ in range(3):
        page = project.request(
            "GET", path, key=project.service_key, params={"page_size": 2, "page_token": token}
        ).json()
        slugs += [item["slug"] for item in page["functions"]]
        token = page["next_page_token"]
    assert slugs == [f"page-{number}" for number in (4, 3, 2, 1, 0)]
    assert token == ""
    for bad in ({"page_size": -1}, {"page_size": 201}, {"page_token": "forged"}, {"page_size": "many"}):
        assert project.request("GET", path, key=project.service_key, params=bad).status_code == 400, bad


@pytest.mark.parametrize("function_id", ["not-a-uuid", "5180f1e5-bc06-4ee5-b484-e0f4e1f1fb19"])
def test_unknown_and_malformed_ids_are_4xx(rest: Rest, function_id: str) -> None:
    path = f"/v1/projects/{rest.project_id}/functions/{function_id}"
    expected = 404 if "-4" in function_id else 400
    for method in ("GET", "DELETE"):
        assert rest.request(method, path, key=rest.service_key).status_code == expected


def test_deploying_never_breaks_a_running_invocation(rest: Rest) -> None:
    slug = "moving"
    assert rest.run("export default () => 0", slug=slug) == 0
    stop = threading.Event()
    seen: list[int] = []
    failures: list[str] = []

    def caller() -> None:
        while not stop.is_set():
            answer = rest.invoke(slug)
            if answer.status_code == 200:
                seen.append(answer.json()["result"])
            else:
                failures.append(answer.text)

    threads = [threading.Thread(target=caller) for _ in range(4)]
    for thread in threads:
        thread.start()
    try:
        for number in range(1, 11):
            assert rest.deploy(f"export default () => {number}", slug=slug).status_code == 200
            assert rest.invoke(slug).json()["result"] == number
    finally:
        stop.set()
        for thread in threads:
            thread.join()
    assert not failures
    assert len(seen) > 10
