"""A chunk in the words of whoever wrote it: one JSON object, its keys read, its values left as they stand.

So 1e400, 1.0 and keys that are there twice within a value are not for runstream to judge, and a long text is not
decoded to be encoded again.
"""

from __future__ import annotations

import re
from typing import Any, Final, TypeGuard

import msgspec

from runstream.schemas import InvalidChunk

__all__ = ["is_text", "raw_array", "raw_chunk", "text_of", "written"]

_object_decoder: Final[msgspec.json.Decoder[Any]] = msgspec.json.Decoder(dict[str, msgspec.Raw])
_array_decoder: Final = msgspec.json.Decoder(list[msgspec.Raw])
_text_decoder: Final = msgspec.json.Decoder(str)

_ESCAPE: Final = re.compile(
    r"\\(?:u[dD][89abAB][0-9a-fA-F]{2}\\u[dD][c-fC-F][0-9a-fA-F]{2}|(?P<half>u[dD][89a-fA-F][0-9a-fA-F]{2})|.)"
)
"""An escape in a JSON string: two halves of a character, one half alone, or any other."""


def raw_chunk(data: str) -> dict[str, object]:
    """Read a chunk whose values are still as they were written, but for `message_type`.

    Raises `InvalidChunk`, whose text says what it is instead: for what is not a JSON object with a key besides
    `seq_id`.
    """
    try:
        chunk: dict[str, object] = _object_decoder.decode(_one_line(data))
    except (msgspec.DecodeError, RecursionError) as error:
        raise InvalidChunk(f"not a JSON object ({error})") from error
    if not chunk.keys() - {"seq_id"}:
        raise InvalidChunk("an empty object")
    if is_text(message_type := chunk.get("message_type")):
        chunk["message_type"] = text_of(message_type)
    return chunk


def raw_array(data: str) -> list[msgspec.Raw]:
    """Read an array's elements, each as it was written: see `written`. Raises `InvalidChunk` as above."""
    try:
        return _array_decoder.decode(_one_line(data))
    except (msgspec.DecodeError, RecursionError) as error:
        raise InvalidChunk(f"not a JSON array ({error})") from error


def written(value: msgspec.Raw) -> str:
    """Return the JSON of a value that was left as it stands."""
    return bytes(value).decode()


def is_text(value: object) -> TypeGuard[msgspec.Raw]:
    """Tell whether a value that was left as it stands is a string."""
    return isinstance(value, msgspec.Raw) and bytes(value).startswith(b'"')


def text_of(value: msgspec.Raw) -> str:
    """Read a string that was left as it stands."""
    return _text_decoder.decode(value)


def _one_line(data: str) -> str:
    """Bring JSON into a form that can be stored and decoded.

    A chunk has one line, and what ends a line in Server-Sent Events is no part of it. Half a character, which
    JavaScript writes where a text was cut in the middle of one, is valid JSON that many decoders refuse, msgspec among
    them: it becomes U+FFFD, as half a character in UTF-8 does.
    """
    if "\\ud" in data or "\\uD" in data:
        data = _ESCAPE.sub(lambda match: r"\ufffd" if match["half"] else match[0], data)
    return msgspec.json.format(data, indent=-1) if "\n" in data or "\r" in data else data
