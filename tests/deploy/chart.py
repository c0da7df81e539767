"""The chart as helm makes it: rendered objects, and what is found in them."""

import functools
import json
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml

from tests.deploy.tools import HELM, ROOT

CHART = ROOT / "deploy" / "helm" / "runstream"
EXAMPLES = ROOT / "deploy" / "examples"
VALUES = {
    "defaults": [Path(__file__).parent / "values" / "defaults.yaml"],
    "production": [EXAMPLES / "production.yaml"],
    "everything": [Path(__file__).parent / "values" / "everything.yaml"],
    "the others": [Path(__file__).parent / "values" / "the-others.yaml"],
}
FORMS = [*VALUES, "sidecar"]
"""What is rendered: the chart with each of these values, and the example of a platform's chart that has it inside."""

RELEASE = "release"
NAMESPACE = "agents"

Object = dict[str, Any]


class Refused(Exception):
    """Helm does not take these values; its text is the message."""


def helm(major: str, *args: str | Path) -> str:
    """What helm says on stdout. Raises `Refused`."""
    done = subprocess.run([HELM[major], *args], capture_output=True, text=True, check=False)
    if done.returncode:
        raise Refused(done.stderr)
    return done.stdout


def template(major: str, chart: Path, *args: str | Path) -> list[Object]:
    """The objects that a chart is made into."""
    text = helm(major, "template", RELEASE, chart, "--namespace", NAMESPACE, "--kube-version", "1.30.0", *args)
    return [found for found in yaml.safe_load_all(text) if found]


@functools.cache
def rendered(form: str, major: str = "4") -> list[Object]:
    """The objects of a form; not to be changed, as others are given the same."""
    if form != "sidecar":
        return template(major, CHART, *(arg for path in VALUES[form] for arg in ("--values", path)))
    with tempfile.TemporaryDirectory() as temporary:
        # Its dependency is put into it: not into the source.
        shutil.copytree(ROOT / "deploy", temporary, dirs_exist_ok=True)
        inside = Path(temporary, "examples", "sidecar")
        helm(major, "dependency", "build", inside)
        return template(major, inside)


def with_values(values: Object, *, major: str = "4") -> list[Object]:
    """The objects of the chart with these values over its own, and over what else has to be said."""
    values = {"auth": {"insecure": True}} | values
    with tempfile.NamedTemporaryFile("w", suffix=".json") as file:
        json.dump(values, file)
        file.flush()
        return template(major, CHART, "--values", file.name)


def of_kind(objects: list[Object], kind: str) -> dict[str, Object]:
    """Those of a kind, by name."""
    return {each["metadata"]["name"]: each for each in objects if each["kind"] == kind}


def pods(objects: list[Object]) -> Iterator[tuple[str, Object]]:
    """Every pod, or what pods are made of, with the object's name: its `metadata` and its `spec`."""
    for each in objects:
        name = f"{each['kind']} {each['metadata']['name']}"
        if each["kind"] == "Pod":
            yield name, each
        elif "template" in each.get("spec", {}):
            yield name, each["spec"]["template"]


def labels_of(each: Object) -> dict[str, str]:
    return dict(each["metadata"].get("labels", {}))


def selects(selector: dict[str, str], labels: dict[str, str]) -> bool:
    return selector.items() <= labels.items()
