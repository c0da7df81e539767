"""What a platform streams becomes whole events, in whatever pieces it comes, and chunks that say what it said."""

import json
from itertools import pairwise
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from runstream.broker.agents.http_events import WholeEvents, chunk_in, error_in
from runstream.broker.errors import AgentFailed
from runstream.schemas import decode_chunk, encode_chunk

RUN_ID = "run-1"
LINE_ENDS = ["\n", "\r\n", "\r"]

texts = st.text(st.sampled_from("ab:é日🙂\n \r"), max_size=40)


def pieces(data: bytes, cuts: list[int]) -> list[bytes]:
    """The bytes, cut at these places."""
    edges = sorted({0, len(data), *(cut % (len(data) + 1) for cut in cuts)})
    return [data[start:end] for start, end in pairwise(edges)]


def stored(data: str) -> str:
    """A chunk as the log has it."""
    return encode_chunk(chunk_in(data), run_id=RUN_ID).decode()


# -- whole events -----------------------------------------------------------------------------------------------------


@given(texts, st.lists(st.integers(0, 200)), st.booleans())
def test_whole_events_come_as_soon_as_they_are_whole(text: str, cuts: list[int], has_mark: bool) -> None:
    """Whatever the pieces: all that is whole has come, none of it twice, with lines that end in LF, and no mark."""
    events = WholeEvents()
    came = seen = b""
    for piece in pieces((b"\xef\xbb\xbf" if has_mark else b"") + text.encode(), cuts):
        came += piece
        seen += events.feed(piece)
        plain = came.removeprefix(b"\xef\xbb\xbf").replace(b"\r\n", b"\n").replace(b"\r", b"\n")
        whole = plain[: plain.rfind(b"\n\n") + 2] if b"\n\n" in plain else b""
        assert seen.rstrip(b"\n") == whole.rstrip(b"\n"), "blank lines aside, of which any number are as good as two"
        assert plain.startswith(seen)
        assert events.held_bytes == len(plain) - len(seen)


@pytest.mark.parametrize("line_end", LINE_ENDS)
def test_an_event_waits_for_no_other_one(line_end: str) -> None:
    """Whatever its lines end in, an event is there with its last byte."""
    events = WholeEvents()
    for number in range(3):
        *before, last = f"event: error{line_end}data: {number}{line_end}{line_end}".encode()
        early = b"".join(events.feed(bytes([byte])) for byte in before)
        late = events.feed(bytes([last]))
        assert (early + late).strip() == b"event: error\ndata: %d" % number
        assert line_end == "\r\n" or late


@pytest.mark.parametrize(
    ("left", "half"),
    [
        ("", ""),
        ("\n", ""),
        (": bye", ""),
        (": bye\n", ""),
        ("da", "da"),
        ("data: 1\n", "data: 1"),
        (": ping\ndata: 1\nid: 2", "data: 1\nid: 2"),
    ],
)
def test_half_an_event_is_known(left: str, half: str) -> None:
    """At the end it is known whether an event had begun; comments are none."""
    events = WholeEvents()
    assert events.feed(f"data: 0\n\n{left}".encode()).rstrip() == b"data: 0"
    assert events.half == half


def test_only_the_first_mark_is_one() -> None:
    """A byte order mark is a character like others anywhere but at the start."""
    events = WholeEvents()
    assert events.feed("\ufeff\ufeffdata: 1\n\n".encode()) == "\ufeffdata: 1\n\n".encode()
    assert events.feed("\ufeffdata: 2\n\n".encode()) == "\ufeffdata: 2\n\n".encode()


# -- chunks -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "value",
    [
        "1",
        "1.0",
        "-0",
        "1E5",
        "1e400",
        "1e-400",
        "0.1000000000000000055",
        "9007199254740993",
        "18446744073709551616",
        "-123456789012345678901234567890",
        '{"b":1,"b":2}',
        '"\\u00e9\\/\\ud83d\\ude00"',
        '"\u2028日🙂"',
        "[ 1 , 2 ]",
        "null",
    ],
)
def test_values_are_stored_as_they_were_written(value: str) -> None:
    """Numbers of any size and form, keys that are there twice, escapes: the client gets what the platform sent."""
    assert stored(f'{{"a":{value}}}') == f'{{"a":{value}}}'
    assert stored(f'{{ "message_type" : "x", "a":{value}}}') == f'{{"message_type":"x","a":{value},"run_id":"run-1"}}'


def test_a_key_that_is_there_twice_has_its_last_value() -> None:
    """Only within a value do both stay."""
    assert stored('{"a":1,"b":2,"a":3}') == '{"a":3,"b":2}'


@given(
    st.dictionaries(
        st.text(st.characters(exclude_categories=["Cs"])).filter(lambda key: key not in {"message_type", "seq_id"}),
        st.recursive(
            st.none() | st.booleans() | st.integers() | st.text(st.characters(exclude_categories=["Cs"])),
            lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.just("k"), inner),
            max_leaves=6,
        ),
        min_size=1,
        max_size=5,
    ),
    st.sampled_from([None, 2]),
    st.booleans(),
)
def test_any_object_passes(value: dict[str, Any], indent: int | None, is_ascii: bool) -> None:
    """However it is laid out, over however many lines, an object is stored as one line that says the same."""
    body = stored(json.dumps(value, indent=indent, ensure_ascii=is_ascii))
    assert json.loads(body) == value
    assert list(json.loads(body)) == list(value)
    assert "\n" not in body


@pytest.mark.parametrize(
    ("written", "read"),
    [
        (r"\ud83d", "\ufffd"),
        (r"\ude00", "\ufffd"),
        (r"a\uD83Db", "a\ufffdb"),
        (r"\ud83d\u0041", "\ufffdA"),
        (r"\ud83d\ud83d\ude00", "\ufffd\U0001f600"),
        (r"\ud83d\ude00\ude00", "\U0001f600\ufffd"),
        (r"\\ud83d", r"\ud83d"),
        (r"\\\ud83d", "\\\ufffd"),
        (r"\"\ud83d\"", '"\ufffd"'),
    ],
)
def test_half_a_character_is_replaced(written: str, read: str) -> None:
    """A text that was cut within a character ends no run, and what is stored can be read by everyone."""
    body = stored(f'{{"{written}":"{written}"}}')
    assert json.loads(body) == {read: read}
    assert decode_chunk(body.encode()) == {read: read}


@pytest.mark.parametrize("message_type", ['"assistant_message"', '"\\u0061b"', '""', "null", "3", '["a"]', '{"a":"b"}'])
def test_the_message_type_is_read(message_type: str) -> None:
    """It decides how a message goes out; one that is no text stays as it was written."""
    chunk = chunk_in(f'{{"message_type":{message_type},"content":1.0}}')
    expected = json.loads(message_type)
    if isinstance(expected, str):
        assert chunk["message_type"] == expected
    else:
        assert not isinstance(chunk["message_type"], str)
        assert msgspec.json.encode(chunk) == f'{{"message_type":{message_type},"content":1.0}}'.encode()


@pytest.mark.parametrize(
    "data",
    [
        "",
        "hello",
        "[]",
        "null",
        "3",
        '"x"',
        "{",
        '{"a":1}x',
        '{"a":NaN}',
        '{"a":01}',
        '{"a":"\t"}',
        '{"a":"\\x"}',
        "{'a':1}",
        "{}",
        ' {"seq_id": 3}',
        "[DONE] ",
        '{"a":' + "[" * 5000 + "]" * 5000 + "}",
    ],
)
def test_what_is_no_chunk_is_refused(data: str) -> None:
    """Not an object, not JSON, or nothing in it: the error shows where it began."""
    with pytest.raises(AgentFailed) as caught:
        chunk_in(data)
    assert caught.value.error_type == "upstream_invalid"
    assert data[:100] in caught.value.detail
    assert len(caught.value.detail) < 500


# -- errors -----------------------------------------------------------------------------------------------------------


def test_an_error_message_is_kept() -> None:
    """What Letta calls an error goes on as it is."""
    error = '{"message_type":"error_message","error_type":"llm_error","message":"m","more":1.0}'
    assert stored_error(error) == f'{error[:-1]},"run_id":"run-1"}}'


def stored_error(data: str) -> str:
    return encode_chunk(error_in(data), run_id=RUN_ID).decode()


@pytest.mark.parametrize("data", ["", "out of luck", '{"error": "no", "code": 3}', "[]", '{"message_type":"ping"}'])
def test_any_other_error_is_told(data: str) -> None:
    """An error in words of its own, or in none, ends the run with those."""
    with pytest.raises(AgentFailed) as caught:
        error_in(data)
    assert (caught.value.error_type, caught.value.detail) == ("internal_error", data)
