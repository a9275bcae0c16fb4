"""One attempt at a step: its templates filled in, its node run, within its time."""

import asyncio
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from typing import Any, Final

from server.errors import AtlasError, InvalidArgument
from server.events.json_text import JsonError, read, separators
from server.postgres.control import Pool, transaction
from server.triggers.parsing import written
from server.workflows import records, store
from server.workflows.definition import (
    MAX_INPUT_BYTES,
    MAX_OUTPUT_BYTES,
    MAX_READ_BYTES,
    MAX_READ_VALUES,
    Definition,
    Node,
)
from server.workflows.events import members_of
from server.workflows.nodes.step import Attempt, InTurn, NodeType, Output, StepFailed, Wait
from server.workflows.queue import Claimed
from server.workflows.templates import Filling, Scope, TooLarge, dumped

KEPT: Final = 256
"""Definitions kept parsed."""


class Definitions:
    """Versions of workflows, parsed: they never change."""

    def __init__(self, pool: Pool) -> None:
        self._pool = pool
        self._kept: OrderedDict[tuple[str, int], Definition] = OrderedDict()

    async def of(self, workflow_id: str, version: int) -> Definition:
        """Of a run that is there. Unavailable when the database is away."""
        key = (workflow_id, version)
        if (found := self._kept.get(key)) is None:
            async with transaction(self._pool) as conn:
                cursor = await conn.execute(
                    "SELECT definition::text FROM workflow_versions WHERE workflow_id = %s AND version = %s", key
                )
                row = await cursor.fetchone()
            assert row is not None, "a run's version is kept as long as the run"
            found = self._kept[key] = store.loaded(row[0])
            if len(self._kept) > KEPT:
                self._kept.popitem(last=False)
        self._kept.move_to_end(key)
        return found


class Attempting:
    def __init__(self, pool: Pool, types: Mapping[str, NodeType]) -> None:
        self._pool = pool
        self._types = types

    async def prepare(self, claimed: Claimed, node: Node) -> Attempt:
        """StepFailed when the templates make too much of it. Unavailable when the database is away."""
        scope = await self._scope(claimed, node)
        config = node.config if node.type == "condition" else _filled(node, scope)
        return Attempt(
            project_id=claimed.project_id,
            tier=claimed.tier,
            run_id=claimed.run_id,
            trigger_id=claimed.trigger_id,
            node=node,
            input=config,
            scope=scope,
            attempt=claimed.attempts,
            lease=claimed.lease,
            now=claimed.claimed_at,  # by the clock that says when a delay is over
            wake_at=claimed.wake_at,
        )

    async def run(self, attempt: Attempt) -> Output | Wait:
        """StepFailed. Cancelled, the step has ended when this returns."""
        node, kind = attempt.node, self._types[attempt.node.type]
        try:
            async with (
                kind.turn(attempt) if isinstance(kind, InTurn) else nullcontext(),
                asyncio.timeout(node.timeout_s),
            ):
                ended = await kind.run(attempt)
        except TimeoutError:
            raise StepFailed(
                "STEP_TIMEOUT", f"The step did not end within {node.timeout_s:g} s, its timeout", again=True
            ) from None
        except AtlasError as why:
            raise StepFailed(why.reason, why.message, again=True) from why
        if isinstance(ended, Output):
            _require_moderate(ended.json)
        return ended

    async def _scope(self, claimed: Claimed, node: Node) -> Scope:
        steps: dict[str, Mapping[str, Any]] = {}
        for row in await self._results(claimed, node) if node.reads else ():
            output = None if row["output"] is None else read(row["output"]).value
            steps[row["node_id"]] = {"output": output, "error": row["error"], "state": row["state"]}
            await asyncio.sleep(0)  # each may take milliseconds
        try:
            event = members_of(claimed.event)
        except InvalidArgument as why:
            raise StepFailed("EVENT_UNREADABLE", why.message) from None
        return Scope(event=event, steps=steps, run={"id": claimed.run_id})

    async def _results(self, claimed: Claimed, node: Node) -> Sequence[Mapping[str, Any]]:
        """Of the steps it reads, once it is known that they are moderate."""
        async with transaction(self._pool) as conn:
            size = await records.output_bytes(conn, claimed.run_id, node.outputs)
            if size > MAX_READ_BYTES:
                raise _reads_too_much(f"{size} bytes", f"{MAX_READ_BYTES} bytes")
            rows = await records.results(conn, claimed.run_id, node.reads, node.outputs)
        values = sum(separators(row["output"]) for row in rows if row["output"] is not None)
        if values > MAX_READ_VALUES:
            raise _reads_too_much(f"{values} commas and opening brackets", str(MAX_READ_VALUES))
        return rows


def input_of(attempt: Attempt) -> bytes:
    """What is shown as the step's input."""
    if attempt.node.type == "condition":
        return dumped({"conditions": written(attempt.input)})
    return dumped(attempt.input["input"] if attempt.node.type == "function" else attempt.input)


def _filled(node: Node, scope: Scope) -> Any:
    try:
        return Filling(scope, MAX_INPUT_BYTES).fill(node.config)
    except TooLarge:
        raise StepFailed(
            "STEP_INPUT_TOO_LARGE",
            f"With its templates filled in the step's input has more than {MAX_INPUT_BYTES} bytes, which is all it may",
        ) from None


def _reads_too_much(found: str, most: str) -> StepFailed:
    return StepFailed(
        "STEP_INPUT_TOO_LARGE",
        f"The outputs that the step reads have {found} together; at most {most} are allowed: hand on less",
    )


def _require_moderate(output: bytes) -> None:
    if len(output) > MAX_OUTPUT_BYTES:
        raise StepFailed(
            "STEP_OUTPUT_TOO_LARGE",
            f"The step's output has {len(output)} bytes; at most {MAX_OUTPUT_BYTES} are allowed: hand on less",
        )
    try:
        read(output)
    except JsonError as why:
        raise StepFailed("STEP_OUTPUT_UNREADABLE", f"The step's output cannot be handed on: {why}") from None
