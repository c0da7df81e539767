"""The recording rules and alerts: each fires on what it is about, and says what to do."""

import re
from pathlib import Path
from typing import Any

import msgspec
import pytest

from runstream.broker.metrics import BROKER_METRICS
from runstream.gateway.metrics import GATEWAY_METRICS
from runstream.gateway.workers_metrics import WORKERS_METRICS
from tests.deploy.prometheus import RULES, groups, promtool
from tests.deploy.tools import ROOT

CASES = sorted((Path(__file__).parent / "rules").glob("*.test.yaml"))
RUNBOOKS = ROOT / "docs" / "runbooks"
THRESHOLDS, RECORDINGS, ALERTS = groups().values()
SECTIONS = ["What it means", "What users see", "How to look", "What to do"]


def shown() -> set[str]:
    """Every name of a series that a gateway or a broker shows."""
    metrics = (*GATEWAY_METRICS, *WORKERS_METRICS, *BROKER_METRICS)
    plain = {metric.shown_as for metric in metrics if metric.kind != "histogram"}
    parts = {f"{each.name}_{part}" for each in metrics if each.buckets for part in ("bucket", "sum", "count")}
    return plain | parts


def named(expression: str) -> set[str]:
    """The series that an expression asks for."""
    return set(re.findall(r"\brunstream[_:][a-z0-9_:]+", expression))


def cases() -> list[dict[str, Any]]:
    return [case for path in CASES for case in msgspec.yaml.decode(path.read_bytes())["tests"]]


def test_prometheus_takes_the_rules() -> None:
    """The file can be loaded as it is, without a chart."""
    checked = promtool("check", "rules", RULES)
    assert (checked.returncode, "SUCCESS" in checked.stdout) == (0, True), checked.stdout + checked.stderr


@pytest.mark.parametrize("path", CASES, ids=lambda path: path.name)
def test_alerts_fire_when_they_should(path: Path) -> None:
    """And only then: each case says who fires, and who does not yet."""
    tested = promtool("test", "rules", path)
    assert tested.returncode == 0, tested.stdout + tested.stderr


@pytest.mark.parametrize("rule", ALERTS, ids=lambda rule: rule["alert"])
def test_an_alert_has_a_case_in_which_it_is_silent_and_one_in_which_it_fires(rule: dict[str, Any]) -> None:
    """In the same story: a moment before, nothing fires at all."""
    name = rule["alert"]
    fires = [
        case
        for case in cases()
        for asked in case["promql_expr_test"]
        for sample in asked["exp_samples"]
        if f'alertname="{name}"' in sample["labels"] and f'severity="{rule["labels"]["severity"]}"' in sample["labels"]
    ]
    assert fires, "no case in which it fires"
    assert any(not asked["exp_samples"] for case in fires for asked in case["promql_expr_test"])


@pytest.mark.parametrize("rule", THRESHOLDS, ids=lambda rule: rule["record"])
def test_a_threshold_decides(rule: dict[str, Any], tmp_path: Path) -> None:
    """Replaced as the chart does it, by one that is never reached, it silences its alert: that case fails."""
    changed = msgspec.yaml.decode(RULES.read_bytes())
    for group in changed["groups"]:
        for each in group["rules"]:
            if each.get("record") == rule["record"]:
                each["expr"] = "vector(1e9)"
    (tmp_path / "rules.yaml").write_bytes(msgspec.yaml.encode(changed))
    case = re.sub(r"rule_files: .*", "rule_files: [rules.yaml]", CASES[0].read_text(encoding="utf-8"))
    (tmp_path / "case.yaml").write_text(case, encoding="utf-8")
    tested = promtool("test", "rules", tmp_path / "case.yaml")
    assert (tested.returncode, "FAILED" in tested.stdout + tested.stderr) == (1, True)


def test_rules_ask_for_what_is_shown_or_recorded() -> None:
    """A name that is mistyped would never give anything, and no alert would ever fire."""
    recorded = {rule["record"] for rule in (*THRESHOLDS, *RECORDINGS)}
    for rule in (*RECORDINGS, *ALERTS):
        assert named(rule["expr"]) - shown() - recorded == set(), rule
    used = {name for rule in ALERTS for name in named(rule["expr"])}
    assert {rule["record"] for rule in THRESHOLDS} <= used
    assert all(re.fullmatch(r"vector\([0-9.]+\)", rule["expr"]) for rule in THRESHOLDS)


@pytest.mark.parametrize("rule", ALERTS, ids=lambda rule: rule["alert"])
def test_an_alert_says_what_it_is_and_where_to_read_on(rule: dict[str, Any]) -> None:
    """Its page has the four questions that somebody has at night, in their order."""
    assert rule["labels"]["severity"] in {"critical", "warning"}
    assert rule["annotations"].keys() == {"summary", "description", "runbook_url"}
    assert rule["annotations"]["runbook_url"] == f"docs/runbooks/{rule['alert']}.md"
    page = (ROOT / rule["annotations"]["runbook_url"]).read_text(encoding="utf-8")
    assert re.findall(r"^## (.*)$", page, flags=re.MULTILINE) == SECTIONS
    known = shown() | {rule["record"] for rule in RECORDINGS} | {metric.name for metric in GATEWAY_METRICS}
    assert named(page) - known == set()


def test_there_is_a_page_for_each_alert_and_no_other() -> None:
    """The list of runbooks has them all, with their severity, in the order of the file."""
    listed = re.findall(
        r"^\| \[(\w+)\]\(\1\.md\) \| (\w+) \|", (RUNBOOKS / "README.md").read_text("utf-8"), re.MULTILINE
    )
    assert listed == [(rule["alert"], rule["labels"]["severity"]) for rule in ALERTS]
    assert {path.stem for path in RUNBOOKS.glob("*.md")} == {name for name, _ in listed} | {"README"}
