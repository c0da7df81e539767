"""Grafana's JSON, as far as the dashboards need it: queries of declared metrics, panels, and a grid that they fill."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any, Literal

import msgspec

if TYPE_CHECKING:
    from collections.abc import Sequence

    from runstream.broker.meters import Metric

__all__ = ["Dashboard", "Panel", "Query", "latest", "quantile", "rate", "ratio", "spread"]

COLUMNS = 24
SELECTED = 'namespace=~"$namespace",job=~"$job"'
"""Whose series are shown. A label that a scrape does not set matches, too: the variables' All is `.*`."""
DATASOURCE = {"type": "prometheus", "uid": "${datasource}"}
KEPT = {"includeVars": True, "keepTime": True}
SCHEMA_VERSION = 39
"""Grafana 10.4's; later ones read it, and bring it up to date."""


class Query(msgspec.Struct, frozen=True):
    """One expression, and how its series are called."""

    expr: str
    legend: str


class Panel(msgspec.Struct, frozen=True):
    """One panel. `says` is its help. `width` is of `COLUMNS`."""

    title: str
    queries: Sequence[Query]
    says: str
    unit: str = "short"
    kind: Literal["timeseries", "stat", "heatmap", "text"] = "timeseries"
    width: int = 8
    height: int = 8
    is_stacked: bool = False
    red_above: float | None = None
    red_below: float | None = None


class Dashboard(msgspec.Struct, frozen=True):
    """A dashboard: rows of panels, from the top."""

    uid: str
    title: str
    says: str
    rows: Sequence[tuple[str, Sequence[Panel]]]

    def json(self) -> str:
        """Give what Grafana imports, or is provisioned with."""
        return json.dumps(self._model(), indent=2, ensure_ascii=False) + "\n"

    def _model(self) -> dict[str, Any]:
        return {
            "uid": self.uid,
            "title": self.title,
            "description": self.says,
            "tags": ["runstream"],
            "schemaVersion": SCHEMA_VERSION,
            "editable": True,
            "graphTooltip": 1,
            "refresh": "30s",
            "time": {"from": "now-1h", "to": "now"},
            "timezone": "browser",
            "templating": {"list": _variables()},
            "annotations": {"list": []},
            "links": [
                {
                    "type": "dashboards",
                    "title": "runstream",
                    "tags": ["runstream"],
                    "includeVars": True,
                    "keepTime": True,
                }
            ],
            "panels": self._panels(),
        }

    def _panels(self) -> list[dict[str, Any]]:
        panels: list[dict[str, Any]] = []
        y = 0
        for title, row in self.rows:
            head = {"id": len(panels) + 1, "type": "row", "title": title, "collapsed": False, "panels": []}
            panels.append({**head, "gridPos": {"x": 0, "y": y, "w": COLUMNS, "h": 1}})
            y += 1
            x = tallest = 0
            for panel in row:
                if x + panel.width > COLUMNS:
                    x, y, tallest = 0, y + tallest, 0
                place = {"x": x, "y": y, "w": panel.width, "h": panel.height}
                panels.append({"id": len(panels) + 1, **_panel(panel), "gridPos": place})
                x, tallest = x + panel.width, max(tallest, panel.height)
            y += tallest
        return panels


def latest(metric: Metric, *by: str, legend: str = "", match: str = "") -> Query:
    """Ask for a gauge, added up over processes as it says of itself."""
    return Query(_over(metric.over, by, _selected(metric.shown_as, match)), legend or _legend(by))


def rate(metric: Metric, *by: str, legend: str = "", match: str = "") -> Query:
    """Ask how often a counter counts, in a second; of a histogram, how often it was told anything."""
    name = f"{metric.name}_count" if metric.kind == "histogram" else metric.shown_as
    return Query(_over("sum", by, f"rate({_selected(name, match)}[$__rate_interval])"), legend or _legend(by))


def quantile(of: float, metric: Metric, *by: str, match: str = "") -> Query:
    """Ask for a quantile of a histogram."""
    buckets = _over("sum", ("le", *by), f"rate({_selected(f'{metric.name}_bucket', match)}[$__rate_interval])")
    return Query(f"histogram_quantile({of:g}, {buckets})", " ".join([f"p{100 * of:g}", _legend(by)]).strip())


def spread(metric: Metric, match: str = "") -> Query:
    """Ask for all of a histogram, for a heatmap."""
    buckets = _selected(f"{metric.name}_bucket", match)
    return Query(_over("sum", ("le",), f"increase({buckets}[$__rate_interval])"), "{{le}}")


def ratio(part: Query, whole: Query, legend: str) -> Query:
    """Ask for a part of a whole, nothing while that is nothing."""
    return Query(f"{part.expr}\n/ ({whole.expr} > 0)", legend)


def _selected(name: str, match: str) -> str:
    return f"{name}{{{SELECTED}{',' if match else ''}{match}}}"


def _over(how: str, by: Sequence[str], inner: str) -> str:
    return f"{how} by ({', '.join(by)}) ({inner})" if by else f"{how}({inner})"


def _legend(by: Sequence[str]) -> str:
    return " ".join(f"{{{{{label}}}}}" for label in by)


def _variables() -> list[dict[str, Any]]:
    source = {"name": "datasource", "label": "Prometheus", "type": "datasource", "query": "prometheus"}
    return [
        {**source, "current": {}, "hide": 0, "includeAll": False, "multi": False, "refresh": 1},
        _variable("namespace", "label_values(runstream_nats_connected, namespace)"),
        _variable("job", 'label_values(runstream_nats_connected{namespace=~"$namespace"}, job)'),
    ]


def _variable(name: str, query: str) -> dict[str, Any]:
    return {
        "name": name,
        "type": "query",
        "datasource": DATASOURCE,
        "query": {"query": query, "refId": name},
        "definition": query,
        "includeAll": True,
        "allValue": ".*",
        "multi": True,
        "current": {"selected": True, "text": ["All"], "value": ["$__all"]},
        "refresh": 2,
        "sort": 1,
        "hide": 0,
    }


def _panel(panel: Panel) -> dict[str, Any]:
    if panel.kind == "text":
        return {
            "type": "text",
            "title": panel.title,
            "datasource": DATASOURCE,
            "options": {"mode": "markdown", "content": panel.says},
        }
    is_heatmap = panel.kind == "heatmap"
    return {
        "type": panel.kind,
        "title": panel.title,
        "description": panel.says,
        "datasource": DATASOURCE,
        "targets": [
            {
                "refId": chr(ord("A") + number),
                "datasource": DATASOURCE,
                "expr": query.expr,
                "legendFormat": query.legend,
                "editorMode": "code",
                "range": panel.kind != "stat",
                "instant": panel.kind == "stat",
                "format": "heatmap" if is_heatmap else "time_series",
            }
            for number, query in enumerate(panel.queries)
        ],
        "fieldConfig": {"defaults": _defaults(panel), "overrides": []},
        "options": _options(panel),
    }


def _defaults(panel: Panel) -> dict[str, Any]:
    steps: list[dict[str, Any]] = [{"color": "green", "value": None}]
    if panel.red_above is not None:
        steps.append({"color": "red", "value": panel.red_above})
    if panel.red_below is not None:
        steps = [{"color": "red", "value": None}, {"color": "green", "value": panel.red_below}]
    defaults: dict[str, Any] = {
        "unit": panel.unit,
        "min": 0,
        "thresholds": {"mode": "absolute", "steps": steps},
        "color": {"mode": "thresholds" if panel.kind == "stat" else "palette-classic"},
    }
    if panel.kind == "timeseries":
        defaults["custom"] = {
            "drawStyle": "line",
            "lineWidth": 1,
            "fillOpacity": 30 if panel.is_stacked else 5,
            "showPoints": "never",
            "spanNulls": False,
            "stacking": {"mode": "normal" if panel.is_stacked else "none", "group": "A"},
            "thresholdsStyle": {"mode": "line" if panel.red_above is not None else "off"},
        }
    return defaults


def _options(panel: Panel) -> dict[str, Any]:
    match panel.kind:
        case "stat":
            reduce = {"calcs": ["lastNotNull"], "fields": "", "values": False}
            return {"colorMode": "value", "graphMode": "none", "justifyMode": "auto", "reduceOptions": reduce}
        case "heatmap":
            return {
                "calculate": False,
                "yAxis": {"unit": panel.unit},
                "color": {"mode": "scheme", "scheme": "Oranges", "steps": 64},
                "tooltip": {"mode": "single", "yHistogram": False},
                "legend": {"show": False},
            }
        case _:
            legend = {"displayMode": "list", "placement": "bottom", "showLegend": True, "calcs": []}
            return {"legend": legend, "tooltip": {"mode": "multi", "sort": "desc"}}
