"""What a call is found by elsewhere: request ids, traces, run ids, and the metrics of every process."""

import re
import uuid

import httpx
import pytest

from tests.fix_clients import Rest

TRACE_ID, SPAN_ID = "4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7"
SEEN = "export default (input, ctx) => { if (input) throw new Error('x'); return ctx.request.headers }"


@pytest.fixture(scope="module")
def seen(rest: Rest) -> str:
    return rest.deployed(SEEN, slug="seen")


@pytest.mark.parametrize("body", [None, "throw"])
def test_ids_go_in_and_out_and_into_the_record(rest: Rest, seen: str, body: object) -> None:
    headers = {"x-request-id": f"mine~{body}", "traceparent": f"00-{TRACE_ID}-{SPAN_ID}-01"}
    answer = rest.invoke("seen", body, headers=headers)
    assert answer.headers["x-request-id"] == f"mine~{body}"
    record = rest.record(answer.headers["atlas-run-id"])
    assert (record["request_id"], record["trace_id"]) == (f"mine~{body}", TRACE_ID)
    if body is None:
        told = answer.json()["result"]
        assert {name: told[name] for name in headers} == headers
    else:
        assert answer.json()["error"]["details"][0]["metadata"]["run_id"] == record["id"]


@pytest.mark.parametrize(
    "traceparent", ["", "00-" + "0" * 32 + f"-{SPAN_ID}-01", f"00-{TRACE_ID.upper()}-{SPAN_ID}-01", "x" * 5000]
)
def test_a_bad_traceparent_counts_as_none(rest: Rest, seen: str, traceparent: str) -> None:
    answer = rest.invoke("seen", headers={"traceparent": traceparent})
    assert rest.record(answer.headers["atlas-run-id"])["trace_id"] == ""


@pytest.mark.parametrize("sent", [b"x" * 129, b"two words", b"\xff", b""])
def test_a_request_id_that_may_not_go_on_is_one_other_for_all(rest: Rest, seen: str, sent: bytes) -> None:
    headers = {b"x-request-id": sent, b"apikey": rest.anon_key.encode()}
    answer = rest.client.post("/functions/v1/invoke/seen", headers=headers)
    told = answer.headers["x-request-id"]
    assert str(uuid.UUID(told)) == told == answer.json()["result"]["x-request-id"]
    assert rest.record(answer.headers["atlas-run-id"])["request_id"] == told


def test_every_refusal_has_a_request_id_and_no_run_id(rest: Rest) -> None:
    for answer in (
        rest.request("GET", "/nowhere"),
        rest.request("GET", "/v1/projects"),
        rest.invoke("no-such-function"),
        rest.manage("POST", "/functions/deploy", content=b"{"),
    ):
        assert answer.status_code >= 400
        assert answer.headers["x-request-id"]
        assert "atlas-run-id" not in answer.headers


FORGED = {
    "atlas-run-id": "forged",
    "x-request-id": "forged",
    "x-atlas-status": "500",
    "grpc-status": "7",
    "te": "forged",
}


def test_a_function_cannot_forge_what_the_service_says(rest: Rest) -> None:
    rest.deployed("export default (headers) => new Response('x', {headers})", slug="forger")
    answer = rest.invoke("forger", {**FORGED, "Atlas-Other": "forged", "X-Atlas-Other": "forged", "x-mine": "1"})
    assert (answer.status_code, answer.text, answer.headers["x-mine"]) == (200, "x", "1")
    assert "forged" not in answer.headers.values()
    assert not {"grpc-status", "atlas-other", "x-atlas-other", "x-atlas-status"} & answer.headers.keys()
    assert len(answer.headers.get_list("atlas-run-id")) == 1


def metrics(rest: Rest, **options: str | None) -> httpx.Response:
    return rest.request("GET", "/metrics", **options)


def test_metrics_are_for_the_admin_key_alone(rest: Rest) -> None:
    for key, status in ((None, 401), ("atlas_admin_" + "x" * 43, 401), (rest.anon_key, 403), (rest.service_key, 403)):
        assert metrics(rest, key=key).status_code == status
    answer = metrics(rest, key=rest.admin_key)
    assert answer.status_code == 200
    assert answer.headers["content-type"].startswith("text/plain; version=0.0.4")
    assert "# TYPE atlas_invocation_duration_seconds histogram" in answer.text
    for role in ("api", "worker"):
        assert re.search(rf'process_max_fds{{pid="\d+",role="{role}"}}', answer.text)


def test_every_run_is_counted_by_its_outcome(rest: Rest, seen: str) -> None:
    def counts() -> list[float]:
        text = metrics(rest, key=rest.admin_key).text
        found = (
            re.search(rf'^atlas_invocations_total{{outcome="{outcome}",runtime="quickjs"}} (\S+)$', text, re.MULTILINE)
            for outcome in ("ok", "exception")
        )
        return [float(each[1]) if each else 0.0 for each in found]

    before = counts()
    for body in (None, None, "throw"):
        rest.invoke("seen", body)
    rest.record(rest.invoke("seen", headers={"prefer": "respond-async"}).json()["run_id"])
    assert [now - then for now, then in zip(counts(), before, strict=True)] == [3, 1]
    assert "seen" not in metrics(rest, key=rest.admin_key).text
