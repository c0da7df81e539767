"""One page of a run's messages, by cursors that are messages' ids. Nothing here waits."""

from __future__ import annotations

from typing import TYPE_CHECKING

from runstream.gateway.errors import NotFound

if TYPE_CHECKING:
    from collections.abc import Sequence

    from runstream.schemas import ListRunMessagesRequest, Merged

__all__ = ["page_of"]


def page_of(messages: Sequence[Merged], wanted: ListRunMessagesRequest) -> list[Merged]:
    """Return the messages between two cursors, in the order that is wanted.

    `limit` counts ids, and of more than that many the page has those that are next to the cursor: after `after`, or
    else before `before`. Messages that share an id, as a step's thoughts and its answer do, are on one page: a cursor
    between them would not be one. What has no id comes with the message that follows it in the page's direction.
    Raises `NotFound` for an id that none of them has.
    """
    ordered = list(messages if wanted.order == "asc" else reversed(messages))
    begin, end = 0, len(ordered)
    if wanted.after is not None:
        begin = _places_of(wanted.after, ordered)[-1] + 1
    if wanted.before is not None:
        end = _places_of(wanted.before, ordered)[0]
    between = ordered[begin:end]
    if wanted.after is None and wanted.before is not None:
        return _first(between[::-1], wanted.limit)[::-1]
    return _first(between, wanted.limit)


def _places_of(message_id: str, messages: Sequence[Merged]) -> list[int]:
    places = [place for place, message in enumerate(messages) if message.id == message_id]
    if not places:
        raise NotFound(f"Message not found with id='{message_id}'")
    return places


def _first(messages: Sequence[Merged], limit: int) -> list[Merged]:
    """Return the messages of the first `limit` ids; all, with what follows the last id, if there are no more ids."""
    seen: set[str] = set()
    page: list[Merged] = []
    size = 0
    for message in messages:
        if message.id is not None and message.id not in seen:
            if len(seen) == limit:
                return page[:size]
            seen.add(message.id)
        page.append(message)
        size = len(page) if message.id is not None else size
    return page
