"""docs/reference was written from the source as it is: `python -m deploy.reference`."""

import pytest

from deploy.reference import PAGES, REFERENCE
from deploy.reference.errors import CUTS
from deploy.reference.http import documents
from runstream.schemas import ERROR_TYPES
from tests.unit.test_docs import PROTOCOL, code, table


@pytest.mark.parametrize("name", PAGES)
def test_a_page_is_current(name: str) -> None:
    """What it says is what the source has."""
    assert (REFERENCE / name).read_text(encoding="utf-8") == PAGES[name]()


def test_every_operation_has_a_section() -> None:
    """Of both ports; and the list at the top leads to it."""
    page = PAGES["http.md"]()
    described = {
        f"{method.upper()} {path}"
        for document in documents()
        for path, item in document["paths"].items()
        for method in item
    }
    assert len(described) > 30
    for name in described:
        assert f"\n### `{name}`\n" in page
        assert f"[`{name}`](#" in page


def test_every_error_type_of_a_run_is_there() -> None:
    """In the order of the catalogue."""
    assert [code(row[0])[0] for row in table(PAGES["errors.md"](), "Of a run")] == list(ERROR_TYPES)


def test_what_ends_no_run_is_told_apart() -> None:
    """Those that come with no stop reason in PROTOCOL.md end a response, and not its run."""
    rows = table(PROTOCOL, "Error types")
    assert {name for row in rows if row[1] == "none" for name in code(row[0])} == CUTS
