"""Paths as a platform may read them: whoever passes on what it has read otherwise is walked around."""

from __future__ import annotations

import re
from urllib.parse import unquote

__all__ = ["as_read", "stays_below"]


def stays_below(path: str) -> bool:
    """Tell whether no reading of a path leaves what it begins with: however often it is decoded, and by whom."""
    return "//" not in path and not {".", ".."}.intersection(_segments(path))


def as_read(path: str) -> str:
    """Give a path as the freest of platforms reads it: decoded to the end, nothing empty in it, no last slash.

    Some servers decode twice, take a backslash for a slash, or leave out what follows a `;`. Case stays.
    """
    return "/" + "/".join(filter(None, _segments(path)))


def _segments(path: str) -> list[str]:
    while (decoded := unquote(path)) != path:
        path = decoded
    return [segment.partition(";")[0] for segment in re.split(r"[/\\]", path)]
