"""Rows that a person writes with psql, as events of the running product."""

from typing import Any

from nats.js import JetStreamContext

from server.events import stream
from server.events.envelope import Event
from tests.fix_clients import Rest, Shell
from tests.fix_runs import eventually


async def test_rows_written_by_psql_are_events(rest: Rest, shell: Shell, jetstream: JetStreamContext) -> None:
    shell.run(
        'psql -q -v ON_ERROR_STOP=1 "$TENANT_DATABASE_URL" -c "DROP TABLE IF EXISTS \\"cdc payments\\""'
        ' -c "CREATE TABLE \\"cdc payments\\" (amount numeric)"'
        ' -c "INSERT INTO \\"cdc payments\\" VALUES (50), (100), (100.01), (\'NaN\')"'
    )
    events = await read(jetstream, "cdc.INSERT.cdc%20payments", 4)
    assert [event.data.text for event in events] == [
        *('{"amount":50}', '{"amount":100}', '{"amount":100.01}', '{"amount":"NaN"}')
    ]
    assert {event.project_id for event in events} == {rest.project_id}


async def test_rows_that_are_copied_as_pgbench_does_are_events(shell: Shell, jetstream: JetStreamContext) -> None:
    """In the transaction that emptied the table, and frozen: written many at a time, and visible to all at once."""
    shell.run(
        'printf "1\ta\n2\tb\n3\tc\n" | psql -q -v ON_ERROR_STOP=1 "$TENANT_DATABASE_URL"'
        ' -c "DROP TABLE IF EXISTS copied" -c "CREATE TABLE copied (id int, v text)"'
        " -c BEGIN -c 'TRUNCATE copied' -c '\\copy copied FROM stdin (FREEZE)' -c COMMIT"
        " -c 'UPDATE copied SET id = 4 WHERE id = 3'"
    )
    events = await read(jetstream, "cdc.*.copied", 5)
    assert [(event.type, event.data.text) for event in events] == [
        ("cdc.TRUNCATE.copied", "null"),
        ("cdc.INSERT.copied", '{"id":1,"v":"a"}'),
        ("cdc.INSERT.copied", '{"id":2,"v":"b"}'),
        ("cdc.INSERT.copied", '{"id":3,"v":"c"}'),
        ("cdc.UPDATE.copied", '{"id":4,"v":"c"}'),
    ]


async def read(jetstream: JetStreamContext, pattern: str, count: int) -> list[Event]:
    """The first so many events of these types."""
    subscription = await jetstream.subscribe(stream.subject_of(pattern), ordered_consumer=True)
    events: list[Event] = []

    async def enough() -> bool:
        message: Any = await subscription.next_msg(timeout=10)
        events.append(stream.event_of(message.subject, message.data))
        return len(events) == count

    await eventually(enough)
    await subscription.unsubscribe()
    return events


def test_operators_see_the_relay(rest: Rest) -> None:
    answer = rest.request("GET", "/metrics", key=rest.admin_key)
    assert 'atlas_cdc_slot{state="reserved"} 1.0' in answer.text
    assert "atlas_cdc_lag_bytes" in answer.text
