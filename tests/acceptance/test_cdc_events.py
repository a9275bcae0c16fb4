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
    subscription = await jetstream.subscribe(f"{stream.PREFIX}cdc.INSERT.cdc%20payments", ordered_consumer=True)
    events: list[Event] = []

    async def four() -> bool:
        message: Any = await subscription.next_msg(timeout=10)
        events.append(stream.event_of(message.subject, message.data))
        return len(events) == 4

    await eventually(four)
    await subscription.unsubscribe()
    assert [event.data.text for event in events] == [
        *('{"amount":50}', '{"amount":100}', '{"amount":100.01}', '{"amount":"NaN"}')
    ]
    assert {event.project_id for event in events} == {rest.project_id}


def test_operators_see_the_relay(rest: Rest) -> None:
    answer = rest.request("GET", "/metrics", key=rest.admin_key)
    assert 'atlas_cdc_slot{state="reserved"} 1.0' in answer.text
    assert "atlas_cdc_lag_bytes" in answer.text
