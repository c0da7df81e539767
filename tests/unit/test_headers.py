"""A message's headers, found in its bytes: as the library's own reading has them, whatever it is that stands there."""

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from nats.aio.client import Client

from runstream.broker.headers import NO_HEADERS, Headers

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
    found = Headers(raw)
    assert dict(found) == expected
    assert len(found) == len(expected)
    assert found.status is None
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
    expected = {
        getattr(name, "value", name): value for name, value in (await Client()._process_headers(raw) or {}).items()
    }
    found = Headers(raw)
    assert found.status == expected.pop("Status")
    assert found.description == expected.pop("Description", "")
    assert dict(found) == expected


@given(st.binary(max_size=80) | st.binary(max_size=80).map(lambda raw: b"NATS/1.0" + raw + b"\r\n\r\n"))
@example(b"NATS/1.0 1\r\n\xff: x\r\n\r\n")
@example(b"NATS/1.0\r\na: 1")
@example(b"NATS/1.0 \xc2\xb2\r\n\r\n")
def test_anything_can_be_looked_into(raw: bytes) -> None:
    """Whoever may publish a message may write this above it: it is an end to nobody's reading."""
    found = Headers(raw)
    assert bool(found) == bool(raw)
    assert all(name in found for name in found)
    assert found.status is None or int(found.status) >= 0
    assert found.get("Rs-Kind") in {None, *found.values()}
    assert str(found.description) == found.description


def test_no_headers_are_none() -> None:
    """Where there is no head nothing is found in it; nor in an empty one."""
    for none in (NO_HEADERS, Headers(b"NATS/1.0\r\n\r\n")):
        assert (dict(none), none.status, none.description, none.get("a")) == ({}, None, "", None)
