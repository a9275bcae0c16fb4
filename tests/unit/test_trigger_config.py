"""What the config of triggers on changes and of auth triggers may be, and which events they answer then."""

import dataclasses
from datetime import UTC, datetime
from typing import Any
from uuid import uuid4

import orjson
import pytest

from server.errors import InvalidArgument
from server.events.envelope import Change, Event, decode, encode
from server.events.json_text import read
from server.events.types import escape
from server.triggers.cache import Armed, ProjectTriggers
from server.triggers.configuration import require_config
from server.triggers.definition import Trigger
from server.triggers.rows import trigger_of
from server.triggers.view import envelope_of

PROJECT = str(uuid4())
NOW = datetime(2026, 1, 31, tzinfo=UTC)


def trigger(event_type: str, config: dict[str, Any], conditions: list[Any] | None = None) -> Trigger:
    require_config(event_type, config)
    row = {
        "id": str(uuid4()),
        "project_id": PROJECT,
        "event_type": event_type,
        "config": orjson.dumps(config).decode(),
        "target_type": "function",
        "function_id": str(uuid4()),
        "workflow_id": None,
        "conditions": orjson.dumps(conditions or []).decode(),
        "enabled": True,
        "paused": False,
        "retry": "{}",
        "order_key": None,
        "concurrency": None,
        **dict.fromkeys(("since", "created_at", "updated_at"), NOW),
    }
    return trigger_of(row)


def change(op: str, data: Any, *, table: str = "orders", old: Any = None, changed: tuple[str, ...] = ()) -> Event:
    return Event(
        id="c1",
        type=f"cdc.{op}.{escape(table)}",
        project_id=PROJECT,
        time=NOW,
        source="postgres",
        data=read(orjson.dumps(data)),
        change=Change(
            op=op,
            schema="proj_x",
            table=table,
            old=None if old is None else read(orjson.dumps(old)),
            changed=changed,
        ),
    )


def fires(asked: Trigger, event: Event) -> bool:
    triggers = ProjectTriggers()
    triggers.put(Armed(asked, "f"))
    return bool(triggers.match(envelope_of(event)))


def refused(event_type: str, config: dict[str, Any]) -> InvalidArgument:
    with pytest.raises(InvalidArgument) as caught:
        require_config(event_type, config)
    return caught.value


class TestChanges:
    def test_operations(self) -> None:
        asked = trigger("cdc.*.orders", {"operations": ["INSERT", "DELETE"]})
        assert [fires(asked, change(op, {})) for op in ("INSERT", "UPDATE", "DELETE", "TRUNCATE")] == [
            *(True, False, True, False)
        ]

    def test_columns_are_of_updates(self) -> None:
        asked = trigger("cdc.>", {"columns": ["status", "total"]})
        assert fires(asked, change("UPDATE", {"status": 2, "note": 1}, changed=("status",)))
        assert not fires(asked, change("UPDATE", {"status": 2, "note": 1}, changed=("note",)))
        assert not fires(asked, change("UPDATE", {"status": 2}, old={"status": 2}))
        for op in ("INSERT", "DELETE", "TRUNCATE"):
            assert fires(asked, change(op, {"status": 2}))

    def test_both_and_conditions(self) -> None:
        asked = trigger(
            "cdc.*.orders",
            {"operations": ["UPDATE"], "columns": ["total"]},
            [{"field": "total", "op": "gt", "value": 100}],
        )
        assert fires(asked, change("UPDATE", {"total": 150}, changed=("total",)))
        assert not fires(asked, change("UPDATE", {"total": 50}, changed=("total",)))
        assert not fires(asked, change("UPDATE", {"total": 150}, changed=("note",)))
        assert not fires(asked, change("INSERT", {"total": 150}))

    @pytest.mark.parametrize("name", ["a.b", "$old", "back\\slash", "größe", "two words", "a\nb"])
    def test_odd_names(self, name: str) -> None:
        asked = trigger("cdc.UPDATE.orders", {"columns": [name]})
        assert fires(asked, change("UPDATE", {name: 1}, old={name: 2}, changed=(name,) if "\n" not in name else ()))
        assert not fires(asked, change("UPDATE", {name: 1}, old={name: 1}))

    @pytest.mark.parametrize(
        ("event_type", "config", "field"),
        [
            ("cdc.>", {"operations": []}, "config.operations"),
            ("cdc.>", {"operations": "INSERT"}, "config.operations"),
            ("cdc.>", {"operations": ["MERGE"]}, "config.operations[0]"),
            ("cdc.INSERT.orders", {"operations": ["INSERT", "UPDATE"]}, "config.operations[1]"),
            ("cdc.>", {"columns": [1]}, "config.columns"),
            ("cdc.>", {"columns": [""]}, "config.columns[0]"),
            ("cdc.>", {"columns": ["x" * 64]}, "config.columns[0]"),
            ("cdc.>", {"columns": ["a"] * 65}, "config.columns"),
            ("cdc.>", {"columns": ["a\0"]}, "config.columns[0]"),
            ("cdc.INSERT.orders", {"columns": ["a"]}, "config.columns"),
            ("cdc.>", {"operations": ["DELETE"], "columns": ["a"]}, "config.columns"),
            ("cdc.>", {"table": "users"}, "config.table"),
            ("order.paid", {"columns": ["a"]}, "config.columns"),
        ],
    )
    def test_what_is_refused(self, event_type: str, config: dict[str, Any], field: str) -> None:
        assert refused(event_type, config).field == field


USER = {"id": 7, "email": "ada@example.com", "created_at": "2026-01-31T09:00:00+00:00", "last_sign_in_at": None}


class TestUsers:
    def test_a_new_row_is_a_signup(self) -> None:
        asked = trigger("auth.signup", {"table": "users"})
        event = change("INSERT", USER, table="users")
        assert fires(asked, event)
        assert asked.bridge is not None
        seen = asked.bridge.event(event)
        assert seen is not None
        assert (seen.id, seen.type, seen.subject, seen.change) == ("c1", "auth.signup", "7", None)
        assert seen.data.value == {"user_id": "7", "email": "ada@example.com", "created_at": USER["created_at"]}
        assert decode(encode(seen)) == seen
        for other in (change("UPDATE", USER, table="users"), change("INSERT", USER, table="people")):
            assert not fires(asked, other)

    def test_a_changed_column_is_a_login(self) -> None:
        asked = trigger("auth.login", {"table": "users", "login_column": "seen at"})
        before = {"id": "u1", "seen at": None}
        after = {"id": "u1", "seen at": "2026-02-01T00:00:00+00:00"}
        event = change("UPDATE", after, table="users", old=before, changed=("seen at",))
        assert fires(asked, event)
        assert asked.bridge is not None
        assert envelope_of(asked.bridge.event(event) or event)["data"] == {
            "user_id": "u1",
            "logged_in_at": "2026-02-01T00:00:00+00:00",
        }
        for other in (
            change("UPDATE", after, table="users", old=after, changed=("email",)),
            change("UPDATE", before, table="users", old=after, changed=("seen at",)),
            change("INSERT", after, table="users"),
        ):
            assert not fires(asked, other)

    def test_other_names_of_columns(self) -> None:
        asked = trigger(
            "auth.signup", {"table": "Benutzer", "map": {"user_id": "nr", "email": "mail", "metadata": "m"}}
        )
        event = change("INSERT", {"nr": "x", "mail": "a@b", "m": {"n": 1}, "id": 3}, table="Benutzer")
        assert asked.bridge is not None
        assert (asked.bridge.event(event) or event).data.value == {"user_id": "x", "email": "a@b", "metadata": {"n": 1}}

    def test_conditions_are_on_what_is_seen(self) -> None:
        asked = trigger("auth.signup", {"table": "users"}, [{"field": "user_id", "op": "eq", "value": "7"}])
        assert fires(asked, change("INSERT", USER, table="users"))
        assert not fires(asked, change("INSERT", USER | {"id": 8}, table="users"))

    @pytest.mark.parametrize(
        "row", [None, [], "x", {}, {"id": None}, {"id": 1.5}, {"id": True}, {"id": ""}, {"id": {}}]
    )
    def test_a_row_without_a_user_is_none(self, row: Any) -> None:
        assert not fires(trigger("auth.signup", {"table": "users"}), change("INSERT", row, table="users"))

    def test_what_the_contract_has_no_place_for_is_left_out(self) -> None:
        asked = trigger("auth.signup", {"table": "users", "map": {"metadata": "m", "phone": "p"}})
        event = change("INSERT", {"id": "u\n1", "email": 1.5, "m": "text", "p": 4915}, table="users")
        assert asked.bridge is not None
        seen = asked.bridge.event(event)
        assert seen is not None
        assert (seen.data.value, seen.subject) == ({"user_id": "u\n1", "phone": "4915"}, None)
        decode(encode(seen))

    def test_a_table_stands_for_what_is_published(self) -> None:
        published = dataclasses.replace(change("INSERT", {"user_id": "u1"}), type="auth.signup", change=None)
        assert not fires(trigger("auth.signup", {"table": "users"}), published)
        assert fires(trigger("auth.signup", {}), published)

    def test_another_projects_rows_are_not_seen(self) -> None:
        event = dataclasses.replace(change("INSERT", USER, table="users"), project_id=str(uuid4()))
        assert not fires(trigger("auth.signup", {"table": "users"}), event)

    @pytest.mark.parametrize(
        ("event_type", "config", "field"),
        [
            ("auth.>", {"table": "users"}, "config.table"),
            ("auth.deleted", {"table": "users"}, "config.table"),
            ("auth.signup", {"table": ""}, "config.table"),
            ("auth.signup", {"table": 1}, "config.table"),
            ("auth.signup", {"map": {}}, "config.table"),
            ("auth.signup", {"table": "users", "login_column": "x"}, "config.login_column"),
            ("auth.signup", {"table": "users", "map": []}, "config.map"),
            ("auth.signup", {"table": "users", "map": {"name": "n"}}, "config.map.name"),
            ("auth.login", {"table": "users", "map": {"user_id": 1}}, "config.map.user_id"),
            ("auth.login", {"table": "users", "login_column": "x" * 64}, "config.login_column"),
            ("auth.signup", {"columns": ["a"]}, "config.columns"),
        ],
    )
    def test_what_is_refused(self, event_type: str, config: dict[str, Any], field: str) -> None:
        assert refused(event_type, config).field == field
