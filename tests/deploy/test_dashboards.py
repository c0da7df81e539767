"""The dashboards: made of what is declared, fit for Grafana, and every query one that Prometheus takes."""

import itertools
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest

from deploy.observability.dashboards import DASHBOARDS, FOLDER
from runstream.broker.metrics import BROKER_METRICS
from runstream.gateway.metrics import GATEWAY_METRICS
from runstream.gateway.workers_metrics import WORKERS_METRICS
from tests.deploy.prometheus import promtool
from tests.deploy.test_rules import RECORDINGS, THRESHOLDS, named, shown

FILES = sorted(FOLDER.glob("*.json"))
KINDS = {"row", "stat", "timeseries", "heatmap", "text"}


def model(path: Path) -> dict[str, Any]:
    found: dict[str, Any] = msgspec.json.decode(path.read_bytes())
    return found


def panels(path: Path) -> list[dict[str, Any]]:
    return [panel for panel in model(path)["panels"] if panel["type"] != "row"]


def queries(path: Path) -> Iterator[str]:
    """Every expression of a dashboard, as Grafana fills it in when all is chosen."""
    for panel in panels(path):
        for target in panel.get("targets", ()):
            yield filled_in(target["expr"])


def filled_in(expression: str) -> str:
    """An expression with all namespaces and jobs, over ten seconds."""
    for name, value in (("$__rate_interval", "10s"), ("$namespace", ".*"), ("$job", ".*")):
        expression = expression.replace(name, value)
    return expression


def test_they_are_what_the_script_makes() -> None:
    """Nobody edits them by hand: `python -m deploy.observability.dashboards`."""
    assert {path.name: path.read_text(encoding="utf-8") for path in FILES} == {
        name: dashboard.json() for name, dashboard in DASHBOARDS.items()
    }


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.name)
def test_panels_have_places_of_their_own(path: Path) -> None:
    """No two share an id or a piece of the grid, none reaches beyond it, and each says what it shows."""
    made = model(path)["panels"]
    assert len({panel["id"] for panel in made}) == len(made)
    assert {panel["type"] for panel in made} <= KINDS
    taken: set[tuple[int, int]] = set()
    for panel in made:
        place = panel["gridPos"]
        assert place["x"] + place["w"] <= 24, panel["title"]
        rows, columns = (range(place[at], place[at] + place[size]) for at, size in (("y", "h"), ("x", "w")))
        cells = set(itertools.product(rows, columns))
        assert not cells & taken, panel["title"]
        taken |= cells
        assert panel["title"]
        if panel["type"] not in {"row", "text"}:
            assert panel["description"], panel["title"]
            assert panel["targets"], panel["title"]
            assert len({target["refId"] for target in panel["targets"]}) == len(panel["targets"])
    assert len({panel["title"] for panel in made if panel["type"] != "row"}) == len(panels(path))


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.name)
def test_a_data_source_is_chosen_by_who_looks(path: Path) -> None:
    """No panel, query or variable names one of its own."""
    board = model(path)
    variables = {each["name"]: each for each in board["templating"]["list"]}
    assert variables.keys() == {"datasource", "namespace", "job"}
    assert variables["datasource"]["type"] == "datasource"
    everything = [*panels(path), *(target for panel in panels(path) for target in panel.get("targets", ()))]
    everything += [variables["namespace"], variables["job"]]
    assert [each["datasource"]["uid"] for each in everything] == ["${datasource}"] * len(everything)


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.name)
def test_prometheus_parses_every_query(path: Path, tmp_path: Path) -> None:
    """As rules, which is how promtool reads expressions; and none asks for what nobody shows or records."""
    rules = [{"record": f"query:{number}", "expr": query} for number, query in enumerate(queries(path))]
    (tmp_path / "rules.yaml").write_bytes(msgspec.json.encode({"groups": [{"name": "queries", "rules": rules}]}))
    checked = promtool("check", "rules", tmp_path / "rules.yaml")
    assert checked.returncode == 0, checked.stdout + checked.stderr
    recorded = {rule["record"] for rule in (*THRESHOLDS, *RECORDINGS)}
    assert {name for query in queries(path) for name in named(query)} - shown() - recorded == set()


def test_every_metric_is_on_a_dashboard() -> None:
    """What is worth counting is worth looking at."""
    seen = {name for path in FILES for query in queries(path) for name in named(query)}
    for metric in (*GATEWAY_METRICS, *WORKERS_METRICS, *BROKER_METRICS):
        assert any(re.fullmatch(rf"{metric.name}(_total|_bucket|_count)?", name) for name in seen), metric.name
