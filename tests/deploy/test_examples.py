"""The charts and values that are shown to people fit the chart that they are about."""

import re
import shutil
from pathlib import Path
from typing import Any

import yaml

from runstream.broker.settings import BrokerSettings, resolved
from tests.deploy.chart import EXAMPLES, helm, of_kind, pods, template
from tests.deploy.tools import ROOT

WITH_NATS = yaml.safe_load((EXAMPLES / "with-nats" / "values.yaml").read_text(encoding="utf-8"))


def chart_with_nats(directory: Path) -> Path:
    """The example, with a chart in place of NATS's that makes nothing: no machine of ours reaches its repository."""
    shutil.copytree(ROOT / "deploy", directory, dirs_exist_ok=True)
    chart = directory / "examples" / "with-nats"
    description = yaml.safe_load((chart / "Chart.yaml").read_text(encoding="utf-8"))
    (stand_in,) = (each for each in description["dependencies"] if each["name"] == "nats")
    made = directory / "nats"
    (made / "templates").mkdir(parents=True)
    (made / "Chart.yaml").write_text(yaml.safe_dump({"apiVersion": "v2", "name": "nats", "version": "1.3.9"}))
    stand_in["repository"] = "file://../../nats"
    (chart / "Chart.yaml").write_text(yaml.safe_dump(description), encoding="utf-8")
    return chart


def test_runstream_with_nats_renders(tmp_path: Path) -> None:
    """The umbrella's values are values of the chart, and services look for the servers that it makes."""
    chart = chart_with_nats(tmp_path)
    helm("4", "dependency", "build", chart)
    objects = template("4", chart)
    assert len(of_kind(objects, "Deployment")) == 2
    servers = WITH_NATS["nats"]["config"]["cluster"]["replicas"]
    for _, pod in pods(objects):
        for variable in pod["spec"]["containers"][0]["env"]:
            if variable["name"] == "RUNSTREAM_NATS_URL":
                name = WITH_NATS["nats"]["fullnameOverride"]
                expected = [f"nats://{name}-{number}.{name}-headless:4222" for number in range(servers)]
                assert variable["value"].split(",") == expected


def test_runstream_fits_the_nats_it_comes_with() -> None:
    """As many copies as there are servers, room for all that logs may have, and what deploy/nats-server.conf has."""
    config: dict[str, Any] = WITH_NATS["nats"]["config"]
    said = {name.removeprefix("RUNSTREAM_").lower(): value for name, value in WITH_NATS["runstream"]["config"].items()}
    settings = resolved(BrokerSettings, said)
    assert settings.replicas == config["cluster"]["replicas"]
    size = int(config["jetstream"]["fileStore"]["pvc"]["size"].removesuffix("Gi")) * 2**30
    assert settings.max_log_bytes * settings.shards * 2 <= size
    ours = (ROOT / "deploy" / "nats-server.conf").read_text(encoding="utf-8")
    for name, value in {
        "max_payload": config["merge"]["max_payload"],
        "sync_interval": config["jetstream"]["merge"]["sync_interval"],
        "default_max_consumers": config["jetstream"]["merge"]["limits"]["default_max_consumers"],
    }.items():
        assert re.search(rf"^\s*{name}: {re.escape(str(value))}$", ours, flags=re.MULTILINE), name


def test_what_production_says_are_settings() -> None:
    """Every setting in production.yaml is taken by the services, with its value."""
    values = yaml.safe_load((EXAMPLES / "production.yaml").read_text(encoding="utf-8"))
    said = {name.removeprefix("RUNSTREAM_").lower(): str(value) for name, value in values["config"].items()}
    assert said.keys() <= BrokerSettings.model_fields.keys()
    settings = resolved(BrokerSettings, said)
    assert (settings.replicas, settings.shards, settings.retention) == (3, 4, 24 * 3600)
