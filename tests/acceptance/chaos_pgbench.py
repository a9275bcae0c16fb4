"""Changes for `chaos_cdc`: pgbench on the tables of tenants, as the tenant, again and again as Postgres is killed.

    counter   a version of each row, which only goes up and says what happens to the row in
    item      INSERT, UPDATE, UPDATE, DELETE, INSERT, …
    history   every version there was, from the same transaction

Two rows a transaction, six changes, of which one in ten is rolled back.
"""

import os
import re
import subprocess
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import psycopg

from server.stack.binaries import in_wheel
from server.stack.postgres import WHEEL

ROWS: Final = 100
CHANGES: Final = 6
"""Of a transaction."""

OPS: Final = ("DELETE", "INSERT", "UPDATE", "UPDATE")
"""What version 0, 1, 2, 3 of a row is, and so on."""

TABLES: Final[dict[str, str | None]] = {"counter": "id", "item": "id", "history": None}
OWN_TABLES: Final[dict[str, str | None]] = {
    "pgbench_accounts": "aid",
    "pgbench_branches": "bid",
    "pgbench_tellers": "tid",
    "pgbench_history": None,
}
"""That pgbench makes. Tables by the column that names a row; of those without there are INSERTs only."""

SETUP: Final = f"""
CREATE TABLE counter (id int PRIMARY KEY, version int);
CREATE TABLE item (id int PRIMARY KEY, version int, note text);
CREATE TABLE history (id int, version int);
INSERT INTO counter SELECT id, 0 FROM generate_series(1, {ROWS}) AS id;
"""
_ROW: Final = r"""
UPDATE counter SET version = version + 1 WHERE id = :{row} RETURNING version AS {row}_version \gset
\if :{row}_version % 4 = 1
  INSERT INTO item VALUES (:{row}, :{row}_version, md5(:{row} || '-' || :{row}_version));
\elif :{row}_version % 4 = 0
  DELETE FROM item WHERE id = :{row};
\else
  UPDATE item SET version = :{row}_version, note = md5(:{row} || '-' || :{row}_version) WHERE id = :{row};
\endif
INSERT INTO history VALUES (:{row}, :{row}_version);
"""
SCRIPT: Final = (
    rf"""
\set low random(1, {ROWS // 2})
\set high random({ROWS // 2 + 1}, {ROWS})
\set fate random(1, 10)
BEGIN;
"""
    + _ROW.format(row="low")
    + _ROW.format(row="high")
    + r"""
\if :fate = 1
  ROLLBACK;
\else
  COMMIT;
\endif
"""
)
"""The lower row first, so that no two wait for each other."""

ROUND_S: Final = 3
PATIENCE_S: Final = 120.0
"""For an answer of Postgres, and beyond the planned time for all that is to be written."""

REPEATABLE_READ: Final = r"-c default_transaction_isolation=repeatable\ read"
"""So that Postgres refuses, and pgbench tries again, what in its own level would have waited."""


@dataclass(slots=True)
class Load:
    """What one pgbench after another does to a tenant's tables, `rate` transactions a second."""

    url: str
    options: tuple[str, ...]
    rate: float
    seed: int
    environment: dict[str, str] = field(default_factory=dict)
    rounds: Counter[str] = field(default_factory=Counter)
    """What became of them: whole or cut; and transactions that were retried."""

    def round(self) -> str:
        """One pgbench; what it says when it was cut short."""
        number = self.rounds["whole"] + self.rounds["cut"]
        timing = ("-T", str(ROUND_S), f"--rate={self.rate:.1f}", f"--random-seed={self.seed + number}")
        done = pgbench(self.url, "-n", "-c", "4", "--max-tries=100", *timing, *self.options, **self.environment)
        self.rounds["retried"] += sum(
            map(int, re.findall(r"^number of transactions retried: (\d+)", done.stdout, re.M))
        )
        self.rounds["cut" if done.returncode else "whole"] += 1
        return done.stderr if done.returncode else ""

    def go_on(self, enough: Callable[[], bool], seconds: float) -> None:
        """Round after round until there is enough. TimeoutError long after these seconds."""
        deadline_s, said = time.monotonic() + seconds + PATIENCE_S, ""
        while not enough():
            if time.monotonic() > deadline_s:
                raise TimeoutError(f"pgbench has not written enough: {dict(self.rounds)}\n{said}")
            if said := self.round():
                time.sleep(0.1)


def pgbench(url: str, *options: str, **environment: str) -> "subprocess.CompletedProcess[str]":
    """To its end, which is soon when Postgres dies."""
    return subprocess.run(
        [str(in_wheel(WHEEL, "pgbench")), *options, url],
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        timeout=PATIENCE_S,
    )


def scripted(url: str, script: Path, *, rate: float, seed: int, strict: bool) -> Load:
    """Our script, which it writes to that file; `strict`: in a stricter isolation, and by the extended protocol."""
    script.write_text(SCRIPT)
    options = ("-f", str(script), "-M", "extended" if strict else "simple")
    return Load(url, options, rate, seed, {"PGOPTIONS": REPEATABLE_READ} if strict else {})


def own(url: str, *, rate: float, seed: int) -> Load:
    """Its own tables, made by itself, and its own script. Their rows are made by the server, because otherwise pgbench
    looks into pg_class, which is closed to tenants."""
    made = pgbench(url, "-i", "-I", "dtGvp")
    assert made.returncode == 0, made.stderr
    return Load(url, ("-b", "tpcb-like"), rate, seed)


def asked(url: str, query: str) -> list[tuple[Any, ...]]:
    """The rows, once Postgres answers."""
    deadline_s = time.monotonic() + PATIENCE_S
    while True:
        try:
            with psycopg.connect(url, connect_timeout=5) as person:
                return person.execute(query.encode()).fetchall()
        except psycopg.OperationalError:
            if time.monotonic() > deadline_s:
                raise
            time.sleep(0.1)


def expected(versions: Counter[int]) -> dict[str, int]:
    """Events of a tenant's tables by type, from the version to which each row came."""
    ops = Counter(OPS[version % 4] for last in versions.values() for version in range(1, last + 1))
    return {
        "cdc.INSERT.counter": len(versions),
        "cdc.UPDATE.counter": versions.total(),
        "cdc.INSERT.history": versions.total(),
        **{f"cdc.{op}.item": ops[op] for op in set(OPS)},
    }


def own_expected(transactions: int) -> dict[str, int]:
    """Events of the tables that pgbench makes, after so many transactions."""
    rows = {"accounts": 100_000, "branches": 1, "tellers": 10}
    return {
        **{f"cdc.INSERT.pgbench_{table}": count for table, count in rows.items()},
        **{f"cdc.UPDATE.pgbench_{table}": transactions for table in rows},
        **{f"cdc.TRUNCATE.pgbench_{table}": 1 for table in (*rows, "history")},
        "cdc.INSERT.pgbench_history": transactions,
    }
