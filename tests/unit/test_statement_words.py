"""What a statement says of itself by its words."""

import pytest

from server.host.statement import changes_rows


@pytest.mark.parametrize(
    "sql",
    [
        "INSERT INTO t VALUES (1)",
        "  ;; -- first\n /* then /* nested */ */ update t SET n = 1",
        "Delete from t",
        "MERGE INTO t USING s ON true WHEN MATCHED THEN DELETE",
        "truncate t",
        "WITH a AS (INSERT INTO t VALUES (1) RETURNING *) SELECT * FROM a",
        "with a as (select 1) update t set n = 2",
    ],
)
def test_what_says_that_it_changes_rows(sql: str) -> None:
    assert changes_rows(sql)


@pytest.mark.parametrize(
    "sql",
    [
        "",
        "/* insert",
        "SELECT 1",
        "SELECT insert_one()",
        "WITH a AS (SELECT 1) SELECT * FROM a",
        "inserts",
        "insert_all()",
        *("VACUUM t", "CALL p()", "DO 'BEGIN INSERT INTO t VALUES (1); END'", "COMMIT", "BEGIN"),
        *(
            "CREATE INDEX CONCURRENTLY i ON t (n)",
            "CREATE TABLE u AS SELECT 1",
            "EXPLAIN ANALYZE INSERT INTO t VALUES (1)",
        ),
    ],
)
def test_what_does_not(sql: str) -> None:
    """Among it is all that needs a transaction of its own, or ends one."""
    assert not changes_rows(sql)
