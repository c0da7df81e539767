"""Tests that are run again and again: how often, and what is told of the pass that fails."""

from pathlib import Path

import pytest

from tests.again import LIFE, OTHERS, main, parsed

ROOT = Path(__file__).parents[2]


def test_as_many_passes_as_asked_for(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Each prints into a file of its own."""
    (tmp_path / "test_it.py").write_text("def test_it() -> None:\n    pass\n", encoding="utf-8")
    assert main(["--times", "3", "--lanes", "2", "--directory", str(tmp_path / "logs"), str(tmp_path)]) == 0
    assert "3 of 3 green" in capsys.readouterr().out
    assert sorted(path.name for path in (tmp_path / "logs").iterdir()) == ["pass-1.log", "pass-2.log", "pass-3.log"]


def test_the_first_that_fails_is_the_last(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """What it printed is told, with the seed of its order, and no other pass begins."""
    once = tmp_path / "once"
    (tmp_path / "test_it.py").write_text(
        f"from pathlib import Path\n\ndef test_it() -> None:\n    Path({str(once)!r}).touch(exist_ok=False)\n",
        encoding="utf-8",
    )
    assert main(["--times", "5", "--lanes", "1", "--directory", str(tmp_path / "logs"), str(tmp_path)]) == 1
    told = capsys.readouterr().out
    assert "1 of 5 green" in told
    assert "pass 2 has failed" in told
    assert "--randomly-seed=" in told
    assert "FileExistsError" in told
    assert not (tmp_path / "logs" / "pass-3.log").exists() or not (tmp_path / "logs" / "pass-3.log").stat().st_size


def test_the_life_of_a_run_is_what_is_tested_by_default() -> None:
    """All of it is there."""
    assert tuple(parsed([]).rest) == (*LIFE, *(f"--ignore={path}" for path in OTHERS))
    assert [path for path in (*LIFE, *OTHERS) if not (ROOT / path).exists()] == []
