"""What the chunks of the load say: each names its run, its place in it, and itself, so that none passes for another."""

import re
from typing import NamedTuple
from zlib import crc32

# What encoders, splitters of lines and counters of bytes have stumbled over, and no surrogates, which are mended.
_SOIL = 'plain words "quoted" \\ back\\u0041slash\r\n\ndata: [DONE]\n\n\tid: 7 é ß 漢字 🙂 \u2028 \u2029 \x7f '
_PADDING = _SOIL * (65536 // len(_SOIL) + 1)
_HEAD = re.compile(r"#([0-9a-z]+) ([0-9]+) ")
MAX_PADDING = 60_000


class Shown(NamedTuple):
    """Whose chunk a text is, and which; `token` is empty if it is none of ours, `number` is its index."""

    token: str
    number: int
    digest: int


def content_of(token: str, index: int, padding: int = 0) -> str:
    """Return the text of a run's chunk: the same for the same arguments, in whichever process."""
    at = index % len(_SOIL)
    return f"#{token} {index} {_PADDING[at : at + padding]}"


def padding_of(token: str, index: int, most: int) -> int:
    """Return how many characters of padding a run's chunk has: most are small, one in fifty has `most`."""
    chance = crc32(f"{token} {index}".encode())
    return most if chance % 50 == 0 else chance % min(most + 1, 64)


def texts_of(token: str, first: int, count: int, most: int) -> list[str]:
    """Return what a run says from its chunk `first` on."""
    return [content_of(token, index, padding_of(token, index, most)) for index in range(first, first + count)]


def digest_of(text: str) -> int:
    """Return what tells a text from a damaged one."""
    return crc32(text.encode("utf-8", "surrogatepass"))


def read(text: object) -> Shown:
    """Tell what a reader was shown."""
    head = _HEAD.match(text) if isinstance(text, str) else None
    if head is None or not isinstance(text, str):
        return Shown("", -1, 0)
    return Shown(head[1], int(head[2]), digest_of(text))
