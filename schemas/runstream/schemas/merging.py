"""A run's messages as wholes, made of the events that they came in.

A message may come in many events: each has the message's `id` and a piece of what it says. What grows is its text, be
it a string or a list of parts, a tool call's arguments, and what a tool returned; of anything else the last that is
there counts, but for the date, which is the first.

An event goes on with a message if both have the same `id` and `message_type`, and not two different `otid`s: the
thoughts and the answer of one step share an `id`. A message of another type, and what is no message of Letta's, is a
whole by itself. What came in one event is given back byte for byte.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from functools import partial
from typing import Any, Final, NamedTuple, TypeAlias

import msgspec
from msgspec import Raw

from runstream.schemas.errors import InvalidChunk

__all__ = ["Merged", "Merging"]

_TEXT_OF: Final[Mapping[str, str]] = {
    "system_message": "content",
    "user_message": "content",
    "assistant_message": "content",
    "reasoning_message": "reasoning",
    "hidden_reasoning_message": "hidden_reasoning",
    "summary_message": "summary",
}
_CALL_ID: Final = "tool_call_id"
_OLDER_RETURN: Final[tuple[str, ...]] = ("tool_return", "status", _CALL_ID, "stdout", "stderr")
"""The fields of a tool return message that are the older form of the first of its `tool_returns`."""

_Fields: TypeAlias = dict[str, Raw]
"""An object whose values are not looked into, and go out as they came."""

_fields_in: Final = msgspec.json.Decoder(_Fields).decode
_items_in: Final = msgspec.json.Decoder(list[Raw]).decode
_value_of: Final = msgspec.json.Decoder().decode
_encode: Final = msgspec.json.Encoder().encode

_NULL: Final = Raw(b"null")
_NOTHING: Final = frozenset({b"null", b'""'})


class Merged(NamedTuple):
    """One message: its `id`, None if it has none, and the JSON object, without `seq_id`."""

    id: str | None
    body: bytes


class Merging:
    """Takes the events of a run in their order, and gives its messages in the order in which they began.

    Those that share an `id` stand together.
    """

    def __init__(self) -> None:
        self.size = 0
        """About how many bytes the messages have so far."""
        self._groups: dict[object, list[_Message]] = {}
        self._latest: dict[tuple[str, str], _Message] = {}
        self._by_otid: dict[tuple[str, str, str], _Message] = {}

    def add(self, body: bytes) -> None:
        """Take the next event, as the log stores it. Raises `InvalidChunk` for what is not a JSON object."""
        seen = _look_at(body)
        message = self._continued_by(seen)
        if message is not None:
            try:
                self.size += message.add(body)
            except RecursionError:
                seen = _NAMELESS
            else:
                return
        self._begin(seen, body)
        self.size += len(body)

    def messages(self) -> Iterator[Merged]:
        """Give the messages so far."""
        for name, group in self._groups.items():
            for message in group:
                yield Merged(name if isinstance(name, str) else None, message.body())

    def _continued_by(self, seen: _Seen) -> _Message | None:
        """Return the message that an event goes on with, None if it begins another."""
        if seen.id is None or seen.message_type is None:
            return None
        latest = self._latest.get((seen.id, seen.message_type))
        if latest is None or seen.otid is None:
            return latest
        key = (seen.id, seen.message_type, seen.otid)
        named = self._by_otid.get(key)
        if named is None and latest.otid is None:
            named, latest.otid = latest, seen.otid
            self._by_otid[key] = latest
        return named

    def _begin(self, seen: _Seen, body: bytes) -> None:
        """Add a message whose first event this is."""
        name, kind = seen.id or None, seen.message_type
        making = None if name is None or kind is None else _MAKING.get(kind)
        message = _Message(seen.otid, body, making)
        self._groups.setdefault(len(self._groups) if name is None else name, []).append(message)
        if name is not None and kind is not None and making is not None:
            self._latest[name, kind] = message
            if seen.otid is not None:
                self._by_otid[name, kind, seen.otid] = message


class _Naming(msgspec.Struct):
    """The fields that name an event's message, as they came: whatever is no text, be it 1e999, is not decoded."""

    id: Raw = _NULL
    message_type: Raw = _NULL
    otid: Raw = _NULL


class _Seen(NamedTuple):
    """What of an event says to which message it belongs; None is what is absent, or no text."""

    id: str | None
    message_type: str | None
    otid: str | None


_NAMELESS: Final = _Seen(None, None, None)
"""Of an event that is nested too deep to be looked into: it stands for itself."""
_naming_in: Final = msgspec.json.Decoder(_Naming).decode


def _look_at(body: bytes) -> _Seen:
    try:
        found = _naming_in(body)
        return _Seen(_text_in(found.id), _text_in(found.message_type), _text_in(found.otid))
    except RecursionError:
        # How deep is too deep depends on the stack: whoever stored it may have stood less deep in his.
        return _NAMELESS
    except ValueError as error:
        raise InvalidChunk(f"This is not a JSON object: {error}") from error


def _text_in(value: Raw) -> str | None:
    return _value_of(value) if bytes(value)[:1] == b'"' else None


class _Message:
    """One message. Looked into only when a second event goes on with it."""

    __slots__ = ("_first", "_making", "_whole", "otid")

    def __init__(self, otid: str | None, body: bytes, making: Callable[[], _Object] | None) -> None:
        self.otid = otid
        self._first = body
        self._making = making
        self._whole: _Object | None = None

    def add(self, body: bytes) -> int:
        """Take the message's next event; returns about how many bytes it is longer by.

        Raises `RecursionError` if it, or the first one, is nested too deep to be looked into: then it is not taken.
        """
        piece = _fields_in(body)
        if self._whole is None:
            whole = _Object() if self._making is None else self._making()
            whole.add(_fields_in(self._first))
            self._whole, self._first = whole, b""
        return self._whole.add(piece)

    def body(self) -> bytes:
        """Give the message so far."""
        return self._first if self._whole is None else _encode(self._whole.value())


class _Text:
    """What is said, in pieces: strings, or lists of content parts. Pieces are joined at the end, in linear time."""

    def __init__(self) -> None:
        self._said: list[str] = []
        self._parts: list[_Part] | None = None

    def add(self, piece: Raw) -> int:
        """Take the next piece; what is neither text nor parts is none. Returns about how many bytes it has."""
        match bytes(piece)[:1]:
            case b'"' if self._parts is None:
                self._said.append(_value_of(piece))
                return len(self._said[-1])
            case b'"':
                return self._add_parts([_text_part(_value_of(piece))])
            case b"[":
                if self._parts is None:
                    said, self._said, self._parts = "".join(self._said), [], []
                    self._add_parts([_text_part(said)] if said else [])
                return self._add_parts(_items_in(piece))
        return 0

    def _add_parts(self, contents: list[Raw]) -> int:
        """Add parts; the first goes on with the last that is there, if both are text and differ in nothing else."""
        known = self._parts = self._parts or []
        size = 0
        for at, content in enumerate(contents):
            part = _Part.of(content)
            if at == 0 and known and part.text and known[-1].text and known[-1].rest == part.rest:
                known[-1].text.extend(part.text)
                size += len(part.text[0])
            else:
                known.append(part)
                size += len(bytes(content))
        return size

    def value(self) -> object:
        """Give what was said; None if nothing was."""
        if self._parts is not None:
            return [part.value() for part in self._parts]
        return "".join(self._said) if self._said else None


def _text_part(text: str) -> Raw:
    return Raw(_encode({"type": "text", "text": text}))


class _Part(NamedTuple):
    """One content part. `text`: the pieces of its text, none if it is not text; `rest`: all of it but that."""

    rest: dict[str, bytes] | bytes
    text: list[str]

    @classmethod
    def of(cls, content: Raw) -> _Part:
        if bytes(content)[:1] == b"{":
            fields = {key: bytes(value) for key, value in _fields_in(content).items()}
            if fields.get("type") == b'"text"' and fields.get("text", b"")[:1] == b'"':
                return cls({**fields, "text": b""}, [_value_of(fields["text"])])
        return cls(bytes(content), [])

    def value(self) -> object:
        if isinstance(self.rest, bytes):
            return Raw(self.rest)
        return {key: Raw(value) if value else "".join(self.text) for key, value in self.rest.items()}


class _Object:
    """An object that comes in pieces. `texts` and `lists` in it grow; `held` keys keep their place, and no more."""

    texts: frozenset[str] = frozenset()
    lists: frozenset[str] = frozenset()
    held: frozenset[str] = frozenset()

    def __init__(self) -> None:
        self._values: dict[str, Raw] = {}
        self._texts: dict[str, _Text] = {}
        self._lists: dict[str, list[Raw]] = {}

    def add(self, piece: _Fields) -> int:
        """Take the next piece; returns about how many bytes longer it is."""
        size = 0
        for key, value in piece.items():
            known = self._values.setdefault(key, _NULL)
            if key in self.texts:
                size += self._texts.setdefault(key, _Text()).add(value)
            elif key in self.lists and bytes(value)[:1] == b"[":
                self._lists.setdefault(key, []).extend(_items_in(value))
                size += len(bytes(value))
            elif key not in self.held and _counts(key, known, bytes(value)):
                self._values[key] = value
        return size

    def value(self) -> dict[str, Any]:
        """Give the object, its keys in the order in which they came."""
        said = {key: text.value() for key, text in self._texts.items()}
        return {**self._values, **said, **self._lists}


def _counts(key: str, known: Raw, value: bytes) -> bool:
    """Tell whether a value takes the place of the one that is known: the last one does, or of dates the first."""
    return value != b"null" and (known is _NULL or (key != "date" and value != b'""'))


class _Said(_Object):
    """A message that is one text, under this key."""

    def __init__(self, key: str) -> None:
        super().__init__()
        self.texts = frozenset({key})


class _Call(_Object):
    """A tool call."""

    texts = frozenset({"arguments"})


class _Return(_Object):
    """What one tool call returned."""

    texts = frozenset({"tool_return"})
    lists = frozenset({"stdout", "stderr"})


class _ByCall:
    """Calls, or returns, in pieces, told apart by `tool_call_id`; a piece without one goes on with the latest."""

    def __init__(self, making: type[_Object]) -> None:
        self._making = making
        self._items: dict[bytes, _Object] = {}
        self._latest = b""

    def add(self, piece: _Fields) -> int:
        """Take a piece; returns about how many bytes longer it all is."""
        call_id = bytes(piece.get(_CALL_ID, _NULL))
        if call_id in _NOTHING:
            call_id = self._latest
        elif b"" in self._items:
            self._items[call_id] = self._items.pop(b"")  # It had begun before it was named.
        self._latest = call_id
        if call_id in self._items:
            return self._items[call_id].add(piece)
        self._items[call_id] = self._making()
        return self._items[call_id].add(piece) + sum(map(len, piece))

    def add_all(self, pieces: Raw) -> int:
        """Take a piece, or a list of them; what is no object is none."""
        match bytes(pieces)[:1]:
            case b"{":
                return self.add(_fields_in(pieces))
            case b"[":
                return sum(self.add(_fields_in(piece)) for piece in _items_in(pieces) if bytes(piece)[:1] == b"{")
        return 0

    def values(self) -> dict[bytes, dict[str, Any]]:
        """Give the items by their `tool_call_id`."""
        return {call_id: item.value() for call_id, item in self._items.items()}


class _Calling(_Object):
    """A message that calls tools: `tool_call` is the older form of the first of `tool_calls`, or the only one."""

    held = frozenset({"tool_call", "tool_calls"})

    def __init__(self) -> None:
        super().__init__()
        self._older, self._newer = _ByCall(_Call), _ByCall(_Call)

    def add(self, piece: _Fields) -> int:
        older, newer = piece.get("tool_call", _NULL), piece.get("tool_calls", _NULL)
        return super().add(piece) + self._older.add_all(older) + self._newer.add_all(newer)

    def value(self) -> dict[str, Any]:
        older, newer = self._older.values(), self._newer.values()
        first = {"tool_call": next(iter(older.values()))} if older else {}
        return {**super().value(), **first, **_list_of("tool_calls", older, newer)}


class _Returning(_Object):
    """A message with what tools returned: in `tool_returns`, and the first, or the only one, in its older form."""

    held = frozenset({*_OLDER_RETURN, "tool_returns"})

    def __init__(self) -> None:
        super().__init__()
        self._older, self._newer = _ByCall(_Return), _ByCall(_Return)

    def add(self, piece: _Fields) -> int:
        older = {key: piece[key] for key in _OLDER_RETURN if key in piece}
        size = self._older.add(older) if older else 0
        return super().add(piece) + size + self._newer.add_all(piece.get("tool_returns", _NULL))

    def value(self) -> dict[str, Any]:
        older, newer = self._older.values(), self._newer.values()
        first = next(iter(older.values()), {})
        typed = {call_id: {"type": "tool", **item} for call_id, item in older.items()}
        return {**super().value(), **first, **_list_of("tool_returns", typed, newer)}


def _list_of(
    key: str, older: Mapping[bytes, dict[str, Any]], newer: Mapping[bytes, dict[str, Any]]
) -> dict[str, list[dict[str, Any]]]:
    """Give the list of all, under its key: where there was one, or is more than the older form can hold."""
    if not newer and len(older) < 2:  # noqa: PLR2004  # one is what the older form holds
        return {}
    return {key: [*newer.values(), *(item for call_id, item in older.items() if call_id not in newer)]}


_MAKING: Final[Mapping[str, Callable[[], _Object]]] = {
    **{message_type: partial(_Said, key) for message_type, key in _TEXT_OF.items()},
    "tool_call_message": _Calling,
    "approval_request_message": _Calling,
    "tool_return_message": _Returning,
}
"""What a message of each type is put together with; one of any other comes in one event."""
