"""`atlas invoke` and `atlas result`: run a function, and print what it returned."""

import base64
import json
import time
from typing import Final

import click
from google.api.httpbody_pb2 import HttpBody

from atlas.functions.v1 import invocation_service_pb2 as pb
from atlas.runs.v1 import runs_service_pb2 as runs_pb
from server.cli.client import INVOKE_S, HttpAnswer
from server.cli.json_input import json_text
from server.cli.problems import Problem
from server.cli.report import log_lines, metrics_line
from server.cli.session import Session, options

PENDING: Final = 202
RECORD_S: Final = 3.0
"""How long the record of a run is waited for; it is written soon after the run ends."""


@click.command()
@click.argument("slug")
@click.option(
    "--data", "-d", default="null", metavar="JSON|@FILE|-", help="The input: JSON, a file of it, or - for stdin."
)
@click.option("--path", default="", help="ctx.request.path, beginning with /.")
@click.option("--async", "respond_async", is_flag=True, help="Print the run's id at once; see `atlas result`.")
@click.option("--idempotency-key", default="", metavar="KEY", help="Runs once; later calls get the first's answer.")
@click.option("--verbose", "-v", is_flag=True, help="Metrics and console lines, on stderr.")
@options
def invoke(
    session: Session,
    slug: str,
    data: str,
    path: str,
    respond_async: bool,
    idempotency_key: str,
    verbose: bool,
) -> None:
    """Run a function and print its result.

    \b
    atlas invoke hello --data '{"name": "Ada"}'
    atlas invoke hello --data @input.json --verbose
    echo '[1, 2]' | atlas invoke sum --data -
    atlas invoke report --async
    """
    body = HttpBody(content_type="application/json", data=json_text(data, "--data").encode())
    request = pb.InvokeHttpRequest(slug=slug, rest=path.removeprefix("/"), body=body)
    client = session.client
    prefer = "respond-async" if respond_async else ""
    try:
        answer = client.call_http(
            client.invocations.InvokeHttp, request, INVOKE_S, prefer=prefer, idempotency_key=idempotency_key
        )
    except Problem as problem:
        if verbose:
            _tell_record(session, problem.metadata.get("run_id", ""))
        raise
    if respond_async and answer.status == PENDING:
        return _accepted(session, answer)
    _print(session, answer)
    if verbose:
        _tell_record(session, answer.run_id)
    return None


@click.command()
@click.argument("run_id")
@click.option("--wait", is_flag=True, help="Until the run has ended, however long that takes.")
@options
def result(session: Session, run_id: str, wait: bool) -> None:
    """Print the result of an asynchronous run.

    \b
    atlas result 0192f0c1-7c5e-7e0a-b6a5-0f4f8a1c2d3e --wait
    """
    client = session.client
    request = pb.GetResultRequest(run_id=run_id)
    pause_s = 0.1
    while True:
        answer = client.call_http(client.invocations.GetResult, request)
        state = _state(answer, run_id)
        if state is None:
            return _print(session, answer)
        if not wait:
            return session.out.document({"run_id": run_id, "state": state})
        time.sleep(pause_s)
        pause_s = min(2.0, pause_s * 1.5)


def _accepted(session: Session, answer: HttpAnswer) -> None:
    document = json.loads(answer.data)
    if session.out.json:
        return session.out.document(document)
    session.out.text(document["run_id"])
    return session.out.note(f"Its result: atlas result {document['run_id']} --wait")


def _print(session: Session, answer: HttpAnswer) -> None:
    """The result; or, when the function chose its answer, the body as it is. With --json, all that is known."""
    if not answer.chosen:
        document = json.loads(answer.data)
        shown = {**document, **({"run_id": answer.run_id} if answer.run_id else {})}
        return session.out.document(shown if session.out.json else document["result"])
    if session.out.json:
        response = {"status": answer.status, "content_type": answer.content_type, **_body(answer.data)}
        return session.out.document({"response": response, "run_id": answer.run_id})
    if not 200 <= answer.status <= 299:
        session.out.note(f"HTTP status {answer.status}")
    return session.out.data(answer.data)


def _body(data: bytes) -> dict[str, str]:
    try:
        return {"body": data.decode()}
    except UnicodeDecodeError:
        return {"body_base64": base64.b64encode(data).decode()}


def _state(answer: HttpAnswer, run_id: str) -> str | None:
    """Of a run that has not ended; None when this is its result, of whatever form."""
    if answer.status != PENDING:
        return None
    try:
        document = json.loads(answer.data)
    except ValueError:
        return None
    told = isinstance(document, dict) and document.get("run_id") == run_id
    return str(document["state"]) if told and "state" in document else None


def _tell_record(session: Session, run_id: str) -> None:
    """Metrics and console of a run that has just ended; nothing when there is no record, or the key may not read it."""
    if not run_id or session.out.json:
        return None
    client = session.client
    deadline_s = time.monotonic() + RECORD_S
    while True:
        try:
            run = client.call(client.runs.GetRun, runs_pb.GetRunRequest(project_id=client.project_id, run_id=run_id))
            if run.state == "finished":
                return session.out.note("\n".join([metrics_line(run.metrics), *log_lines(run)]))
        except Problem as problem:
            if problem.code != "not_found":
                return None
        if time.monotonic() > deadline_s:
            return None
        time.sleep(0.1)
