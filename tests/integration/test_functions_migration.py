"""Functions deployed before versions had configurations: they run on, and their history begins with what is active."""

import shutil
from pathlib import Path

import psycopg
import pytest

from server.errors import FailedPrecondition
from server.functions.artifacts import sha256_of
from server.functions.settings import NONE
from server.postgres.changes import Changes
from server.postgres.control import open_pool
from server.postgres.migrate import MIGRATIONS, migrate
from tests.fix_functions import start_node

PROJECT, FUNCTION = "11111111-0000-4000-8000-000000000000", "22222222-0000-4000-8000-000000000000"
CODE = b"export default () => 1"


async def test_a_function_from_before_goes_on(fresh_database: str, tmp_path: Path) -> None:
    before = tmp_path / "before"
    before.mkdir()
    for path in sorted(MIGRATIONS.glob("*.sql"))[:2]:
        shutil.copy(path, before)
    await migrate(fresh_database, before)
    with psycopg.connect(fresh_database) as conn:
        conn.execute("INSERT INTO projects (id, name, schema) VALUES (%s, 'Shop', 's')", [PROJECT])
        conn.execute(
            "INSERT INTO artifacts (project_id, sha256, data) VALUES (%s, %s, %b)", [PROJECT, sha256_of(CODE), CODE]
        )
        conn.execute(
            "INSERT INTO functions (id, project_id, name, slug, active_version, last_version)"
            " VALUES (%s, %s, 'Hello', 'hello', 1, 2)",
            [FUNCTION, PROJECT],
        )
        for version in (1, 2):
            conn.execute(
                "INSERT INTO function_versions (function_id, project_id, version, runtime, language, entrypoint,"
                " isolation, sha256, source_sha256, source_bytes)"
                " VALUES (%s, %s, %s, 'quickjs', 'javascript', 'hello.js', 'warm', %s, %s, 22)",
                [FUNCTION, PROJECT, version, sha256_of(CODE), sha256_of(CODE)],
            )
    await migrate(fresh_database)
    changes = Changes(fresh_database)
    async with open_pool(fresh_database, max_size=2) as pool:
        node = await start_node(PROJECT, pool, changes, tmp_path / "node")
        resolved = await node.catalog.resolve(PROJECT, "hello")
        assert (resolved.program.code, resolved.env_json, resolved.settings) == (CODE, b"{}", NONE)
        with pytest.raises(FailedPrecondition):
            await node.lifecycle.rollback(PROJECT, FUNCTION)
        assert (await node.deploy("export default () => 3")).version == 3
        assert (await node.lifecycle.rollback(PROJECT, FUNCTION)).version == 1
        await changes.close()
