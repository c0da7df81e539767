"""examples/capture: a platform in FastAPI that knows nothing of runstream, behind it."""

import ast
from pathlib import Path

from tests.examples.test_library import QUESTION, typed
from tests.support.documents import ROOT, blocks_below, desk_in
from tests.support.http import Event


def tokens(lines: list[str]) -> str:
    """What the platform said, in the words of its own events."""
    events = [Event(None, line.removeprefix("data: ")) for line in lines if line.startswith("data: {")]
    return "".join(event.json.get("token", "") for event in events)


def test_the_platform_knows_nothing_of_runstream() -> None:
    """It imports nothing of it, and names nothing of it."""
    tree = ast.parse((ROOT / "examples" / "capture" / "app.py").read_text(encoding="utf-8"))
    words = {node.value for node in ast.walk(tree) if isinstance(node, ast.Constant) and isinstance(node.value, str)}
    assert not [word for word in words - {ast.get_docstring(tree, clean=False)} if "runstream" in word]
    imported = {node.module for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)}
    assert imported <= {"__future__", "collections.abc", "fastapi", "fastapi.responses", "pydantic"}


async def test_it_does_what_its_page_says(tmp_path: Path) -> None:
    """One command starts both; an answer is left, and the rest of it is there: each word once."""
    lines = await typed(desk_in(tmp_path), *blocks_below("examples/capture/README.md", "Capture mode", "sh"))
    whole = f"You asked: {QUESTION} "
    assert tokens(lines) == whole
    assert 0 < len(tokens((tmp_path / "first").read_text(encoding="utf-8").splitlines())) < len(whole)
