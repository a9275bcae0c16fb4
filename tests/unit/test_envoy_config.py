"""The rendered Envoy configuration. Envoy itself validates it in tests/integration/test_stack_envoy.py."""

from pathlib import Path

import pytest

from server.stack.envoy import LOCAL_REPLIES, Front, descriptors, render


@pytest.fixture
def front() -> Front:
    return Front(
        host="127.0.0.1",
        port=3000,
        api_sockets=[Path('/a "quoted": path/0.sock'), Path("/b/1.sock")],
        admin_socket=Path("/b/admin.sock"),
        access_log=Path("/b/access.log"),
        descriptors=descriptors(),
    )


def test_every_placeholder_is_filled_and_values_are_quoted(front: Front) -> None:
    text = render(front)
    assert "${" not in text
    assert r'"/a \"quoted\": path/0.sock"' in text


@pytest.mark.parametrize(
    "line",
    [
        "reject_unknown_method: true",
        "reject_binding_body_field_collisions: true",
        "max_request_body_size: 6291456",
        "path_with_escaped_slashes_action: KEEP_UNCHANGED",
        "use_remote_address: true",
        "preserve_proto_field_names: true",
    ],
)
def test_what_security_and_the_contract_rest_on(front: Front, line: str) -> None:
    assert line in render(front)


def test_the_limit_of_a_413_is_said_in_both_units() -> None:
    assert LOCAL_REPLIES[413] == ("invalid_argument", "The request body is larger than 6 MiB (6291456 bytes)")
