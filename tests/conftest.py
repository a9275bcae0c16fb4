"""One plugin file per outside thing the tests use."""

from collections.abc import Generator
from typing import Any, Final

import pytest
from hypothesis import HealthCheck, settings

from server.fields import well_formed

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
    "tests.fix_cdc",
    "tests.fix_outbox",
    "tests.fix_storage",
    "tests.fix_tenants",
    "tests.fix_triggers",
    "tests.fix_ledger",
    "tests.fix_dispatch",
    "tests.fix_up",
    "tests.fix_v8_child",
    "tests.fix_workflows",
]

# No test is to fail because the machine is busy.
settings.register_profile("atlas", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("atlas")


NEAR: Final = ("unit", "fuzz", "escape", "contract", "integration", "fault", "acceptance")
"""Folders of tests, from those that take no time to those that start whole stacks and wait for them."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The longest files first: one that began last would run alone."""
    items.sort(key=lambda item: -NEAR.index(item.path.parent.name))


@pytest.hookimpl(wrapper=True)
def pytest_report_to_serializable() -> Generator[None, Any, Any]:
    """What tests log may hold lone surrogates, which cannot travel between the processes that share the tests."""
    return _sendable((yield))


def _sendable(value: Any) -> Any:
    if isinstance(value, str):
        return well_formed(value)
    if isinstance(value, dict):
        return {_sendable(name): _sendable(item) for name, item in value.items()}
    return [_sendable(item) for item in value] if isinstance(value, list | tuple) else value
