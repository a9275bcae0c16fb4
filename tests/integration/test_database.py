"""atlas.db.query against a real Postgres: types both ways, caps, transactions, deadlines."""

import asyncio
import time
from collections.abc import Sequence
from pathlib import Path

import orjson
import psycopg
import pytest

from engines.contract import HostError
from server.host import database as database_module
from server.host.database import Database
from server.postgres.session import Session
from server.postgres.tenants import Tenants, schema_of


async def rows(database: Database, project: str, sql: str, *params: object) -> list[dict[str, object]]:
    found: list[dict[str, object]] = orjson.loads(await database.query(project, sql, params, timeout_ms=10_000))
    return found


async def code(database: Database, project: str, sql: str, *params: object) -> str:
    with pytest.raises(HostError) as caught:
        await database.query(project, sql, params, timeout_ms=10_000)
    return caught.value.code


async def test_a_table_from_creation_to_rows(database: Database, project: str) -> None:
    assert (
        await rows(database, project, "CREATE TABLE orders (id serial PRIMARY KEY, user_id text, total numeric)") == []
    )
    assert await rows(database, project, "INSERT INTO orders (user_id, total) VALUES ($1, $2)", "u1", 9.99) == []
    inserted = await rows(database, project, "INSERT INTO orders (user_id, total) VALUES ($1, 5) RETURNING *", "u2")
    assert inserted == [{"id": 2, "user_id": "u2", "total": 5}]
    assert await rows(database, project, "SELECT total FROM orders WHERE user_id = $1", "u1") == [{"total": 9.99}]


@pytest.mark.parametrize(
    ("expression", "expected"),
    [
        ("1::int2", 1),
        ("9007199254740991::int8", 9007199254740991),
        ("9007199254740992::int8", "9007199254740992"),
        ("(-9007199254740992)::int8", "-9007199254740992"),
        ("1.10::numeric", 1.1),
        ("0.1234567890123456789::numeric", "0.1234567890123456789"),
        ("123456789012345678901234567890::numeric", "123456789012345678901234567890"),
        ("1e20::numeric", 100000000000000000000),
        ("'NaN'::numeric", "NaN"),
        ("'Infinity'::float8", "Infinity"),
        ("'NaN'::float4", "NaN"),
        ("0.1::float8", 0.1),
        ("true", True),
        ("NULL", None),
        ("'2026-01-02 03:04:05.678+02'::timestamptz", "2026-01-02T01:04:05.678+00:00"),
        ("'2026-01-02 03:04:05'::timestamp", "2026-01-02T03:04:05"),
        ("'infinity'::timestamptz", "infinity"),
        ("'0044-03-15 BC'::timestamp", "0044-03-15 00:00:00 BC"),
        ("'2026-01-02'::date", "2026-01-02"),
        ("'1 day 02:00'::interval", "1 day 02:00:00"),
        ("""'{"b": 1,  "a": [1]}'::json""", {"b": 1, "a": [1]}),
        ("""'{"n": 12345678901234567890123}'::jsonb""", {"n": 12345678901234567890123.0}),
        ("'\\xdeadbeef'::bytea", "\\xdeadbeef"),
        ("ARRAY[1,NULL,3]", [1, None, 3]),
        ("ARRAY[[1,2],[3,4]]", [[1, 2], [3, 4]]),
        ("'[0:1]={1,2}'::int[]", [1, 2]),
        ("'{}'::text[]", []),
        ("""ARRAY['a,b', 'say "hi"', 'back\\slash', 'NULL', '', NULL, '{x}']""",
         ["a,b", 'say "hi"', "back\\slash", "NULL", "", None, "{x}"]),
        ("ARRAY[9007199254740993]", ["9007199254740993"]),
        ("ARRAY['{\"a\": 1}'::jsonb]", [{"a": 1}]),
        ("ARRAY['2026-01-02 03:04:05+00'::timestamptz]", ["2026-01-02T03:04:05+00:00"]),
        ("int4range(1,5)", "[1,5)"),
        ("'192.168.0.1'::inet", "192.168.0.1"),
    ],
)  # fmt: skip
async def test_a_type_as_json(database: Database, shared_project: str, expression: str, expected: object) -> None:
    assert await rows(database, shared_project, f"SELECT {expression} AS v") == [{"v": expected}]


async def test_json_is_byte_true_and_the_last_of_equal_names_wins(database: Database, shared_project: str) -> None:
    assert (
        await database.query(shared_project, "SELECT '{\"a\":  1.0}'::json AS j", (), timeout_ms=5_000)
        == b'[{"j":{"a":  1.0}}]'
    )
    assert await rows(database, shared_project, "SELECT 1 AS a, 2 AS a") == [{"a": 2}]
    assert await rows(database, shared_project, "SELECT") == [{}]


@pytest.mark.parametrize(
    ("expression", "value", "expected"),
    [
        ("$1 + 1", 41, 42),
        ("$1 * 1000000", 2**40, "1099511627776000000"),
        ("$1 * 2", 1.25, 2.5),
        ("pg_typeof($1)::text", 0.5, "numeric"),
        ("$1::text", "plain", "plain"),
        ("$1::text", None, None),
        ("NOT $1", True, False),
        ("$1 ->> 'a'", {"a": "x"}, "x"),
        ("$1::timestamptz", "2026-01-02T03:04:05Z", "2026-01-02T03:04:05+00:00"),
        ("2 = ANY($1)", [1, 2], True),
        ("'b'::varchar = ANY($1)", ["a", "b"], True),
        ("'0d1c2b3a-0000-0000-0000-000000000000'::uuid = ANY($1)", ["0d1c2b3a-0000-0000-0000-000000000000"], True),
        ("1 = ANY($1)", [], False),
        ("$1", ['q"uo\\te', "NULL", None, "{,}"], ['q"uo\\te', "NULL", None, "{,}"]),
        ("$1", [[1, 2], [3, 4]], [[1, 2], [3, 4]]),
        ("encode($1, 'hex')", {"$bytes": "3q0="}, "dead"),
        ("jsonb_build_object('k', $1)", "text", {"k": "text"}),
        ("jsonb_build_object('k', $1)", 1, {"k": 1}),
        ("'7'::text = $1", 7, True),
        ("$1::jsonb", 7, 7),
        ("$1::jsonb", [1, "a", None], [1, "a", None]),
        ("$1::jsonb", [], []),
        ("jsonb_array_length($1)", [{"a": 1}, 2], 2),
    ],
)
async def test_a_parameter(
    database: Database, shared_project: str, expression: str, value: object, expected: object
) -> None:
    assert await rows(database, shared_project, f"SELECT {expression} AS v", value) == [{"v": expected}]


async def test_lists_and_objects_into_columns(database: Database, project: str) -> None:
    await rows(database, project, "CREATE TYPE mood AS ENUM ('sad', 'ok')")
    await rows(
        database, project, "CREATE TABLE t (j jsonb, k json, u uuid[], tags text[], m mood[], js jsonb[], n text)"
    )
    await rows(
        database, project, "INSERT INTO t VALUES ($1, $2, $3, $4, $5, $6, $7)",
        [1, "a"], {"x": [1]}, ["0d1c2b3a-0000-0000-0000-000000000000"], ["a", None], ["ok"], [{"a": 1}, "s"], 5,
    )  # fmt: skip
    assert await rows(database, project, "SELECT *, m[1] AS first FROM t") == [
        {
            "j": [1, "a"],
            "k": {"x": [1]},
            "u": ["0d1c2b3a-0000-0000-0000-000000000000"],
            "tags": ["a", None],
            "m": "{ok}",
            "js": [{"a": 1}, "s"],
            "n": "5",
            "first": "ok",
        }
    ]


@pytest.mark.parametrize(
    ("values", "part"),
    [
        (["a\0b"], "params[0] contains the character U+0000"),
        ([1, ["a\0"]], "params[1] contains the character U+0000"),
        ([{"$bytes": "***"}], "params[0].$bytes is not base64"),
        ([[[[[[[[1]]]]]]]], "params[0] is an array nested deeper than 6"),
        ([0] * 65_536, "params has 65536 values, at most 65535"),
    ],
)
async def test_parameters_postgres_cannot_take(
    database: Database, shared_project: str, values: Sequence[object], part: str
) -> None:
    with pytest.raises(HostError) as caught:
        await database.query(shared_project, "SELECT 1", values, timeout_ms=5_000)
    assert caught.value.code == "invalid_argument"
    assert part in caught.value.message


async def test_sql_errors_say_what_and_where_and_leave_the_connection_usable(
    database: Database, shared_project: str
) -> None:
    with pytest.raises(HostError) as caught:
        await database.query(shared_project, "SELECT * FROM nowhere", (), timeout_ms=5_000)
    assert caught.value.code == "sql_42P01"
    assert caught.value.message == 'relation "nowhere" does not exist (SQLSTATE 42P01, at character 15)'
    assert await code(database, shared_project, "SELEC 1") == "sql_42601"
    assert await code(database, shared_project, "SELECT 1; SELECT 2") == "sql_42601"
    assert await code(database, shared_project, "SELECT $1::int", "x") == "sql_22P02"
    assert await code(database, shared_project, "SELECT $2::int", 1) != ""
    assert await code(database, shared_project, "SELECT $1::int") == "sql_08P01"
    assert await rows(database, shared_project, "SELECT 1 AS one") == [{"one": 1}]
    assert repr(database._connections) == "<Connections 0 in use, 1 idle, 0 waiting>"


async def test_caps_on_rows_and_bytes_roll_back(database: Database, project: str) -> None:
    await rows(database, project, "CREATE TABLE t (i int)")
    ten_thousand = await rows(database, project, "SELECT generate_series(1, 10000) AS i")
    assert len(ten_thousand) == 10_000
    insert = "INSERT INTO t SELECT generate_series(1, 10001) RETURNING i"
    with pytest.raises(HostError, match="10000 are allowed; add a LIMIT") as caught:
        await database.query(project, insert, (), timeout_ms=5_000)
    assert caught.value.code == "rows_limit"
    assert await rows(database, project, "SELECT count(*) AS n FROM t") == [{"n": 0}]
    wide = "SELECT repeat('x', 1000000) FROM generate_series(1, 5)"
    assert await code(database, project, wide) == "bytes_limit"
    assert await code(database, project, "SELECT repeat(chr(1), 1000000)") == "bytes_limit"  # six bytes each as JSON
    assert await code(database, project, "SELECT repeat('x', 100000000)") == "bytes_limit"


async def test_a_huge_value_never_reaches_our_memory(database: Database, shared_project: str) -> None:
    def resident_kb() -> int:
        return int(Path("/proc/self/statm").read_text().split()[1]) * 4

    before = resident_kb()
    assert await code(database, shared_project, "SELECT repeat('x', 200000000)") == "bytes_limit"
    assert resident_kb() - before < 50_000


@pytest.mark.parametrize(
    "sql",
    ["BEGIN", "COMMIT", "ROLLBACK", "SET work_mem = '1GB'", "RESET ALL", "LISTEN x", "NOTIFY x", "DISCARD ALL",
     "PREPARE p AS SELECT 1", "DEALLOCATE ALL", "COPY t FROM STDIN", "COPY t TO STDOUT", "COPY (SELECT 1) TO STDOUT"],
)  # fmt: skip
async def test_statements_without_a_meaning_here_are_refused(database: Database, project: str, sql: str) -> None:
    await rows(database, project, "CREATE TABLE t (i int)")
    assert await code(database, project, sql) == "sql_unsupported"
    assert await rows(database, project, "SELECT count(*) AS n FROM t") == [{"n": 0}]


async def test_a_deferred_constraint_fails_the_call(database: Database, project: str) -> None:
    await rows(database, project, "CREATE TABLE d (i int UNIQUE DEFERRABLE INITIALLY DEFERRED)")
    assert await code(database, project, "INSERT INTO d VALUES (1), (1) RETURNING i") == "sql_23505"
    assert await rows(database, project, "SELECT count(*) AS n FROM d") == [{"n": 0}]


async def test_what_a_statement_does_to_its_session_ends_with_it(database: Database, shared_project: str) -> None:
    await rows(
        database,
        shared_project,
        "DO $$ BEGIN SET work_mem = '1GB'; SET search_path = ''; SET client_encoding = latin1; END $$",
    )
    assert await rows(database, shared_project, "SHOW work_mem") == [{"work_mem": "4MB"}]
    assert await rows(database, shared_project, "SHOW search_path") == [{"search_path": schema_of(shared_project)}]
    assert await rows(database, shared_project, "SELECT 'ä' AS v") == [{"v": "ä"}]


async def _running(admin_url: str, project: str) -> int:
    async with await psycopg.AsyncConnection.connect(admin_url, autocommit=True) as admin:
        cursor = await admin.execute(
            "SELECT count(*) FROM pg_stat_activity WHERE usename = %s AND state = 'active'", [schema_of(project)]
        )
        found = await cursor.fetchone()
        assert found
        return int(found[0])


ENDLESS = "WITH RECURSIVE r(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM r) SELECT count(*) FROM r"


async def test_a_deadline_ends_the_statement_on_the_server(database: Database, project: str, tenants: Tenants) -> None:
    with pytest.raises(HostError, match="within 200 ms") as caught:
        await database.query(project, ENDLESS, (), timeout_ms=200)
    assert caught.value.code == "sql_timeout"
    assert await _running(tenants._admin_url, project) == 0
    assert await rows(database, project, "SELECT 1 AS one") == [{"one": 1}]


async def test_cancelling_ends_the_statement_before_it_returns(
    database: Database, project: str, tenants: Tenants
) -> None:
    await rows(database, project, "CREATE TABLE t (i bigint)")
    call = asyncio.create_task(database.query(project, f"INSERT INTO t {ENDLESS}", (), timeout_ms=60_000))
    deadline = time.monotonic() + 10
    while await _running(tenants._admin_url, project) == 0:
        assert time.monotonic() < deadline
    call.cancel()
    with pytest.raises(asyncio.CancelledError):
        await call
    assert await _running(tenants._admin_url, project) == 0
    assert await rows(database, project, "SELECT count(*) AS n FROM t") == [{"n": 0}]
    assert repr(database._connections) == "<Connections 0 in use, 1 idle, 0 waiting>"


async def test_calls_beyond_the_projects_connections_wait_and_then_say_so(tenants: Tenants, project: str) -> None:
    database = Database(tenants, per_project=2, wait_s=0.3)
    try:
        many = await asyncio.gather(*(rows(database, project, "SELECT $1 AS i", i) for i in range(20)))
        assert [found[0]["i"] for found in many] == list(range(20))
        busy = [asyncio.create_task(database.query(project, ENDLESS, (), timeout_ms=60_000)) for _ in range(2)]
        await asyncio.sleep(0)
        with pytest.raises(HostError) as caught:
            await database.query(project, "SELECT 1", (), timeout_ms=5_000)
        assert caught.value.code == "unavailable"
        for call in busy:
            call.cancel()
        await asyncio.gather(*busy, return_exceptions=True)
    finally:
        await database.close()


async def test_idle_connections_make_room_for_other_projects(tenants: Tenants, project: str) -> None:
    other = "00000000-0000-0000-0000-0000000000aa"
    await tenants.provision(other)
    database = Database(tenants, total=1)
    try:
        for _ in range(3):
            assert await rows(database, project, "SELECT 1 AS v") == [{"v": 1}]
            assert await rows(database, other, "SELECT current_user::text AS v") == [{"v": schema_of(other)}]
        assert repr(database._connections) == "<Connections 0 in use, 1 idle, 0 waiting>"
    finally:
        await database.close()
        await tenants.drop(other)


async def test_a_terminated_connection_is_replaced(database: Database, project: str, tenants: Tenants) -> None:
    await rows(database, project, "SELECT 1")
    (session,) = [place.connection for place in database._connections._idle]
    assert isinstance(session, Session)
    async with await psycopg.AsyncConnection.connect(tenants._admin_url, autocommit=True) as admin:
        await admin.execute(
            "SELECT pg_terminate_backend(pid, 5000) FROM pg_stat_activity WHERE usename = %s", [schema_of(project)]
        )
    deadline = time.monotonic() + 10
    while session.alive:
        assert time.monotonic() < deadline
        await asyncio.sleep(0)
    assert await rows(database, project, "SELECT 1 AS one") == [{"one": 1}]


async def test_a_dropped_project_is_unavailable_without_internals(tenants: Tenants, database: Database) -> None:
    gone = "00000000-0000-0000-0000-0000000000bb"
    with pytest.raises(HostError) as caught:
        await database.query(gone, "SELECT 1", (), timeout_ms=5_000)
    assert caught.value.code == "unavailable"
    assert schema_of(gone) not in caught.value.message


def test_the_session_settings_outlast_every_tier() -> None:
    assert database_module.SESSION["statement_timeout"] == "65s"
