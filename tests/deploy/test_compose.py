"""compose.yaml fits together: what it mounts is there, what it names exists, and its nats-servers make a cluster.

There is no Docker to start it with: what is tested is the files, and the programs that can be had without it.
"""

import re
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import yaml

from deploy.observability.dashboards import FOLDER
from runstream.broker.embedded import find_binary
from runstream.broker.settings import BrokerSettings, resolved
from tests.deploy.prometheus import RULES, promtool
from tests.deploy.proxies import SHIPPED
from tests.deploy.tools import ROOT
from tests.support.nats import free_ports, jetstream_answers
from tests.support.processes import running, runstream
from tests.support.services import SOURCE
from tests.support.waiting import wait_until

DEPLOY = ROOT / "deploy"
COMPOSE: dict[str, Any] = yaml.safe_load((DEPLOY / "compose.yaml").read_text(encoding="utf-8"))
SERVICES: dict[str, dict[str, Any]] = COMPOSE["services"]
OURS = {name: each for name, each in SERVICES.items() if each["image"].startswith("runstream:")}
SERVERS = [name for name in SERVICES if name.startswith("nats-")]
CLUSTER_SECONDS = 60


def test_it_is_what_was_promised() -> None:
    """Three nats-servers, a broker, two gateways behind a proxy, Prometheus and Grafana."""
    assert set(SERVICES) == {*SERVERS, "broker", "gateway-1", "gateway-2", "proxy", "prometheus", "grafana"}
    assert len(SERVERS) == 3


def test_what_is_mounted_is_there() -> None:
    """Each file comes from this folder, and each volume is declared."""
    for name, each in SERVICES.items():
        for mount in each.get("volumes", []):
            source = mount.partition(":")[0]
            assert (DEPLOY / source).exists() if source.startswith("./") else source in COMPOSE["volumes"], name
        if "build" in each:
            assert (DEPLOY / each["build"]["context"] / each["build"]["dockerfile"]).exists()


def source_of(service: str, path: str) -> Path:
    """The file, or the folder, that a service finds at a path."""
    mounts = [mount.split(":") for mount in SERVICES[service]["volumes"]]
    found: list[Path] = [
        DEPLOY / source / path.removeprefix(target).lstrip("/")
        for source, target, *_ in mounts
        if source.startswith("./") and f"{path}/".startswith(f"{target}/")
    ]
    (place,) = found
    return place.resolve()


def test_prometheus_takes_its_configuration_and_the_rules(tmp_path: Path) -> None:
    """Where it looks for rules are the chart's: of a path with nothing at it Prometheus would say nothing."""
    text = source_of("prometheus", "/etc/prometheus/prometheus.yml").read_text(encoding="utf-8")
    (rules,) = yaml.safe_load(text)["rule_files"]
    assert source_of("prometheus", rules) == RULES
    (tmp_path / "prometheus.yaml").write_text(text.replace(rules, str(RULES)), encoding="utf-8")
    checked = promtool("check", "config", tmp_path / "prometheus.yaml")
    assert (checked.returncode, "SUCCESS" in checked.stdout) == (0, True), checked.stdout + checked.stderr


def test_grafana_finds_the_dashboards_and_prometheus() -> None:
    """Its provisioning is where it looks for it, and leads to the chart's dashboards and to the service's port."""
    provisioning = source_of("grafana", "/etc/grafana/provisioning")
    (provider,) = yaml.safe_load((provisioning / "dashboards" / "runstream.yaml").read_bytes())["providers"]
    assert source_of("grafana", provider["options"]["path"]) == FOLDER
    (source,) = yaml.safe_load((provisioning / "datasources" / "prometheus.yaml").read_bytes())["datasources"]
    assert source["url"] == "http://prometheus:9090"
    assert SERVICES["prometheus"]["ports"] == ["127.0.0.1:9090:9090"]


def test_nothing_is_published_to_others() -> None:
    """There is no authentication: every port that is published is on loopback."""
    ports = [port for each in SERVICES.values() for port in each.get("ports", [])]
    assert ports
    assert all(port.startswith("127.0.0.1:") for port in ports)


def test_services_are_named_as_they_are() -> None:
    """The proxy's gateways, Prometheus's targets and NATS's URLs are services of these names, on their ports."""
    (mount,) = SERVICES["proxy"]["volumes"]
    assert (DEPLOY / mount.partition(":")[0]).resolve() == SHIPPED / "Caddyfile"
    proxied = set(re.findall(r"(gateway-\d):8283", (SHIPPED / "Caddyfile").read_text(encoding="utf-8")))
    assert proxied == {name for name, each in OURS.items() if each["command"][0] == "gateway"}
    scraped = yaml.safe_load((DEPLOY / "prometheus" / "prometheus.yaml").read_text(encoding="utf-8"))["scrape_configs"]
    targets = {target for each in scraped for part in each["static_configs"] for target in part["targets"]}
    assert targets == {f"{name}:{8283 if each['command'][0] == 'gateway' else 8284}" for name, each in OURS.items()}
    for each in OURS.values():
        urls = each["environment"]["RUNSTREAM_NATS_URL"].split(",")
        assert urls == [f"nats://{name}:4222" for name in SERVERS]


def test_services_are_left_the_time_that_they_need() -> None:
    """Docker kills no sooner than ten seconds after the drain; as many copies are kept as there are servers."""
    for each in OURS.values():
        said = {name.removeprefix("RUNSTREAM_").lower(): value for name, value in each["environment"].items()}
        settings = resolved(BrokerSettings, {name: said[name] for name in said.keys() & BrokerSettings.model_fields})
        assert int(each["stop_grace_period"].removesuffix("s")) >= settings.drain_seconds + 10
        assert settings.replicas == len(SERVERS)


async def test_its_nats_servers_are_a_cluster(tmp_path: Path) -> None:
    """Three real ones, with the file that they have, take streams with three copies."""
    ports, routes = free_ports(3), free_ports(3)
    text = (DEPLOY / "compose" / "cluster.conf").read_text(encoding="utf-8")
    for name, route in zip(SERVERS, routes, strict=True):
        text = text.replace(f"nats://{name}:6222", f"nats://127.0.0.1:{route}")
    async with AsyncExitStack() as stack:
        for name, port, route in zip(SERVERS, ports, routes, strict=True):
            here = text.replace("port: 4222", f"host: 127.0.0.1\nport: {port}")
            here = here.replace("port: 6222", f"listen: 127.0.0.1:{route}").replace("/data", str(tmp_path / name))
            file = tmp_path / f"{name}.conf"
            file.write_text(here, encoding="utf-8")
            environment = SERVICES[name]["environment"]
            await stack.enter_async_context(running(find_binary(), "-c", file, env=environment))
        urls = [f"nats://127.0.0.1:{port}" for port in ports]
        await wait_until(lambda: jetstream_answers(urls[0]), CLUSTER_SECONDS, "the cluster has no leader")
        argv = runstream("provision", "--nats-url", ",".join(urls), "--replicas", "3")
        provision = await stack.enter_async_context(running(*argv, env=SOURCE))
        assert await provision.wait(CLUSTER_SECONDS) == 0, provision.report()
        assert any("RUNS_0" in line for line in provision.lines)
