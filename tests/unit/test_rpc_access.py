"""Who may call what: a row for every method, and the same rules whatever the transport."""

from typing import Final

import pytest
from google.protobuf.descriptor_pb2 import FileDescriptorSet

from atlas.functions.v1.functions_service_pb2 import ListFunctionsRequest
from server.errors import AtlasError, PermissionDenied, Unauthenticated
from server.projects import Principal
from server.rpc.access import METHODS, Access, Gate, key_of, principal
from server.rpc.boundary import project_ids_of
from tests.unit.test_import_arrow import ROOT

ADMIN: Final = "admin-key-of-at-least-32-characters"
OURS: Final = "5f0f9f0e-0000-4000-8000-000000000001"
THEIRS: Final = "5f0f9f0e-0000-4000-8000-000000000002"


class Keys:
    async def authenticate(self, secret: str) -> Principal | None:
        if secret in ("service", "anon"):
            return Principal(project_id=OURS, role=secret, tier=None, key_id="k")  # type: ignore[arg-type]
        return None


GATE = Gate(Keys(), ADMIN)


def test_every_method_of_every_service_has_a_row_and_no_row_is_left_over() -> None:
    described = FileDescriptorSet.FromString((ROOT / "gen" / "descriptors.binpb").read_bytes())
    methods = {
        f"/{file.package}.{service.name}/{method.name}"
        for file in described.file
        for service in file.service
        for method in service.method
    }
    assert methods == set(METHODS)


@pytest.mark.parametrize("access", [Access.ANY_KEY, Access.SERVICE, Access.ADMIN])
@pytest.mark.parametrize("headers", [{}, {"authorization": "Basic abc"}, {"authorization": "Bearer "}, {"apikey": ""}])
async def test_no_key_is_unauthenticated(access: Access, headers: dict[str, str]) -> None:
    with pytest.raises(Unauthenticated):
        await GATE.admit(access, headers, [OURS])


@pytest.mark.parametrize("access", [Access.ANY_KEY, Access.SERVICE, Access.ADMIN])
async def test_an_unknown_key_is_unauthenticated(access: Access) -> None:
    with pytest.raises(Unauthenticated, match="unknown or revoked"):
        await GATE.admit(access, {"apikey": "nobody's"}, [OURS])


REFUSED = [
    (Access.SERVICE, "anon", OURS),
    (Access.SERVICE, ADMIN, OURS),
    (Access.ANY_KEY, ADMIN, None),
    (Access.ADMIN, "service", None),
    (Access.ADMIN, "anon", None),
    (Access.SERVICE, "service", THEIRS),
    (Access.SERVICE, "service", ""),
    (Access.SERVICE, "service", "not-a-uuid"),
]


@pytest.mark.parametrize(("access", "key", "project_id"), REFUSED)
async def test_a_wrong_role_or_project_is_denied(access: Access, key: str, project_id: str | None) -> None:
    named = [] if project_id is None else [project_id]
    with pytest.raises(PermissionDenied):
        await GATE.admit(access, {"authorization": f"Bearer {key}"}, named)


ADMITTED = [
    (Access.ANY_KEY, "anon", None),
    (Access.ANY_KEY, "service", None),
    (Access.SERVICE, "service", OURS),
    (Access.SERVICE, "service", OURS.upper()),
]


@pytest.mark.parametrize(("access", "key", "project_id"), ADMITTED)
async def test_the_right_key_is_admitted_and_known(access: Access, key: str, project_id: str | None) -> None:
    named = [] if project_id is None else [project_id]
    await GATE.admit(access, {"authorization": f"bearer {key}"}, named)
    assert (principal().project_id, principal().role) == (OURS, key)


async def test_admin_and_public_need_no_project() -> None:
    await GATE.admit(Access.ADMIN, {"apikey": ADMIN}, [])
    await GATE.admit(Access.PUBLIC, {}, [])


def test_apikey_wins_so_that_authorization_may_belong_to_the_application() -> None:
    assert key_of({"apikey": "ours", "authorization": "Bearer theirs"}) == "ours"


async def test_a_key_with_odd_characters_is_unknown_and_not_a_fault() -> None:
    with pytest.raises(AtlasError) as caught:
        await GATE.admit(Access.ADMIN, {"apikey": "ключ\x00"}, [])
    assert isinstance(caught.value, Unauthenticated)


async def test_one_wrong_project_among_those_named_is_enough() -> None:
    with pytest.raises(PermissionDenied):
        await GATE.admit(Access.SERVICE, {"apikey": "service"}, [OURS, THEIRS])


def test_project_ids_are_found_in_message_and_query() -> None:
    request = ListFunctionsRequest(project_id=OURS)
    assert project_ids_of(request, {"x-envoy-original-path": f"/v1/x?projectId={THEIRS}&page_size=1"}) == [OURS, THEIRS]
    assert project_ids_of(object(), {}) == []
