"""The Postgres protocol without a server: framing, decoding, and the SCRAM exchange of RFC 7677."""

import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from server.postgres import wire
from server.postgres.scram import Scram, ScramError


def message(kind: bytes, body: bytes) -> bytes:
    return kind + struct.pack(">i", len(body) + 4) + body


@given(
    st.lists(st.tuples(st.sampled_from([b"D", b"C", b"Z"]), st.binary(max_size=40)), max_size=8),
    st.lists(st.integers(1, 20)),
)
def test_messages_arrive_whole_however_the_stream_is_cut(sent: list[tuple[bytes, bytes]], cuts: list[int]) -> None:
    stream = b"".join(message(kind, body) for kind, body in sent)
    inbox = wire.Inbox(1000)
    arrived: list[wire.Message] = []
    for size in cuts:
        arrived += inbox.feed(stream[:size])
        stream = stream[size:]
    arrived += inbox.feed(stream)
    assert arrived == sent


def test_a_message_is_refused_by_its_header_alone() -> None:
    inbox = wire.Inbox(100)
    assert inbox.feed(message(b"D", b"x" * 96)) == [wire.Message(b"D", b"x" * 96)]
    with pytest.raises(wire.MessageTooLarge, match="101 bytes, allowed 100"):
        inbox.feed(b"D" + struct.pack(">i", 101))


@pytest.mark.parametrize("length", [3, 0, -1])
def test_lengths_that_cannot_be(length: int) -> None:
    with pytest.raises(wire.WireError):
        wire.Inbox(100).feed(b"D" + struct.pack(">i", length))


def test_rows_and_columns() -> None:
    body = struct.pack(">H", 2) + b"id\0" + struct.pack(">IhIhih", 1, 1, 23, 4, -1, 0)
    body += "ü".encode() + b"\0" + struct.pack(">IhIhih", 0, 0, 25, -1, -1, 0)
    assert wire.columns(body) == [wire.Column("id", 23), wire.Column("ü", 25)]
    row = struct.pack(">H", 3) + struct.pack(">i", 1) + b"7" + struct.pack(">i", -1) + struct.pack(">i", 0)
    assert wire.row(row) == [b"7", None, b""]


def test_what_we_send() -> None:
    assert wire.parse("SELECT $1", [23]) == message(b"P", b"\0SELECT $1\0" + struct.pack(">HI", 1, 23))
    assert wire.bind([b"7", None]) == message(
        b"B", b"\0\0" + struct.pack(">hH", 0, 2) + struct.pack(">i", 1) + b"7" + struct.pack(">ih", -1, 0)
    )
    assert wire.startup({"user": "u"}) == struct.pack(">ii", 16, 196608) + b"user\0u\0\0"


@pytest.mark.parametrize("text", ["SELECT 1\0", "\0"])
def test_a_nul_never_reaches_the_wire(text: str) -> None:
    with pytest.raises(ValueError, match="NUL"):
        wire.parse(text, [])
    with pytest.raises(ValueError, match="NUL"):
        wire.startup({"user": text})


def test_error_fields() -> None:
    assert wire.fields(b"SERROR\0C42P01\0Mno table\0P15\0\0") == {
        "S": "ERROR",
        "C": "42P01",
        "M": "no table",
        "P": "15",
    }


# The example of RFC 7677, section 3, but for the user name, which Postgres wants empty.
NONCE = "rOprNGfwEbeRWgbNEkqO"
SERVER_FIRST = b"r=rOprNGfwEbeRWgbNEkqO%hvYDpWUa2RaTCAfuxFIlj)hNlF$k0,s=W22ZaJ0SNY7soEsUEjb6gQ==,i=4096"


def test_scram_matches_an_independent_calculation() -> None:
    """The stored key of the RFC's password opens our proof, as a server checks it."""
    import base64
    import hashlib
    import hmac

    exchange = Scram("pencil", NONCE)
    assert exchange.first == b"n,,n=,r=" + NONCE.encode()
    final = exchange.answer(SERVER_FIRST)
    without_proof, _, proof = final.partition(b",p=")
    salted = hashlib.pbkdf2_hmac("sha256", b"pencil", base64.b64decode("W22ZaJ0SNY7soEsUEjb6gQ=="), 4096)
    stored_key = hashlib.sha256(hmac.digest(salted, b"Client Key", "sha256")).digest()
    signed = exchange.first[3:] + b"," + SERVER_FIRST + b"," + without_proof
    signature = hmac.digest(stored_key, signed, "sha256")
    client_key = bytes(a ^ b for a, b in zip(base64.b64decode(proof), signature, strict=True))
    assert hashlib.sha256(client_key).digest() == stored_key
    server_key = hmac.digest(salted, b"Server Key", "sha256")
    exchange.verify(b"v=" + base64.b64encode(hmac.digest(server_key, signed, "sha256")))


@pytest.mark.parametrize(
    "first",
    [b"", b"r=other,s=W22Z,i=4096", f"r={NONCE},s=W22Z,i=4096".encode(), f"r={NONCE}x,s=W22Z,i=0".encode(),
     f"r={NONCE}x,s=W22Z,i=999999999".encode(), b"m=ext," + SERVER_FIRST, b"\xff" * 10],
)  # fmt: skip
def test_a_server_that_does_not_speak_scram(first: bytes) -> None:
    with pytest.raises(ScramError):
        Scram("pencil", NONCE).answer(first)


@pytest.mark.parametrize("final", [b"", b"v=", b"v=AAAA", b"e=other-error"])
def test_a_server_that_does_not_know_the_password(final: bytes) -> None:
    exchange = Scram("pencil", NONCE)
    with pytest.raises(ScramError):
        exchange.verify(final)
    exchange.answer(SERVER_FIRST)
    with pytest.raises(ScramError):
        exchange.verify(final)
