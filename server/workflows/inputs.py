"""What a step gets: its configuration with templates filled in, and what of that is shown as its input.

All that goes into it is kept with its run. So a large input is not stored but made again for who asks for it: otherwise
an event of 1 MB would be stored with each of 200 steps.
"""

import asyncio
from collections.abc import Mapping, Sequence
from typing import Any, Final

from server.errors import InvalidArgument
from server.events.json_text import read, separators
from server.postgres.control import Pool, transaction
from server.triggers.parsing import written
from server.workflows import records
from server.workflows.definition import MAX_INPUT_BYTES, MAX_READ_BYTES, MAX_READ_VALUES, Node
from server.workflows.events import members_of
from server.workflows.nodes.step import StepFailed
from server.workflows.templates import Filling, Scope, TooLarge, dumped

MADE_AGAIN: Final = b""
"""Stands for an input of more than `records.SHOWN_BYTES`."""


class Inputs:
    def __init__(self, pool: Pool) -> None:
        self._pool = pool

    async def scope(self, run_id: str, event: bytes, node: Node) -> Scope:
        """What the templates of a step see. StepFailed when that is too much; Unavailable."""
        steps: dict[str, Mapping[str, Any]] = {}
        for row in await self._results(run_id, node) if node.reads else ():
            output = None if row["output"] is None else read(row["output"]).value
            steps[row["node_id"]] = {"output": output, "error": row["error"], "state": row["state"]}
            await asyncio.sleep(0)  # each may take milliseconds
        try:
            members = members_of(event)
        except InvalidArgument as why:
            raise StepFailed("EVENT_UNREADABLE", why.message) from None
        return Scope(event=members, steps=steps, run={"id": run_id})

    async def again(self, run_id: str, event: bytes, node: Node) -> bytes:
        """What stood for MADE_AGAIN, of a step that has ended. As `scope`."""
        return shown(node, filled(node, await self.scope(run_id, event, node)))

    async def _results(self, run_id: str, node: Node) -> Sequence[Mapping[str, Any]]:
        """Of the steps it reads, once it is known that they are moderate."""
        async with transaction(self._pool) as conn:
            size = await records.output_bytes(conn, run_id, node.outputs)
            if size > MAX_READ_BYTES:
                raise _reads_too_much(f"{size} bytes", f"{MAX_READ_BYTES} bytes")
            rows = await records.results(conn, run_id, node.reads, node.outputs)
        values = sum(separators(row["output"]) for row in rows if row["output"] is not None)
        if values > MAX_READ_VALUES:
            raise _reads_too_much(f"{values} commas and opening brackets", str(MAX_READ_VALUES))
        return rows


def filled(node: Node, scope: Scope) -> Any:
    """Its configuration, of a condition as it is. StepFailed when the templates make too much of it."""
    if node.type == "condition":
        return node.config
    try:
        return Filling(scope, MAX_INPUT_BYTES).fill(node.config)
    except TooLarge:
        raise StepFailed(
            "STEP_INPUT_TOO_LARGE",
            f"With its templates filled in the step's input has more than {MAX_INPUT_BYTES} bytes, which is all it may",
        ) from None


def shown(node: Node, config: Any) -> bytes:
    """What is shown as the step's input."""
    if node.type == "condition":
        return dumped({"conditions": written(config)})
    return dumped(config["input"] if node.type == "function" else config)


def stored(node: Node, config: Any) -> bytes:
    """What is kept of that."""
    whole = shown(node, config)
    return whole if len(whole) <= records.SHOWN_BYTES else MADE_AGAIN


def _reads_too_much(found: str, most: str) -> StepFailed:
    return StepFailed(
        "STEP_INPUT_TOO_LARGE",
        f"The outputs that the step reads have {found} together; at most {most} are allowed: hand on less",
    )
