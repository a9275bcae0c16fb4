"""Modules that are deployed as bytes are hostile: reading who made one gives a hash or None, and nothing else."""

from hypothesis import given
from hypothesis import strategies as st

from engines.wasm import binary
from engines.wasm.artifact import bytecode_of, engine_of, module_of, source_of
from engines.wasm.binary import Malformed
from tests.unit.test_wasm_artifact import IMAGE

_OURS = module_of(b"bytecode " * 20, IMAGE, source=b"source")
_SECTIONS = st.lists(st.tuples(st.integers(0, 255), st.binary(max_size=80)), max_size=30).map(
    lambda sections: (
        binary.PREAMBLE + b"".join(bytes([number]) + binary.vector(content) for number, content in sections)
    )
)
_CUSTOM = st.binary(max_size=80).map(lambda content: binary.PREAMBLE + binary.custom("atlas", content))


def _check(wasm: bytes) -> None:
    for found in (engine_of(wasm), source_of(wasm)):
        assert found is None or (len(found) == 64 and bytes.fromhex(found))
    for read in (bytecode_of, binary.exports, binary.has_imports, lambda raw: list(binary.sections(raw))):
        try:
            read(wasm)
        except Malformed:
            continue


@given(st.one_of(st.binary(max_size=400), st.binary(max_size=200).map(binary.PREAMBLE.__add__), _SECTIONS, _CUSTOM))
def test_any_bytes(wasm: bytes) -> None:
    _check(wasm)


@given(st.integers(0, len(_OURS) - 1), st.binary(max_size=8), st.integers(0, 8))
def test_a_module_of_ours_with_some_bytes_changed(at: int, new: bytes, dropped: int) -> None:
    _check(_OURS[:at] + new + _OURS[at + dropped :])
