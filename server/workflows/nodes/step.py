"""The door between the worker and a type of node."""

from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Protocol, runtime_checkable
from uuid import UUID, uuid5

from server.tiers import Tier
from server.workflows.definition import Node
from server.workflows.templates import Scope


@dataclass(frozen=True, slots=True, kw_only=True)
class Attempt:
    """One attempt at a step. `input` is the node's configuration with its templates filled in; `attempt` counts from 1;
    `wake_at` is when a delay that was begun ends."""

    project_id: str
    tier: Tier | None
    run_id: str
    trigger_id: str | None
    node: Node
    input: Any
    scope: Scope
    attempt: int
    lease: str
    now: datetime
    wake_at: datetime | None = None

    @property
    def name(self) -> str:
        """A UUID of the step of this run, the same at every attempt."""
        return str(uuid5(UUID(self.run_id), self.node.id))

    @property
    def invocation_id(self) -> str:
        """A UUID of this attempt alone."""
        return str(uuid5(UUID(self.run_id), f"{self.node.id}/{self.lease}"))


@dataclass(frozen=True, slots=True, kw_only=True)
class Output:
    """The step succeeded. `json` is what it hands on, as text; `branch` what a condition answered."""

    json: bytes = b"null"
    branch: bool | None = None


@dataclass(frozen=True, slots=True)
class Wait:
    """The step goes on at that time, wherever."""

    until: datetime


class StepFailed(Exception):
    """The attempt failed. `again`: another may end otherwise. `no_room`: it did not begin for want of room, and does
    not count."""

    def __init__(self, reason: str, message: str, *, again: bool = False, no_room: bool = False) -> None:
        super().__init__(message)
        self.reason = reason
        self.message = message
        self.again = again
        self.no_room = no_room


class NodeType(Protocol):
    async def run(self, attempt: Attempt) -> Output | Wait:
        """One attempt. StepFailed; any other exception is a fault of ours. Cancelling it ends what it does."""
        ...


@runtime_checkable
class InTurn(Protocol):
    """A NodeType of which only so many run at a time."""

    def turn(self, attempt: Attempt) -> AbstractAsyncContextManager[None]:
        """Held while it runs; the step's timeout counts from having it. StepFailed with `no_room` when none is free."""
        ...
