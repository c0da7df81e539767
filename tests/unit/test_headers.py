"""A message's headers, found in its bytes: as the library's own reading has them, and nobody speaks for the server."""

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from nats.aio.client import Client

from runstream.broker.headers import DESCRIPTION, STATUS, headers_of

NAMES = st.text("ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_", min_size=1)
VALUES = st.text(st.characters(exclude_characters="\r\n", exclude_categories=["Cs"]))
COLONS = st.sampled_from([": ", ":", ":\t"])


def written(headers: list[tuple[str, str]], colon: str = ": ") -> bytes:
    return b"NATS/1.0\r\n" + "".join(f"{name}{colon}{value}\r\n" for name, value in headers).encode() + b"\r\n"


@given(st.lists(st.tuples(NAMES, VALUES), min_size=1), COLONS, NAMES)
@example([("a", "1"), ("ba", "2"), ("a", " 3 ")], ":", "b")
def test_headers_are_read_as_nats_py_reads_them(headers: list[tuple[str, str]], colon: str, other: str) -> None:
    """Whatever stands in a value, and in whichever order: of a name that is there twice the last one counts."""
    raw = written(headers, colon)
    expected = Client._parse_header_lines(raw.removeprefix(b"NATS/1.0\r\n"))
    for name in (STATUS, DESCRIPTION):
        expected.pop(name, None)
    found = headers_of(raw)
    assert found is not None
    assert dict(found) == expected
    assert len(found) == len(expected)
    for name in [*expected, other]:
        assert found.get(name) == expected.get(name)
        assert found.get(name, "none") == expected.get(name, "none")
        assert (name in found) == (name in expected)
    if other not in expected:
        with pytest.raises(KeyError):
            found[other]


@pytest.mark.parametrize(
    "raw",
    [
        b"NATS/1.0 404\r\n\r\n",
        b"NATS/1.0 503\r\n\r\n",
        b"NATS/1.0 404 No Messages\r\n\r\n",
        b"NATS/1.0 204 EOB\r\nNats-Num-Pending: 0\r\nNats-Last-Sequence: 12\r\n\r\n",
        b"NATS/1.0 100 Idle Heartbeat\r\nNats-Last-Consumer: 1016\r\nNats-Last-Stream: 1024\r\n\r\n",
        b"NATS/1.0 409 Message Size Exceeds MaxBytes\r\nNats-Pending-Messages: 1\r\nNats-Pending-Bytes: 5\r\n\r\n",
    ],
)
async def test_what_a_server_says_is_read_as_nats_py_reads_it(raw: bytes) -> None:
    """A number, words, and headers beside them, or none of these."""
    expected = await Client()._process_headers(raw)
    assert headers_of(raw) == {getattr(name, "value", name): value for name, value in (expected or {}).items()}


def test_nobody_speaks_for_the_server() -> None:
    """A header that calls itself a status is no status: who may publish could end everybody's reading with it."""
    found = headers_of(written([("Status", "404"), ("Description", "No Messages"), ("Rs-Kind", "data")]))
    assert found is not None
    assert (found.get(STATUS), STATUS in found, found.get(DESCRIPTION)) == (None, False, None)
    assert dict(found) == {"Rs-Kind": "data"}


def test_no_headers_are_none() -> None:
    """A message without a head has none; one with an empty head has some, in which nothing is found."""
    assert headers_of(b"") is None
    empty = headers_of(b"NATS/1.0\r\n\r\n")
    assert empty is not None
    assert dict(empty) == {}
