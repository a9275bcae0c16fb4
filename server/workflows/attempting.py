"""One attempt at a step: its templates filled in, its node run, within its time."""

import asyncio
from collections import OrderedDict
from collections.abc import Mapping
from contextlib import nullcontext
from typing import Final

from server.errors import AtlasError
from server.events.json_text import JsonError, read
from server.postgres.control import Pool, transaction
from server.workflows import store
from server.workflows.definition import MAX_OUTPUT_BYTES, Definition, Node
from server.workflows.inputs import Inputs, filled
from server.workflows.nodes.step import Attempt, InTurn, NodeType, Output, StepFailed, Wait
from server.workflows.queue import Claimed

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
        self._inputs = Inputs(pool)
        self._types = types

    async def prepare(self, claimed: Claimed, node: Node) -> Attempt:
        """StepFailed when the templates make too much of it. Unavailable when the database is away."""
        scope = await self._inputs.scope(claimed.run_id, claimed.event, node)
        return Attempt(
            project_id=claimed.project_id,
            tier=claimed.tier,
            run_id=claimed.run_id,
            trigger_id=claimed.trigger_id,
            node=node,
            input=filled(node, scope),
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
