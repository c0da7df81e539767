"""Pages of a run's messages: from any cursor, in both orders, each message is on one of them."""

import itertools
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from runstream.gateway.errors import NotFound
from runstream.gateway.paging import page_of
from runstream.schemas import ListRunMessagesRequest, Merged


def messages_of(*ids: str | None) -> list[Merged]:
    return [Merged(message_id, str(at).encode()) for at, message_id in enumerate(ids)]


def page(messages: list[Merged], **wanted: Any) -> list[str | None]:
    return [message.id for message in page_of(messages, ListRunMessagesRequest.model_validate(wanted))]


FIVE = messages_of("a", "b", "c", "d", "e")


@pytest.mark.parametrize(
    ("wanted", "expected"),
    [
        ({}, "abcde"),
        ({"limit": 2}, "ab"),
        ({"after": "b"}, "cde"),
        ({"after": "b", "limit": 2}, "cd"),
        ({"before": "d"}, "abc"),
        ({"before": "d", "limit": 2}, "bc"),
        ({"after": "a", "before": "e", "limit": 2}, "bc"),
        ({"after": "e"}, ""),
        ({"after": "d", "before": "b"}, ""),
        ({"order": "desc", "limit": 2}, "ed"),
        ({"order": "desc", "after": "d", "limit": 2}, "cb"),
        ({"order": "desc", "before": "b", "limit": 2}, "dc"),
    ],
)
def test_a_page_is_next_to_its_cursor(wanted: dict[str, Any], expected: str) -> None:
    """After a cursor, or before it, in the order that is asked for."""
    assert page(FIVE, **wanted) == list(expected)


@pytest.mark.parametrize("cursor", ["after", "before"])
def test_an_unknown_cursor_is_refused(cursor: str) -> None:
    """A message of another run, or none, is no place to go on from."""
    with pytest.raises(NotFound, match="Message not found with id='z'"):
        page(FIVE, **{cursor: "z"})


GROUPS = st.lists(st.tuples(st.booleans(), st.integers(1, 3)), max_size=8)


@given(GROUPS, st.integers(1, 4), st.sampled_from(["asc", "desc"]))
def test_who_pages_on_has_each_message_once(groups: list[tuple[bool, int]], limit: int, order: str) -> None:
    """A client that goes on from its last id sees everything in order, as one that goes back from its first does."""
    ids = [
        message_id
        for at, (has_id, count) in enumerate(groups)
        for message_id in itertools.repeat(f"m{at}" if has_id else None, count)
    ]
    messages = messages_of(*ids)
    expected = messages if order == "asc" else messages[::-1]

    seen: list[Merged] = []
    cursor: dict[str, Any] = {}
    while found := page_of(messages, ListRunMessagesRequest.model_validate({"limit": limit, "order": order, **cursor})):
        seen += found
        if found[-1].id is None:
            break
        cursor = {"after": found[-1].id}
    assert seen == expected

    last = next((message.id for message in reversed(expected) if message.id is not None), None)
    if last is None:
        return
    back = page_of(messages, ListRunMessagesRequest.model_validate({"limit": 1000, "order": order, "after": last}))
    cursor = {"before": last}
    own = [message for message in expected if message.id == last]
    back = own + back
    while found := page_of(messages, ListRunMessagesRequest.model_validate({"limit": limit, "order": order, **cursor})):
        back = found + back
        if found[0].id is None:
            break
        cursor = {"before": found[0].id}
    assert back == expected
