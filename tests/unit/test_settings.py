"""The environment is read once, and everything wrong with it is said at once, without showing secrets."""

import dataclasses
from pathlib import Path

import pytest

from server.settings import Settings, SettingsError, load, variable


def test_defaults_are_the_specifications() -> None:
    settings = load({})
    assert settings == Settings()
    assert settings.functions_dir == Path("functions-data")
    assert settings.functions_max_execution_ms == 10_000
    assert settings.functions_max_memory_mb == 128
    assert settings.port == 3000


def test_values_are_read_by_their_type_and_empty_means_unset() -> None:
    settings = load({"ATLAS_PORT": " 3055 ", "ATLAS_UNSAFE_SANDBOX": "true", "ATLAS_RUN_DIR": "/x", "ATLAS_HOST": ""})
    assert (settings.port, settings.unsafe_sandbox, settings.run_dir) == (3055, True, Path("/x"))
    assert settings.host == "127.0.0.1"
    ranges = load({"ATLAS_FETCH_ALLOW_CIDRS": "10.0.0.0/8, fd12::/16"}).fetch_allow_cidrs
    assert [str(item) for item in ranges] == ["10.0.0.0/8", "fd12::/16"]


def test_every_bad_variable_is_named_with_value_and_rule() -> None:
    bad = {
        "ATLAS_PORT": "http",
        "ATLAS_FUNCTIONS_MAX_MEMORY_MB": "1",
        "ATLAS_UNSAFE_SANDBOX": "maybe",
        "ATLAS_LOG_LEVEL": "loud",
        "ATLAS_STORAGE_BACKEND": "tape",
        "ATLAS_ADMIN_KEY": "hunter2",
        "ATLAS_MASTER_KEY": "not-hex",
        "ATLAS_FETCH_ALLOW_CIDRS": "10.0.0.1/8",
    }
    with pytest.raises(SettingsError) as caught:
        load(bad)
    lines = str(caught.value).splitlines()
    assert {line.split("=")[0].split(":")[0] for line in lines} == set(bad)
    assert "'http': must be a whole number" in str(caught.value)
    assert "between 8 and 4096" in str(caught.value)
    assert "hunter2" not in str(caught.value)
    assert "not-hex" not in str(caught.value)


def test_every_variable_says_what_it_is() -> None:
    for item in dataclasses.fields(Settings):
        assert item.metadata["doc"], variable(item.name)
