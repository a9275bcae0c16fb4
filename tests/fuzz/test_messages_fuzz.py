"""One invariant: whatever a child sends becomes an event of the table or a FrameError; what is kept is well-formed."""

import json

from hypothesis import given
from hypothesis import strategies as st

from engines import messages
from engines.frames import LENGTH, FrameError, Type
from engines.messages import CHILD_OUTCOMES, Failed, HostCalls, Ready, Returned

KINDS = [Type.READY, Type.HOSTCALL, Type.RESULT, Type.ERROR]
FIELDS = ["wall_us", "cpu_us", "memory_bytes", "boot_us", "kind", "status", "headers", "logs", "truncated", "outcome",
          "error", "used", "name", "message", "stack", "code"]  # fmt: skip
WORDS = ["json", "response", "exception", "cpu_limit", "ok", "info", "x-id", "a\r\nb", "\ud800"]

scalars = st.one_of(st.none(), st.booleans(), st.integers(), st.floats(), st.sampled_from(WORDS), st.text(max_size=8))
values = st.recursive(
    scalars,
    lambda inner: st.one_of(st.lists(inner, max_size=4), st.dictionaries(st.sampled_from(FIELDS), inner, max_size=12)),
    max_leaves=20,
)
likely = st.fixed_dictionaries(
    {"wall_us": st.just(1), "cpu_us": st.just(2), "memory_bytes": st.just(3), "boot_us": st.just(4)},
    optional={
        "kind": st.sampled_from(["json", "response"]),
        "status": st.integers(100, 700),
        "headers": st.lists(st.lists(st.sampled_from(WORDS), min_size=2, max_size=2), max_size=2),
        "logs": st.lists(st.tuples(st.sampled_from(WORDS), st.sampled_from(WORDS), st.integers(-1, 9)), max_size=2),
        "outcome": st.sampled_from(["exception", "cpu_limit", "ok", "x"]),
        "error": values,
        "used": scalars,
    },
)
texts = st.one_of(st.one_of(values, likely).map(lambda value: json.dumps(value).encode()), st.binary(max_size=60))
payloads = st.one_of(
    texts,
    st.tuples(texts, texts, st.integers(-2, 2)).map(
        lambda parts: LENGTH.pack(max(0, len(parts[0]) + parts[2])) + parts[0] + parts[1]
    ),
    st.tuples(texts, texts).map(lambda parts: LENGTH.pack(len(parts[0])) + parts[0] + parts[1]),
)


@given(st.sampled_from(KINDS), st.integers(0, 1), payloads)
def test_parse_or_frame_error(kind: Type, call: int, payload: bytes) -> None:
    try:
        event = messages.parse((kind, 1, call, payload))
    except FrameError:
        return
    match event:
        case Ready():
            assert event.memory_bytes >= 0
            assert event.boot_us >= 0
        case HostCalls():
            assert 0 < len(event.calls) <= 64
        case Returned():
            json.loads(event.value)
            if event.response is not None:
                assert 200 <= event.response.status <= 599
                assert not any(c in name + value for name, value in event.response.headers for c in "\r\n\0")
        case Failed():
            assert event.outcome in CHILD_OUTCOMES
            if event.error is not None:
                "".join((event.error.name, event.error.message, event.error.stack, event.error.code or "")).encode()
