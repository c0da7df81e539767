"""Audits the lock: `python -m deploy.audit`, in the environment that `audit.lock` names; `make audit` makes that.

pip-audit ends well where its database does not know a package: it calls that skipped. Here nothing counts as audited
that was not looked up. The exit code is 0 if all of it was, and has no known vulnerability; 1 if one has; 2 if it could
not be told, which is said, and with `--if-reachable` 0 all the same.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

__all__ = ["Verdict", "main", "verdict_of"]

ROOT: Final = Path(__file__).parents[2]
LOCKS: Final = ("requirements.lock", "deploy/audit/audit.lock")
DATABASES: Final = ("pypi", "osv")
"""The first that knows all packages is believed: the one is as good as the other."""
ANSWER_SECONDS: Final = 15
AUDIT_SECONDS: Final = 600


class Verdict(NamedTuple):
    """What a database came to: the code to end with, and what to say."""

    code: int
    says: str


def verdict_of(lock: str, database: str, report: Mapping[str, Any] | None, complaint: str) -> Verdict:
    """Judge what pip-audit reports, None if it reported nothing; `complaint` is what it said beside that."""
    if report is None:
        last = complaint.strip().splitlines()[-1:] or ["no reason given"]
        return Verdict(2, f"{lock}: NOT AUDITED, {database} could not be asked: {last[0][:300]}")
    packages = report["dependencies"]
    found = [
        f"{lock}: {package['name']} {package['version']} has {', '.join(each['id'] for each in package['vulns'])}"
        for package in packages
        if package.get("vulns")
    ]
    if found:
        return Verdict(1, "\n".join(found))
    skipped = [package["name"] for package in packages if "skip_reason" in package]
    if skipped or not packages:
        return Verdict(
            2, f"{lock}: NOT AUDITED, {database} knows nothing of {len(skipped)} of {len(packages)} packages"
        )
    return Verdict(0, f"{lock}: none of {len(packages)} packages has a vulnerability that {database} knows of")


def _asked(lock: str, database: str) -> Verdict:
    command = [
        sys.executable,
        "-m",
        "pip_audit",
        "--requirement",
        str(ROOT / lock),
        "--vulnerability-service",
        database,
    ]
    options = ["--disable-pip", "--require-hashes", "--format", "json", "--progress-spinner", "off"]
    try:
        asked = subprocess.run(  # noqa: S603  # what it is started with stands here
            [*command, *options, "--timeout", str(ANSWER_SECONDS)],
            capture_output=True,
            text=True,
            check=False,
            timeout=AUDIT_SECONDS,
        )
    except subprocess.TimeoutExpired:
        return verdict_of(lock, database, None, f"it took more than {AUDIT_SECONDS} s")
    try:
        report = json.loads(asked.stdout)
    except ValueError:
        report = None  # It has ended before it had one.
    return verdict_of(lock, database, report, asked.stderr)


def main(arguments: Sequence[str] | None = None) -> int:
    """Audit every lock, say what came of it, and return the code to end with."""
    parser = argparse.ArgumentParser(prog="python -m deploy.audit", description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--if-reachable", action="store_true", help="what cannot be audited is said, and no failure")
    options = parser.parse_args(arguments)
    codes = set()
    for lock in LOCKS:
        for database in DATABASES:
            verdict = _asked(lock, database)
            sys.stdout.write(f"{verdict.says}\n")
            if verdict.code != 2:  # noqa: PLR2004  # as it stands above
                break
        codes.add(verdict.code)
    if 1 in codes:
        return 1
    return 0 if options.if_reachable else max(codes)


if __name__ == "__main__":
    sys.exit(main())
