"""What the source of a function seems to lead to."""

import time

import pytest

from server.triggers.leads import MAX_LEADS, leads_of

SECONDS = 3.0
"""Of CPU time: far more than it takes, and far less than what is not linear would."""


@pytest.mark.parametrize(
    ("source", "found"),
    [
        (r"""atlas.events.publish("order.paid", x); tx . publish ( 'a.b' )""", ["order.paid", "a.b"]),
        (r"""publish(`a.b`); publish(`a.${b}`); publish(name); republish("c.d"); publish("a b")""", ["a.b"]),
        (r"""publish("cdc.INSERT.orders"); publish("cron")""", []),
        (r"""'INSERT INTO Orders (n) VALUES (1)'""", ["cdc.INSERT.orders"]),
        ('`insert\n  into proj_a."Or""ders"`', ["cdc.INSERT.Or%22ders"]),
        (r""" "insert into \"Big\" select 1" """, ["cdc.INSERT.Big"]),
        (r""" "UPDATE orders\nSET n = 1; update only b as x set n = 2; UPDATE c y SET n = 1" """, ["orders", "b", "c"]),
        ("ON CONFLICT DO UPDATE SET n = 1; update the page; my.update(x)", []),
        ("'delete from a'; `DELETE FROM ONLY b`", ["cdc.DELETE.a", "cdc.DELETE.b"]),
        ("'MERGE INTO m USING x'", ["cdc.INSERT.m", "cdc.UPDATE.m", "cdc.DELETE.m"]),
        ("'truncate table t'; truncate the text", ["cdc.TRUNCATE.t"]),
        ("'insert into größe values (1)'", ["cdc.INSERT.gr%C3%B6%C3%9Fe"]),
        ("`INSERT INTO ${table}`; 'insert into'; insertinto x", []),
        (
            "atlas.storage.put(b, p, x); atlas.storage.get(b, p); storage.delete(b, p)",
            ["storage.upload", "storage.delete"],
        ),
    ],
)
def test_what_is_written_out(source: str, found: list[str]) -> None:
    wanted = [each if "." in each else f"cdc.UPDATE.{each}" for each in found]
    assert list(leads_of(source.encode())) == wanted


def test_each_is_told_once_and_not_too_many() -> None:
    source = b"publish('a.b');" * 10 + b"".join(b"publish('a.n%d');" % number for number in range(100))
    found = leads_of(source)
    assert (len(found), found[:2]) == (MAX_LEADS, ("a.b", "a.n0"))


@pytest.mark.parametrize(
    "hostile",
    [
        *(b"insert into ", b"insert into a.", b'insert into "', b"update a as b ", b"publish(", b"storage.", b"\xff"),
        *(
            b"publish" + b" " * 900,
            b'insert into "' + b'"' * 900,
            b"update " + b" " * 64 + b"a" * 900,
            b"insert into \\",
        ),
    ],
)
def test_time_is_linear(hostile: bytes) -> None:
    source = (hostile * (1024 * 1024 // len(hostile)))[: 1024 * 1024]
    began_s = time.process_time()
    leads_of(source)
    assert time.process_time() - began_s < SECONDS
