"""What is written from the source: the pages of docs/reference, `python -m deploy.reference`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from deploy.reference import errors, http, settings

if TYPE_CHECKING:
    from collections.abc import Mapping

__all__ = ["PAGES", "REFERENCE", "pages", "write"]

REFERENCE = Path(__file__).parents[2] / "docs" / "reference"
PAGES = {"settings.md": settings.page, "http.md": http.page, "errors.md": errors.page}


def pages() -> Mapping[str, str]:
    """Say what each page is to be."""
    return {name: page() for name, page in PAGES.items()}


def write() -> None:
    """Write all of them."""
    for name, text in pages().items():
        (REFERENCE / name).write_text(text, encoding="utf-8")
