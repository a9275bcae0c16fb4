"""The specification's commands, word for word (they lie beside this file), against the real stack behind Envoy."""

from pathlib import Path
from typing import Final

import psycopg

from server.stack import bootstrap, postgres
from tests.fix_clients import Rest, RunningStack, Shell
from tests.fix_up import Stack

COMMANDS: Final = Path(__file__).parent / "specification"


def command(name: str) -> str:
    return (COMMANDS / f"{name}.sh").read_text()


def test_get_user_orders(running_stack: RunningStack, shell: Shell) -> None:
    with psycopg.connect(running_stack.env["TENANT_DATABASE_URL"]) as database:
        database.execute("CREATE TABLE IF NOT EXISTS orders (id bigint PRIMARY KEY, user_id text, amount numeric)")
        database.execute("TRUNCATE orders")
        database.execute("INSERT INTO orders VALUES (1, 'abc-123', 100.01), (2, 'someone-else', 5), (3, 'abc-123', 7)")

    deployed = shell.json(command("deploy-quickjs"))
    assert deployed["slug"] == "get-user-orders"
    assert deployed["runtime"] == "quickjs"
    assert deployed["entrypoint"] == "get-user-orders.js"
    assert deployed["project_id"] == running_stack.env["PROJECT_ID"]

    answer = shell.json(command("invoke"))
    assert sorted(row["id"] for row in answer["result"]["orders"]) == [1, 3]
    assert {"id": 1, "user_id": "abc-123", "amount": 100.01} in answer["result"]["orders"]
    assert answer["metrics"]["wall_ms"] > 0
    assert answer["metrics"]["memory_bytes"] > 10_000
    assert "fuel_consumed" not in answer["metrics"]


def test_hash_calculator(rest: Rest, shell: Shell) -> None:
    deployed = shell.json(command("deploy-wasm"))
    assert (deployed["slug"], deployed["runtime"], deployed["entrypoint"]) == ("hash-calc", "wasm", "hash-calc.wasm")
    invoke = (
        command("invoke").replace("get-user-orders", "hash-calc").replace('{"user_id": "abc-123"}', '{"data": "abc"}')
    )
    first, second = shell.json(invoke), shell.json(invoke)
    assert first["result"] == {"hash": (97 * 31 + 98) * 31 + 99}
    assert first["metrics"]["fuel_consumed"] == second["metrics"]["fuel_consumed"] > 0
    assert first["metrics"]["memory_bytes"] > 0
    download = rest.manage("GET", f"/functions/{deployed['id']}/versions/{deployed['version']}/download?form=artifact")
    assert download.content.startswith(b"\0asm\1\0\0\0")


def test_rows_written_by_psql_with_the_sourced_environment_are_read_by_the_function(shell: Shell) -> None:
    shell.run(
        'psql -q -v ON_ERROR_STOP=1 "$TENANT_DATABASE_URL" -c "DROP TABLE IF EXISTS orders" '
        '-c "CREATE TABLE orders (id int, user_id text)" -c "INSERT INTO orders VALUES (9, \'abc-123\')"'
    )
    shell.json(command("deploy-quickjs"))
    assert shell.json(command("invoke"))["result"] == {"orders": [{"id": 9, "user_id": "abc-123"}]}


def test_the_registry_lists_and_deletes_as_documented(rest: Rest, shell: Shell) -> None:
    function_id = shell.json(command("deploy-quickjs"))["id"]
    functions = f"/v1/projects/{rest.project_id}/functions"
    listed = rest.request("GET", functions, key=rest.service_key).json()["functions"]
    assert function_id in [item["id"] for item in listed]
    assert rest.request("DELETE", f"{functions}/{function_id}", key=rest.service_key).status_code == 200
    gone = rest.invoke("get-user-orders", {})
    assert gone.status_code == 404
    assert gone.json()["error"]["code"] == "not_found"
    assert gone.json()["error"]["message"].startswith("JS source not found")


def test_triggers(running_stack: Stack, rest: Rest, shell: Shell) -> None:
    function_id = shell.json(command("deploy-quickjs"))["id"]
    with psycopg.connect(postgres.url(running_stack.run / "pg", bootstrap.CONTROL)) as control:
        ((workflow_id,),) = control.execute(
            "INSERT INTO workflow_definitions (project_id, name, definition)"
            """ VALUES (%s, 'Hourly', '{"nodes": [], "edges": []}') RETURNING id""",
            [rest.project_id],
        ).fetchall()
    ids = f"FUNCTION_ID={function_id}; WORKFLOW_ID={workflow_id}\n"

    orders = shell.json(ids + command("create-cdc-trigger"))
    assert orders["event_type"] == "cdc.INSERT.orders"
    assert (orders["target_type"], orders["function_id"], orders["workflow_id"]) == ("function", function_id, None)
    assert orders["conditions"] == [{"field": "amount", "op": "gt", "value": 100}]
    assert (orders["enabled"], orders["config"], orders["project_id"]) == (True, {}, rest.project_id)

    hourly = shell.json(ids + command("create-cron-trigger"))
    assert (hourly["event_type"], hourly["config"]) == ("cron", {"schedule": "0 * * * *"})
    assert (hourly["target_type"], hourly["workflow_id"], hourly["function_id"]) == ("workflow", str(workflow_id), None)

    assert shell.json(command("list-triggers"))["triggers"][:2] == [hourly, orders]
    for trigger in (orders, hourly):
        assert rest.manage("DELETE", f"/triggers/{trigger['id']}").status_code == 200
