"""Changes of rows as events: what is told of each, in which order, and what no event can hold."""

from psycopg import AsyncConnection

from server.cdc.position import parse_position
from server.cdc.relay import Relay
from server.events.envelope import MAX_EVENT_BYTES
from server.postgres.tenants import Tenants, schema_of
from tests.fix_cdc import Stored, change_of, old_of, run


class TestRows:
    async def test_they_become_events_in_their_order(
        self, relay: Relay, stored: Stored, person: AsyncConnection, project: str
    ) -> None:
        await run(
            person,
            "CREATE TABLE orders (id int PRIMARY KEY, amount numeric, note text)",
            "INSERT INTO orders VALUES (1, 50, 'a'), (2, 100.01, NULL)",
            "UPDATE orders SET amount = 'NaN' WHERE id = 2",
            "DELETE FROM orders WHERE id = 1",
            "TRUNCATE orders",
        )
        events = await stored.of(project, 5)
        assert [(event.type, event.data.text) for event in events] == [
            ("cdc.INSERT.orders", '{"id":1,"amount":50,"note":"a"}'),
            ("cdc.INSERT.orders", '{"id":2,"amount":100.01,"note":null}'),
            ("cdc.UPDATE.orders", '{"id":2,"amount":"NaN","note":null}'),
            ("cdc.DELETE.orders", '{"id":1,"amount":50,"note":"a"}'),
            ("cdc.TRUNCATE.orders", "null"),
        ]
        changes = [change_of(event) for event in events]
        assert [change.op for change in changes] == ["INSERT", "INSERT", "UPDATE", "DELETE", "TRUNCATE"]
        insert, _, update, delete, _ = changes
        assert (insert.schema, insert.table, insert.old) == (schema_of(project), "orders", None)
        assert old_of(update) == {"id": 2, "amount": 100.01, "note": None}
        assert update.changed == ("amount",)
        assert old_of(delete) == events[3].data.value
        assert not any(change.unavailable for change in changes)
        times = [event.time for event in events]
        assert times == sorted(times)
        assert len({event.id for event in events}) == 5

    async def test_values_are_typed_as_in_answers_to_sql(
        self, relay: Relay, stored: Stored, person: AsyncConnection, project: str
    ) -> None:
        await run(
            person,
            "CREATE DOMAIN cents AS bigint CHECK (VALUE >= 0)",
            "CREATE DOMAIN price AS cents",
            "CREATE TYPE mood AS ENUM ('sad', 'ok')",
            "CREATE TYPE pair AS (a int, b text)",
            """CREATE TABLE t (
                i2 int2, i4 int4, i8 int8, big int8, n numeric, exact numeric, f8 float8, inf float8, yes bool, no bool,
                t text, v varchar(9), c char(3), ts timestamptz, plain timestamp, d date, iv interval, u uuid,
                j json, jb jsonb, b bytea, ia int[], ta text[], nested int[], na numeric[], ja jsonb[], r int4range,
                m mood, p pair, dom price, ip inet, gone int, stored int GENERATED ALWAYS AS (i4 * 2) STORED)""",
            "ALTER TABLE t DROP COLUMN gone",
            r"""INSERT INTO t VALUES (
                -1, 2, 3, 9007199254740993, 0.10, 12345678901234567890.5, 0.1, '-Infinity', true, false,
                E'a"\n\u00fc', 'v', 'c', '2026-01-31 10:00:00.5+01', '2026-01-31 09:00', '2026-01-31', '1 day 02:00',
                '00000000-0000-0000-0000-000000000001', '{"a": 1.0,  "a": 2}', '{"b": [1, null]}', '\xdead',
                '{1,NULL,3}', '{"a,b",NULL,"\"q\""}', '{{1,2},{3,4}}', '{1.5,NaN}', ARRAY['{"x": 1}'::jsonb],
                '[1,5)', 'ok', '(1,"x y")', 5, '10.0.0.1')""",
        )
        (event,) = await stored.of(project, 1)
        assert event.data.value == {
            "i2": -1, "i4": 2, "i8": 3, "big": "9007199254740993", "n": 0.10, "exact": "12345678901234567890.5",
            "f8": 0.1, "inf": "-Infinity", "yes": True, "no": False, "t": 'a"\nü', "v": "v", "c": "c  ",
            "ts": "2026-01-31T09:00:00.5+00:00", "plain": "2026-01-31T09:00:00", "d": "2026-01-31",
            "iv": "1 day 02:00:00", "u": "00000000-0000-0000-0000-000000000001", "j": {"a": 2}, "jb": {"b": [1, None]},
            "b": "\\xdead", "ia": [1, None, 3], "ta": ["a,b", None, '"q"'], "nested": [[1, 2], [3, 4]],
            "na": [1.5, "NaN"], "ja": [{"x": 1}], "r": "[1,5)", "m": "ok", "p": '(1,"x y")', "dom": 5,
            "ip": "10.0.0.1", "stored": 4,
        }  # fmt: skip
        assert '"n":0.10' in event.data.text, "the digits are kept"
        assert '"j":{"a": 1.0,  "a": 2}' in event.data.text, "JSON is passed on as it is"

    async def test_a_value_stored_out_of_line_is_there_though_it_was_not_changed(
        self, relay: Relay, stored: Stored, person: AsyncConnection, project: str
    ) -> None:
        await run(
            person,
            "CREATE TABLE t (id int, big text, n int)",
            "ALTER TABLE t ALTER big SET STORAGE EXTERNAL",
            "INSERT INTO t VALUES (1, repeat('x', 50000), 0)",
            "UPDATE t SET n = 1",
            "UPDATE t SET big = NULL",
        )
        _, update, null = await stored.of(project, 3)
        assert update.data.value == {"id": 1, "big": "x" * 50_000, "n": 1}
        assert (change_of(update).changed, change_of(update).unavailable) == (("n",), ())
        assert null.data.value == {"id": 1, "big": None, "n": 1}
        assert change_of(null).changed == ("big",)

    async def test_what_is_too_large_for_an_event_is_left_out_and_named(
        self, relay: Relay, stored: Stored, person: AsyncConnection, project: str
    ) -> None:
        await run(
            person,
            "CREATE TABLE t (id int, small text, middle text, big text)",
            "INSERT INTO t VALUES (1, 's', repeat('m', 400000), repeat('b', 900000))",
            "INSERT INTO t VALUES (2, 's', repeat('m', 400000), repeat('b', 20000000))",
            "UPDATE t SET small = 't' WHERE id = 2",
            "UPDATE t SET big = repeat('c', 20000000) WHERE id = 2",
            "DELETE FROM t WHERE id = 2",
            "INSERT INTO t VALUES (3, 's', repeat(E'\\x01', 300000), 'escaped, it is six times as long')",
        )
        events = await stored.of(project, 6)
        changes = [change_of(event) for event in events]
        assert [change.unavailable for change in changes] == [("big",)] * 5 + [("middle",)]
        assert events[0].data.value == {"id": 1, "small": "s", "middle": "m" * 400_000}
        assert events[1].data.value == {"id": 2, "small": "s", "middle": "m" * 400_000}
        assert changes[2].changed == ("small",)
        assert changes[3].changed == ("big",)
        assert events[4].data.value == {"id": 2, "small": "t", "middle": "m" * 400_000}
        assert all(len(body) <= MAX_EVENT_BYTES for body in stored.bodies)

    async def test_json_that_events_cannot_hold_is_left_out_and_named(
        self, relay: Relay, stored: Stored, person: AsyncConnection, project: str
    ) -> None:
        await run(
            person,
            "CREATE TABLE t (id int, j jsonb)",
            "INSERT INTO t VALUES (1, (repeat('[', 62) || repeat(']', 62))::jsonb)",
            "INSERT INTO t VALUES (2, (repeat('[', 63) || repeat(']', 63))::jsonb)",
            "INSERT INTO t VALUES (3, ('1' || repeat('0', 5000))::jsonb)",
            "INSERT INTO t VALUES (4, ('[' || repeat('1,', 100000) || '1]')::jsonb)",
        )
        events = await stored.of(project, 4)
        unavailable = [change_of(event).unavailable for event in events]
        assert unavailable == [(), ("j",), ("j",), ("j",)]

    async def test_what_is_rolled_back_is_no_event(
        self, relay: Relay, stored: Stored, person: AsyncConnection, project: str
    ) -> None:
        await run(
            person,
            "CREATE TABLE t (id int)",
            "BEGIN",
            "INSERT INTO t VALUES (1)",
            "ROLLBACK",
            "BEGIN",
            "INSERT INTO t VALUES (2)",
            "SAVEPOINT s",
            "INSERT INTO t VALUES (3)",
            "ROLLBACK TO s",
            "INSERT INTO t VALUES (4)",
            "COMMIT",
        )
        assert [event.data.value["id"] for event in await stored.of(project, 2)] == [2, 4]

    async def test_transactions_come_in_the_order_of_their_commits(
        self, relay: Relay, stored: Stored, person: AsyncConnection, project: str, tenants: Tenants
    ) -> None:
        await run(person, "CREATE TABLE t (id int)", "BEGIN", "INSERT INTO t VALUES (1)")
        async with await AsyncConnection.connect(tenants.psql_url(project), autocommit=True) as other:
            await run(other, "INSERT INTO t VALUES (2)")
        await run(person, "INSERT INTO t VALUES (3)", "COMMIT")
        assert [event.data.value["id"] for event in await stored.of(project, 3)] == [2, 1, 3]

    async def test_many_rows_of_one_transaction(
        self, relay: Relay, stored: Stored, person: AsyncConnection, project: str
    ) -> None:
        await run(person, "CREATE TABLE t (id int)", "INSERT INTO t SELECT generate_series(1, 5000)")
        events = await stored.of(project, 5000, within_s=60)
        assert [event.data.value["id"] for event in events] == list(range(1, 5001))
        assert len({event.id for event in events}) == 5000
        positions = [parse_position(headers["Atlas-Cdc"]) for headers in stored.headers]
        assert [position and position.change for position in positions] == list(range(1, 5001))
