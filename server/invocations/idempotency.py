"""Of several calls with one key, one runs and the others get its answer.

    no claim, or an expired one   claim it under a lease ──▶ run ──▶ store the answer for KEEP_S, or give the claim up
    claimed                       Aborted
    answered                      the answer
    either, with another input    InvalidArgument

An answer counts when the function has run: a result, or an error of the function or of one of its limits. Whoever was
cancelled, overloaded or lost to a fault of ours may try again.
"""

import asyncio
import hashlib
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, replace
from typing import Final, Literal
from uuid import uuid4

import orjson

from engines.contract import Outcome, Result
from server.errors import Aborted, AtlasError, Cancelled, InvalidArgument, Unavailable
from server.functions.catalog import require_slug
from server.functions.outcomes import TABLE
from server.invocations.answers import Answer, pack, unpack
from server.invocations.invoke import Call, Finished
from server.invocations.leases import LEASE_S, Leases
from server.log import logger
from server.postgres.control import Connection, Pool, transaction

log = logger("idempotency")

KEEP_S: Final = 24 * 3600.0
MAX_KEY_CHARS: Final = 255
WRITE_PAUSE_S: Final = 1.0

SWEEP_BATCH: Final = 1_000
ACCEPTED: Final = Result(outcome=Outcome.OK)
"""What is stored for an asynchronous call: its answer is the run's id."""

Mode = Literal["sync", "async"]
_OF_RUNS: Final = frozenset(reason for _, reason, _ in TABLE.values())

_CLAIM: Final = """
INSERT INTO idempotency_keys AS known (project_id, slug, key, input_sha256, run_id, lease, expires_at)
VALUES (%(project_id)s, %(slug)s, %(key)s, %(sha256)s, %(run_id)s, %(lease)s,
  now() + make_interval(secs => %(lease_s)s))
ON CONFLICT (project_id, slug, key) DO UPDATE SET
  input_sha256 = excluded.input_sha256, lease = excluded.lease, expires_at = excluded.expires_at, answer = NULL,
  run_id = CASE WHEN %(resume)s AND known.answer IS NULL AND known.input_sha256 = excluded.input_sha256
    THEN known.run_id ELSE excluded.run_id END
WHERE known.expires_at <= now() AND known.lease IS NULL
RETURNING run_id
"""


@dataclass(frozen=True, slots=True)
class _Claim:
    call: Call
    lease: str


class Idempotency:
    def __init__(self, pool: Pool) -> None:
        self._pool = pool
        self._leases = Leases(pool, "idempotency_keys")
        self._storing: set[asyncio.Task[None]] = set()

    async def start(self) -> None:
        await self._leases.start()

    async def close(self) -> None:
        """Answers that could not be stored yet get a last chance."""
        if self._storing:
            await asyncio.wait(self._storing, timeout=1.0)
        if self._storing:
            log.error("idempotency.lost", "Answers were not stored: calls with their keys will run again")
        for task in self._storing:
            task.cancel()
        await self._leases.close()

    async def once(self, call: Call, key: str, run: Callable[[Call], Awaitable[Finished]]) -> Finished:
        """What `run(call)` answers or raises, or what it did for an earlier call with the key.

        InvalidArgument for a bad key and for another input than the earlier call's; Aborted while that still runs;
        NotFound for what cannot be a slug; Unavailable without the database. Cancelling cancels `run`.
        """
        claim = await self._claim(call, parse_key(key), "sync")
        if isinstance(claim, Finished):
            return claim
        try:
            with self._leases.held(claim.lease):
                finished = await run(claim.call)
        except AtlasError as error:
            await self._settle(claim, error if counts(error) else None)
            raise
        except BaseException:
            await self._settle(claim, None)
            raise
        await self._settle(claim, finished)
        return finished

    async def once_accepted(self, call: Call, key: str, accept: Callable[[Call], Awaitable[str]]) -> str:
        """The same for asynchronous calls: the id of the one run. `accept` must take the same call twice as one run."""
        claim = await self._claim(call, parse_key(key), "async")
        if isinstance(claim, Finished):
            return claim.run_id
        try:
            run_id = await accept(claim.call)
        except BaseException:
            await self._settle(claim, None)
            raise
        await self._settle(claim, Finished(run_id, ACCEPTED))
        return run_id

    async def sweep(self) -> None:
        """Forget answers that are no longer kept."""
        forgotten = SWEEP_BATCH
        while forgotten == SWEEP_BATCH:
            async with transaction(self._pool) as conn:
                cursor = await conn.execute(
                    "DELETE FROM idempotency_keys WHERE (project_id, slug, key) IN (SELECT project_id, slug, key"
                    " FROM idempotency_keys WHERE expires_at <= now() AND lease IS NULL"
                    " LIMIT %s FOR UPDATE SKIP LOCKED)",
                    [SWEEP_BATCH],
                )
                forgotten = cursor.rowcount

    async def _claim(self, call: Call, key: str, mode: Mode) -> _Claim | Finished:
        """The right and duty to run, or the answer that is there already."""
        require_slug(call.slug)
        lease, sha256 = str(uuid4()), fingerprint(call, mode)
        asked = {
            "project_id": call.project_id,
            "slug": call.slug,
            "key": key,
            "sha256": sha256,
            "run_id": call.run_id,
            "lease": lease,
            "lease_s": LEASE_S,
            "resume": mode == "async",
        }
        async with transaction(self._pool) as conn:
            cursor = await conn.execute(_CLAIM, asked)
            if (row := await cursor.fetchone()) is not None:
                return _Claim(replace(call, run_id=row[0]), lease)
            return await _known(conn, call, key, sha256)

    async def _settle(self, claim: _Claim, answer: Answer | None) -> None:
        """Store the answer, or give the claim up. When the database is away that goes on behind the caller's back."""
        task = asyncio.create_task(self._write(claim.lease, answer), name="idempotency")
        self._storing.add(task)
        task.add_done_callback(self._storing.discard)
        await asyncio.wait([task], timeout=1.0)

    async def _write(self, lease: str, answer: Answer | None) -> None:
        """As soon as the database takes it; the claim is held until then."""
        with self._leases.held(lease):
            while True:
                try:
                    async with transaction(self._pool) as conn:
                        if answer is None:
                            await conn.execute("DELETE FROM idempotency_keys WHERE lease = %s", [lease])
                        else:
                            await conn.execute(
                                "UPDATE idempotency_keys SET answer = %s, lease = NULL,"
                                " expires_at = now() + make_interval(secs => %s) WHERE lease = %s",
                                [pack(answer), KEEP_S, lease],
                            )
                    return
                except Unavailable as why:
                    log.warning("idempotency.unwritten", f"An answer waits to be stored under its key: {why}")
                    await asyncio.sleep(WRITE_PAUSE_S)


def parse_key(key: str) -> str:
    """1 to 255 printable ASCII characters."""
    if 0 < len(key) <= MAX_KEY_CHARS and key.isascii() and key.isprintable():
        return key
    raise InvalidArgument(
        "idempotency_key",
        f"The idempotency key has {len(key)} characters; it must be 1 to {MAX_KEY_CHARS} printable ASCII characters",
        allowed=str(MAX_KEY_CHARS),
    )


def fingerprint(call: Call, mode: Mode) -> bytes:
    """SHA-256 of what makes two calls the same."""
    request = call.request
    told = [mode, call.body.kind, request.method, request.path, request.query]
    head = orjson.dumps(told, option=orjson.OPT_SORT_KEYS)
    return hashlib.sha256(head + b"\n" + call.body.data).digest()


def counts(error: AtlasError) -> bool:
    """Whether it is the answer of a function that has run."""
    return error.reason in _OF_RUNS and not isinstance(error, Cancelled | Unavailable)


async def _known(conn: Connection, call: Call, key: str, sha256: bytes) -> Finished:
    cursor = await conn.execute(
        "SELECT input_sha256, answer, run_id FROM idempotency_keys WHERE project_id = %s AND slug = %s AND key = %s",
        [call.project_id, call.slug, key],
        binary=True,
    )
    row = await cursor.fetchone()
    if row is not None and bytes(row[0]) != sha256:
        raise InvalidArgument(
            "idempotency_key", "The idempotency key was used with another input; use a new one", reason="KEY_REUSED"
        )
    if row is None or row[1] is None:
        raise Aborted(
            "A call with this idempotency key still runs; try again",
            reason="IDEMPOTENT_CALL_RUNNING",
            metadata={} if row is None else {"run_id": str(row[2])},
            retry_after_ms=1_000,
        )
    answer = unpack(bytes(row[1]))
    if isinstance(answer, Finished):
        return answer
    raise answer
