"""What was sent, quoted where it is refused: as it was if it is short, and else its beginning, and how much it was."""

from __future__ import annotations

from typing import Any, Final

__all__ = ["quoted"]

QUOTED_CHARACTERS: Final = 1000
"""How much of one value is quoted, give or take its punctuation: enough to know it again."""
QUOTED_LEVELS: Final = 8
"""How deep in a value quoting goes."""
ELSE: Final = "…"


def quoted(value: Any) -> Any:
    """Return a value of JSON's, or bytes, with a mark where something is left out: `…` and how much."""
    return _Quote().of(value, QUOTED_LEVELS)


class _Quote:
    """One value's quotation, and how much of it may still be said."""

    def __init__(self) -> None:
        self._left = QUOTED_CHARACTERS

    def of(self, value: Any, levels: int) -> Any:
        """Quote what is in the value, so many levels of it."""
        self._left -= 1
        match value:
            case str():
                return self._begun(value, ELSE, "characters")
            case bytes():
                return self._begun(value, ELSE.encode(), "bytes")
            case list() | dict() if value and levels == 0:
                return ELSE
            case list():
                return self._list(value, levels)
            case dict():
                return self._dict(value, levels)
        self._left -= len(str(value)) if isinstance(value, int | float) else 0
        return value

    def _begun(self, value: Any, mark: Any, unit: str) -> Any:
        room = max(self._left, 0)
        self._left -= len(value)
        if len(value) <= room:
            return value
        said = f" ({len(value)} {unit})"
        return value[:room] + mark + (said if isinstance(value, str) else said.encode())

    def _list(self, value: list[Any], levels: int) -> list[Any]:
        items: list[Any] = []
        for item in value:
            if self._left <= 0:
                items.append(f"{ELSE} ({len(value) - len(items)} more)")
                break
            items.append(self.of(item, levels - 1))
        return items

    def _dict(self, value: dict[Any, Any], levels: int) -> dict[Any, Any]:
        items: dict[Any, Any] = {}
        for key, item in value.items():
            if self._left <= 0:
                items[ELSE] = f"({len(value) - len(items)} more)"
                break
            name = self.of(key, levels)
            items[name] = self.of(item, levels - 1)
        return items
