"""What no honest client sends and no honest function answers: a clear refusal each, and nothing of ours in its text."""

import json

import grpc.aio
import pytest
from google.rpc import error_details_pb2, status_pb2

from atlas.functions.v1 import invocation_service_pb2 as pb
from server.rpc.access import METHODS
from tests.fix_clients import Rest
from tests.fix_up import Stack


@pytest.mark.parametrize("method", sorted(METHODS))
async def test_bytes_that_are_no_message_are_the_callers_mistake(method: str, channel: grpc.aio.Channel) -> None:
    call: grpc.aio.UnaryUnaryMultiCallable[bytes, bytes] = channel.unary_unary(method)
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await call(b"\xff\xff\xff")
    assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert "3 bytes are no message" in (caught.value.details() or "")
    assert "DecodeError" not in (caught.value.details() or "")


async def test_what_does_not_fit_a_typed_answer_is_told_as_such(rest: Rest, channel: grpc.aio.Channel) -> None:
    source = "export default (input) => input === 'many' ? Array(100000).fill([]) : input === 'odd' ? '\\ud800' : 1"
    assert rest.deploy(source, slug="typed").status_code == 200
    call = channel.unary_unary(
        "/atlas.functions.v1.InvocationService/Invoke",
        request_serializer=pb.InvokeRequest.SerializeToString,
        response_deserializer=pb.InvokeResponse.FromString,
    )
    key = (("apikey", rest.anon_key),)
    request = pb.InvokeRequest(slug="typed")
    request.input.string_value = "odd"
    assert (await call(request, metadata=key)).result.string_value == "?"
    request.input.string_value = "many"
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await call(request, metadata=key)
    trailers = dict(caught.value.trailing_metadata() or ())
    info = error_details_pb2.ErrorInfo()
    assert status_pb2.Status.FromString(trailers["grpc-status-details-bin"]).details[0].Unpack(info)
    assert info.reason == "RESULT_TOO_MANY_VALUES"


@pytest.mark.parametrize("count", [64, 65, 101, 250])
def test_a_response_with_more_headers_than_travel_says_so(rest: Rest, count: int) -> None:
    source = "export default (n) => new Response('x', {headers: Array.from({length: n}, (_, i) => ['h' + i, 'v'])})"
    assert rest.deploy(source, slug="headers").status_code == 200
    answer = rest.invoke("headers", count - 1)  # and its content-type
    if count <= 64:
        assert (answer.status_code, answer.headers["h0"]) == (200, "v")
    else:
        assert answer.status_code == 500
        assert answer.json()["error"]["details"][0]["reason"] == "RESPONSE_HEADERS_TOO_LARGE"


def test_large_json_passes_whole_and_large_nonsense_does_not(rest: Rest) -> None:
    assert rest.deploy("export default (input) => input", slug="large").status_code == 200
    text = json.dumps([[], {}, "é,[", 1.5] * 50_000, ensure_ascii=False).encode()
    kind = {"content-type": "application/json"}
    answer = rest.request("POST", "/functions/v1/invoke/large", key=rest.anon_key, content=text, headers=kind)
    assert answer.json()["result"] == json.loads(text)
    answer = rest.request("POST", "/functions/v1/invoke/large", key=rest.anon_key, content=text[:-1], headers=kind)
    assert answer.status_code == 400
    assert "not valid JSON" in answer.json()["error"]["message"]


@pytest.mark.parametrize(
    "headers",
    [
        {"trace-bin": "!!! no base64"},
        {"grpc-timeout": "soon"},
        {"grpc-timeout": "123456789S"},
        {"grpc-encoding": "gzip"},
        {f"x-{number}": "v" * 1000 for number in range(50)},
    ],
    ids=["binary", "misspelt timeout", "long timeout", "encoding", "50 kB"],
)
def test_headers_that_mean_something_to_grpc_alone_do_no_harm(rest: Rest, headers: dict[str, str]) -> None:
    assert rest.deploy("export default (_, ctx) => ctx.request.headers", slug="shown").status_code == 200
    answer = rest.invoke("shown", headers=headers)
    assert answer.status_code == 200, answer.text
    assert answer.json()["result"].get("x-49") == headers.get("x-49")


def test_a_header_that_is_no_text_is_in_no_log(running_stack: Stack, rest: Rest) -> None:
    assert rest.deploy("export default (_, ctx) => ctx.request.headers['x-odd']", slug="shown").status_code == 200
    answer = rest.invoke("shown", headers={"x-odd": b"confidential \xff"})
    assert answer.json()["result"] == "confidential \xff"
    assert "confidential" not in (running_stack.run / "log" / "api-0.log").read_text()


def test_a_page_token_of_nobody_is_named_however_long(rest: Rest) -> None:
    path = f"/v1/projects/{rest.project_id}/functions"
    answer = rest.request("GET", path, key=rest.service_key, params={"page_token": "A" * 20_000})
    assert answer.status_code == 400, answer.text
    assert "page_token" in answer.json()["error"]["message"]
