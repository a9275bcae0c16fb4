"""One plugin file per outside thing the tests use."""

pytest_plugins = [
    "tests.fix_clients",
    "tests.fix_cli",
    "tests.fix_cli_events",
    "tests.fix_quickjs_child",
    "tests.fix_sandbox",
    "tests.fix_control",
    "tests.fix_wasm",
    "tests.fix_wasm_engine",
    "tests.fix_effects",
    "tests.fix_engines",
    "tests.fix_functions",
    "tests.fix_runs",
    "tests.fix_stack",
    "tests.fix_tenants",
    "tests.fix_triggers",
    "tests.fix_ledger",
    "tests.fix_dispatch",
    "tests.fix_up",
    "tests.fix_v8_child",
    "tests.fix_workflows",
]
