"""The audit of the lock: nothing passes for audited that was not looked up."""

import subprocess
from typing import Any

import pytest

from deploy.audit import __main__ as audit

CLEAN = {"name": "aiohttp", "version": "1", "vulns": []}
BAD = {"name": "jinja2", "version": "2", "vulns": [{"id": "PYSEC-1"}, {"id": "PYSEC-2"}]}
SKIPPED = {"name": "yarl", "skip_reason": "Dependency not found on PyPI and could not be audited: yarl (1)"}


@pytest.mark.parametrize(
    ("packages", "code", "says"),
    [
        ([CLEAN, CLEAN], 0, "lock: none of 2 packages has a vulnerability that pypi knows of"),
        ([CLEAN, BAD], 1, "lock: jinja2 2 has PYSEC-1, PYSEC-2"),
        ([SKIPPED, BAD], 1, "lock: jinja2 2 has PYSEC-1, PYSEC-2"),
        ([CLEAN, SKIPPED], 2, "lock: NOT AUDITED, pypi knows nothing of 1 of 2 packages"),
        ([], 2, "lock: NOT AUDITED, pypi knows nothing of 0 of 0 packages"),
        (None, 2, "lock: NOT AUDITED, pypi could not be asked: ERROR: no route"),
    ],
)
def test_what_is_not_known_is_not_clean(packages: list[Any] | None, code: int, says: str) -> None:
    """pip-audit itself would end with 0 where its database knows of nothing."""
    report = None if packages is None else {"dependencies": packages, "fixes": []}
    assert audit.verdict_of("lock", "pypi", report, "a warning\nERROR: no route\n") == (code, says)


@pytest.mark.parametrize(
    ("said", "code", "code_if_reachable"),
    [
        ('{"dependencies": [{"name": "a", "version": "1", "vulns": []}]}', 0, 0),
        ('{"dependencies": [{"name": "a", "version": "1", "vulns": [{"id": "X"}]}]}', 1, 1),
        ("", 2, 0),
    ],
)
def test_a_network_that_fails_is_said(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], said: str, code: int, code_if_reachable: int
) -> None:
    """It fails who asks for an audit, and not who asks for one if there can be one; a vulnerability fails both."""
    done = subprocess.CompletedProcess([], 1, stdout=said, stderr="ERROR: cannot connect")
    monkeypatch.setattr(subprocess, "run", lambda *_, **__: done)
    assert audit.main([]) == code
    assert audit.main(["--if-reachable"]) == code_if_reachable
    assert ("NOT AUDITED" in capsys.readouterr().out) == (code == 2)
