"""One invariant: any bytes, cut anywhere, give the same frames or the same FrameError, and nothing else."""

import itertools

from hypothesis import given
from hypothesis import strategies as st

from engines.frames import Frame, FrameError, Reader, Type, encode

frames = st.tuples(st.sampled_from(Type), st.integers(0, 2**32 - 1), st.integers(0, 2**32 - 1), st.binary(max_size=200))
streams = st.one_of(
    st.binary(max_size=400),
    st.lists(frames, max_size=6).map(lambda some: b"".join(encode(*frame) for frame in some)),
    st.tuples(st.lists(frames, max_size=4), st.binary(max_size=30)).map(
        lambda both: b"".join(encode(*frame) for frame in both[0]) + both[1]
    ),
)


def read(stream: bytes, cuts: list[int]) -> tuple[list[Frame], bool]:
    """All frames before the end or the first error, and whether there was one."""
    reader, got = Reader(), list[Frame]()
    edges = [0, *sorted(cut % (len(stream) + 1) for cut in cuts), len(stream)]
    try:
        for start, end in itertools.pairwise(edges):
            got += reader.feed(stream[start:end])
    except FrameError:
        return got, True
    return got, False


@given(st.lists(frames, max_size=8), st.lists(st.integers(0, 4000), max_size=12))
def test_what_was_encoded_is_read_back_whatever_the_cuts(some: list[Frame], cuts: list[int]) -> None:
    assert read(b"".join(encode(*frame) for frame in some), cuts) == (some, False)


@given(streams, st.lists(st.integers(0, 4000), max_size=12))
def test_cuts_never_change_the_verdict(stream: bytes, cuts: list[int]) -> None:
    single = read(stream, list(range(len(stream))))
    several = read(stream, cuts)
    assert several[1] == single[1]
    if not single[1]:
        assert several[0] == single[0]
    else:
        assert single[0][: len(several[0])] == several[0]
