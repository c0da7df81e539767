"""The chart makes objects that Kubernetes takes, that agree with each other, and that are what was asked for."""

import json
import re
from typing import Any

import pytest
import yaml
from pydantic_settings import BaseSettings

from runstream.broker.agents.settings import UpstreamSettings
from runstream.broker.auth.settings import AuthSettings
from runstream.broker.settings import BrokerSettings
from runstream.gateway.settings import BrokerServiceSettings, GatewayServiceSettings, GatewaySettings, UpSettings
from tests.deploy.chart import (
    CHART,
    FORMS,
    NAMESPACE,
    RELEASE,
    VALUES,
    Object,
    helm,
    labels_of,
    of_kind,
    pods,
    rendered,
    selects,
    with_values,
)
from tests.deploy.schemas import KUBERNETES, complaints

COMMANDS: dict[str, list[type[BaseSettings]]] = {
    "gateway": [GatewayServiceSettings, GatewaySettings],
    "broker": [BrokerServiceSettings],
}
SHARED: list[type[BaseSettings]] = [BrokerSettings, UpstreamSettings, AuthSettings]

RELEASED = f"{RELEASE}-runstream"
"""What the objects of a release are called after, where nothing else is said."""

OTHERS = {"RUNSTREAM_LOG_LEVEL", "RUNSTREAM_LOG_JSON"}
"""Variables that are of none of these classes: the command line's."""


@pytest.mark.parametrize("major", ["3", "4"])
@pytest.mark.parametrize("form", VALUES)
def test_helm_finds_nothing_to_complain_of(form: str, major: str) -> None:
    """`helm lint --strict` passes with every set of values, in both majors."""
    said = helm(major, "lint", "--strict", CHART, *(arg for path in VALUES[form] for arg in ("--values", path)))
    assert "0 chart(s) failed" in said


@pytest.mark.parametrize("form", FORMS)
def test_both_helms_make_the_same(form: str) -> None:
    """Whoever has helm 3 gets what helm 4 makes, object by object: what is tested of one holds for the other."""

    def by_name(objects: list[Object]) -> dict[str, Object]:
        return {f"{each['kind']} {each['metadata']['name']}": each for each in objects}

    assert by_name(rendered(form, "3")) == by_name(rendered(form, "4"))


@pytest.mark.parametrize("version", KUBERNETES)
@pytest.mark.parametrize("form", FORMS)
def test_kubernetes_takes_it(form: str, version: str) -> None:
    """Every object is valid, to the last key, for Kubernetes 1.30 to 1.37 and for the operators it is meant for."""
    assert [wrong for each in rendered(form) for wrong in complaints(each, version)] == []


def test_a_wrong_object_is_found() -> None:
    """The test above would pass if nothing was looked at: a key too many, or a kind that is not there, is noticed."""
    deployment = of_kind(rendered("defaults"), "Deployment")["release-runstream-gateway"]
    monitor = of_kind(rendered("everything"), "ServiceMonitor")["streams-gateway"]
    for each in (deployment, monitor):
        broken = json.loads(json.dumps(each))
        broken["spec"]["tempalte"] = {}
        assert list(complaints(broken, "1.37")) != []
    with pytest.raises(FileNotFoundError):
        list(complaints({**deployment, "kind": "Deploymnet"}, "1.37"))


# -- pods -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("form", FORMS)
def test_pods_keep_to_pod_security_restricted(form: str) -> None:
    """Every container of every pod, the test's and the job's too, is one that the strictest profile admits, and more:
    nothing writes to its root, nobody is below 10000, and no token is mounted."""
    found = list(pods(rendered(form)))
    assert found
    for name, pod in found:
        spec = pod["spec"]
        assert spec["automountServiceAccountToken"] is False, name
        assert not {"hostNetwork", "hostPID", "hostIPC"} & spec.keys(), name
        for volume in spec["volumes"]:
            assert volume.keys() & {"configMap", "emptyDir", "secret"}, (name, volume)
        for container in [*spec["containers"], *spec.get("initContainers", [])]:
            security = container["securityContext"]
            assert security["allowPrivilegeEscalation"] is False, (name, container["name"])
            assert security["runAsNonRoot"] is True
            assert security["capabilities"] == {"drop": ["ALL"]}
            assert security["seccompProfile"]["type"] == "RuntimeDefault"
            assert not any("hostPort" in port for port in container.get("ports", []))
            if container["name"] != "beside":
                assert security["readOnlyRootFilesystem"] is True, (name, container["name"])
                assert security["runAsUser"] >= 10_000


def services(pod: Object) -> dict[str, Object]:
    """The containers of runstream's services in a pod, by their command."""
    return {
        container["args"][0]: container
        for container in pod["spec"]["containers"]
        if container.get("args", [""])[0] in COMMANDS
    }


@pytest.mark.parametrize("form", FORMS)
def test_a_pod_is_left_the_time_that_it_needs(form: str) -> None:
    """Kubernetes kills no sooner than ten seconds after what serving on and draining take together."""
    checked = 0
    for name, pod in pods(rendered(form)):
        for container in services(pod).values():
            drain = int(variables(container)["RUNSTREAM_DRAIN_SECONDS"])
            sleep = container.get("lifecycle", {}).get("preStop", {}).get("sleep", {}).get("seconds", 0)
            assert pod["spec"]["terminationGracePeriodSeconds"] >= sleep + drain + 10, name
            checked += 1
    assert checked == 2


def test_an_agent_in_the_pod_outlives_its_runs() -> None:
    """The platform's container is told to stop only when the broker beside it has drained."""
    pod = of_kind(rendered("sidecar"), "Deployment")["release-platform"]["spec"]["template"]
    broker = services(pod)["broker"]
    (platform,) = (each for each in pod["spec"]["containers"] if each["name"] == "platform")
    drained = broker["lifecycle"]["preStop"]["sleep"]["seconds"] + int(variables(broker)["RUNSTREAM_DRAIN_SECONDS"])
    assert platform["lifecycle"]["preStop"]["sleep"]["seconds"] == drained
    assert pod["spec"]["terminationGracePeriodSeconds"] >= drained + 10


@pytest.mark.parametrize("form", FORMS)
def test_probes_ask_three_different_things(form: str) -> None:
    """Startup has a minute, liveness asks nothing of NATS, and readiness notices before a client does: all of them
    where clients, who may fill a port, cannot come."""
    for _, pod in pods(rendered(form)):
        for container in services(pod).values():
            ports = {port["name"]: port["containerPort"] for port in container["ports"]}
            probes = {kind: container[f"{kind}Probe"] for kind in ("startup", "liveness", "readiness")}
            assert {probe["httpGet"]["path"] for kind, probe in probes.items() if kind != "readiness"} == {"/livez"}
            assert probes["readiness"]["httpGet"]["path"] == "/readyz"
            asked = {ports[probe["httpGet"]["port"]] for probe in probes.values()}
            assert asked == {int(variables(container)["RUNSTREAM_METRICS_PORT"])}
            patience = {kind: probe["failureThreshold"] * probe["periodSeconds"] for kind, probe in probes.items()}
            assert patience["readiness"] < patience["liveness"] <= patience["startup"]


@pytest.mark.parametrize("form", FORMS)
def test_names_in_a_pod_are_its_own(form: str) -> None:
    """No two containers, ports or volumes of a pod share a name or a port, and what is mounted is there."""
    for name, pod in pods(rendered(form)):
        containers = pod["spec"]["containers"]
        ports = [port for container in containers for port in container.get("ports", [])]
        volumes = [volume["name"] for volume in pod["spec"]["volumes"]]
        for each in (
            [container["name"] for container in containers],
            [port["name"] for port in ports],
            [port["containerPort"] for port in ports],
            volumes,
        ):
            assert len(set(each)) == len(each), name
        assert all(len(port["name"]) <= 15 for port in ports)
        mounted = {mount["name"] for container in containers for mount in container.get("volumeMounts", [])}
        assert mounted <= set(volumes), name


# -- settings ---------------------------------------------------------------------------------------------------------


def variables(container: Object) -> dict[str, Any]:
    return {each["name"]: each.get("value") for each in container["env"]}


def known(kinds: list[type[BaseSettings]]) -> set[str]:
    """The variables that these classes read."""
    names = {f"{kind.model_config['env_prefix']}{name}".upper() for kind in kinds for name in kind.model_fields}
    return names | OTHERS


@pytest.mark.parametrize("form", FORMS)
def test_every_variable_is_a_setting(form: str) -> None:
    """What the chart says, the services and the job read: a name that is wrong would be ignored without a word."""
    objects = rendered(form)
    maps = of_kind(objects, "ConfigMap")
    checked = set()
    for _, pod in pods(objects):
        for container in pod["spec"]["containers"]:
            command = container.get("args", [""])[0]
            if command in {*COMMANDS, "provision"}:
                sources = [
                    source["configMapRef"]["name"] for source in container["envFrom"] if "configMapRef" in source
                ]
                read = [name for source in sources if source in maps for name in maps[source].get("data", {})]
                said = {name for name in (*variables(container), *read) if name.startswith("RUNSTREAM_")}
                assert said <= known([*SHARED, *COMMANDS.get(command, [])])
                checked.add(command)
    assert checked >= COMMANDS.keys()


@pytest.mark.parametrize("form", FORMS)
def test_no_service_takes_a_port_away(form: str) -> None:
    """Kubernetes tells pods of a Service `runstream-broker` in a variable that is a setting's: what a container says of
    it itself wins, in whoever's pod."""
    ports = {"gateway": ("RUNSTREAM_PORT", "8283"), "broker": ("RUNSTREAM_BROKER_PORT", "8284")}
    for _, pod in pods(rendered(form)):
        for command, container in services(pod).items():
            name, port = ports[command]
            assert variables(container)[name] == port
            assert port in {str(each["containerPort"]) for each in container["ports"]}


def test_what_the_chart_keeps_to_itself_are_settings() -> None:
    """Each of the names that `config` may not have is one that some command reads."""
    text = (CHART / "templates" / "_environment.tpl").read_text(encoding="utf-8")
    (owned,) = re.findall(r'define "runstream.owned" -}}\n(.*?)\n{{- end', text, flags=re.DOTALL)
    commands = [kind for kinds in COMMANDS.values() for kind in kinds]
    assert yaml.safe_load(owned).keys() <= known([*SHARED, *commands, UpSettings])


@pytest.mark.parametrize("form", FORMS)
def test_a_filling_storage_is_noticed(form: str) -> None:
    """Every form bounds its streams, as else they would have no share that an alert could go by."""
    maps = of_kind(rendered(form), "ConfigMap")
    bounds = [each["data"]["RUNSTREAM_MAX_LOG_BYTES"] for name, each in maps.items() if name.endswith("-broker")]
    assert [int(bound) > 0 for bound in bounds] == [True]


def test_settings_are_written_as_they_were_meant() -> None:
    """Numbers stay what they are, whatever YAML makes of them, a service's own win, and templates are filled."""
    objects = rendered("everything")
    assert of_kind(objects, "ConfigMap")["streams-gateway"]["data"] == {
        "RUNSTREAM_RETENTION": "48h",
        "RUNSTREAM_MAX_LOG_BYTES": "17179869184",
        "RUNSTREAM_LEASE_SECONDS": "7.5",
        "RUNSTREAM_UPSTREAM_HEADERS": '{"X-Release": "release"}',
        "RUNSTREAM_KEEPALIVE_SECONDS": "10",
    }


def test_other_settings_are_other_pods() -> None:
    """A change of what a ConfigMap says rolls the pods that read it, and no others."""

    def checksums(values: Object) -> dict[str, str]:
        found = of_kind(with_values(values), "Deployment")
        return {
            name.rpartition("-")[2]: each["spec"]["template"]["metadata"]["annotations"]["checksum/config"]
            for name, each in found.items()
        }

    before, after = checksums({}), checksums({"gateway": {"config": {"RUNSTREAM_VIEW_RUNS": 10}}})
    assert (before["gateway"] != after["gateway"], before["broker"] == after["broker"]) == (True, True)


def test_secrets_are_mounted_where_settings_look() -> None:
    """Each file of a Secret's has a directory of its own, so that a renewed one arrives; its setting has the path."""
    for _, pod in pods(rendered("everything")):
        for command, container in services(pod).items():
            mounts = {mount["mountPath"]: mount["name"] for mount in container["volumeMounts"]}
            volumes = {volume["name"]: volume for volume in pod["spec"]["volumes"]}
            said = variables(container)
            for setting, secret in {
                "RUNSTREAM_NATS_NKEY": ("nats-users", f"{command}.nk"),
                "RUNSTREAM_NATS_CA": ("nats-tls", "ca.crt"),
                "RUNSTREAM_NATS_CERTIFICATE_KEY": ("nats-tls", "tls.key"),
                "RUNSTREAM_AUTH_KEYS_FILE": ("release-auth", "keys"),
                "RUNSTREAM_UPSTREAM_AUTH": ("release-letta", "token"),
            }.items():
                directory, _, file = said[setting].rpartition("/")
                mounted = volumes[mounts[directory]]["secret"]
                assert (mounted["secretName"], file) == secret
                assert [item["path"] for item in mounted["items"]] == [file]


# -- who finds whom ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("form", FORMS)
def test_services_lead_to_their_own_pods(form: str) -> None:
    """A Service selects the pods that have its port, by its name, and no pod of a test or a job."""
    objects = rendered(form)
    found = list(pods(objects))
    for name, service in of_kind(objects, "Service").items():
        selected = [pod for _, pod in found if selects(service["spec"]["selector"], labels_of(pod))]
        assert len(selected) == 1, name
        ports = {port["name"] for each in selected[0]["spec"]["containers"] for port in each.get("ports", [])}
        assert {port["targetPort"] for port in service["spec"]["ports"]} <= ports, name


def test_the_test_can_be_asked_for_its_logs() -> None:
    """`helm test --logs` asks each hook for them, as a pod, and in most helms when those are gone that are to go with
    success: what it runs is one pod, which stays until the next time, and what that reads is there."""
    for form in ("defaults", "production", "everything", "sidecar"):
        objects = rendered(form)
        hooks = [each for each in objects if "helm.sh/hook" in each["metadata"].get("annotations", {})]
        (test,) = of_kind(objects, "Pod").values()
        assert hooks == [test]
        assert test["metadata"]["annotations"]["helm.sh/hook"] == "test"
        assert test["metadata"]["annotations"]["helm.sh/hook-delete-policy"] == "before-hook-creation"
        (script,) = (volume["configMap"]["name"] for volume in test["spec"]["volumes"])
        assert "check.py" in of_kind(objects, "ConfigMap")[script]["data"]


@pytest.mark.parametrize("form", FORMS)
def test_selectors_select_their_own(form: str) -> None:
    """Deployments, budgets, spreads, monitors and policies are about pods, or Services, of this release that exist."""
    objects = rendered(form)
    found = [labels_of(pod) for _, pod in pods(objects)]
    offered = [
        (labels_of(each), {port["name"] for port in each["spec"]["ports"]})
        for each in of_kind(objects, "Service").values()
    ]
    for each in objects:
        spec = each.get("spec", {})
        if each["kind"] in {"Deployment", "PodDisruptionBudget", "PodMonitor"}:
            assert sum(selects(spec["selector"]["matchLabels"], labels) for labels in found) == 1, each
        if each["kind"] == "NetworkPolicy":
            assert sum(selects(spec["podSelector"]["matchLabels"], labels) for labels in found) == 1, each
        if each["kind"] == "ServiceMonitor":
            # Another release in the namespace has the same names: the instance tells them apart.
            assert "app.kubernetes.io/instance" in spec["selector"]["matchLabels"]
            ports = [ports for labels, ports in offered if selects(spec["selector"]["matchLabels"], labels)]
            assert [spec["endpoints"][0]["port"] in each for each in ports] == [True]
            assert spec["namespaceSelector"] == {"matchNames": [NAMESPACE]}
        for spread in spec.get("template", {}).get("spec", {}).get("topologySpreadConstraints", []):
            assert selects(spread["labelSelector"]["matchLabels"], labels_of(spec["template"]))


def test_clients_cannot_reach_the_metrics() -> None:
    """The Service that clients use, perhaps a load balancer, has one port, and it is not that of the metrics."""
    for name in ("streams-gateway", "streams-broker"):
        ports = of_kind(rendered("everything"), "Service")[name]["spec"]["ports"]
        assert [port["targetPort"] for port in ports] == ["http"]


def test_routes_lead_to_the_gateways() -> None:
    """An Ingress and an HTTPRoute name the gateways' Service and a port that it has."""
    for form in ("everything", "the others"):
        objects = rendered(form)
        (ingress,) = of_kind(objects, "Ingress").values()
        (route,) = of_kind(objects, "HTTPRoute").values()
        backend = ingress["spec"]["rules"][0]["http"]["paths"][0]["backend"]["service"]
        reference = route["spec"]["rules"][0]["backendRefs"][0]
        (port,) = of_kind(objects, "Service")[backend["name"]]["spec"]["ports"]
        assert (backend["port"]["name"], reference["name"], reference["port"]) == (
            port["name"],
            backend["name"],
            port["port"],
        )
        assert backend["name"].endswith("-gateway")


@pytest.mark.parametrize("preset", [*yaml.safe_load((CHART / "files" / "ingress-presets.yaml").read_text())])
def test_an_ingress_says_what_its_controller_has_to_know(preset: str) -> None:
    """Each preset is taken, and annotations that are given win over it."""
    presets = yaml.safe_load((CHART / "files" / "ingress-presets.yaml").read_text())
    own = dict.fromkeys([*presets[preset]][:1], "mine")
    values = {"ingress": {"enabled": True, "hosts": ["a.example.com"], "preset": preset, "annotations": own}}
    (ingress,) = of_kind(with_values(values), "Ingress").values()
    assert ingress["metadata"].get("annotations", {}) == {**presets[preset], **own}


def test_a_policy_lets_the_test_in() -> None:
    """Who may reach the services is for values to say, and `helm test` may whatever they say."""
    objects = rendered("everything")
    (test,) = of_kind(objects, "Pod").values()
    services = [policy for policy in of_kind(objects, "NetworkPolicy").values() if "ingress" in policy["spec"]]
    assert len(services) == 2
    for policy in services:
        peers = policy["spec"]["ingress"][0]["from"]
        assert any(
            selects(peer.get("podSelector", {}).get("matchLabels", {"-": ""}), labels_of(test)) for peer in peers
        )


def test_every_pod_has_a_policy_where_there_are_any() -> None:
    """In a namespace that denies what nobody has allowed the job reaches NATS, and the test both services; and nobody
    reaches either of them."""
    objects = rendered("everything")
    policies = [policy["spec"] for policy in of_kind(objects, "NetworkPolicy").values()]
    for name, pod in pods(objects):
        (policy,) = [each for each in policies if selects(each["podSelector"]["matchLabels"], labels_of(pod))]
        assert policy["policyTypes"] == ["Ingress", "Egress"]
        ports = {port["port"] for rule in policy["egress"] for port in rule["ports"]}
        if name.startswith("Job "):
            assert (ports, policy.get("ingress")) == ({53, 4222}, None)
        if name.startswith("Pod "):
            assert (ports, policy.get("ingress")) == ({53, 8283, 8284}, None)


def test_alerts_fire_from_the_values_that_were_given() -> None:
    """A threshold is put in place of the one that the rules have, a runbook is a link, and nothing else is changed."""
    rules = CHART / "files" / "rules.yaml"
    shipped = yaml.safe_load(rules.read_text(encoding="utf-8"))["groups"] if rules.exists() else []
    found = of_kind(rendered("everything"), "PrometheusRule")
    assert bool(found) == bool(shipped)
    for each in found.values():
        made = each["spec"]["groups"]
        for alert in (rule for group in made for rule in group["rules"] if "alert" in rule):
            page = alert["annotations"]["runbook_url"]
            assert page.startswith("https://example.com/docs/runbooks/")
            alert["annotations"]["runbook_url"] = page.removeprefix("https://example.com/")
        assert made == shipped


def test_labels_that_are_given_are_labels() -> None:
    """Operators and Grafana's sidecar find what is for them by its labels, whatever annotations stand beside them."""
    objects = rendered("everything")
    for each in [*of_kind(objects, "ServiceMonitor").values(), *of_kind(objects, "PrometheusRule").values()]:
        assert labels_of(each)["release"] == "prometheus"
        assert each["metadata"]["annotations"] == {"contact": f"{RELEASE}@example.com"}
    boards = [each for name, each in of_kind(objects, "ConfigMap").items() if "-dashboard-" in name]
    assert len(boards) == 2
    for each in boards:
        assert labels_of(each)["grafana_dashboard"] == "1"
        assert each["metadata"]["annotations"] == {"contact": f"{RELEASE}@example.com", "folder": "Agents"}


# -- how many ---------------------------------------------------------------------------------------------------------


def test_an_autoscaler_owns_the_number_of_pods() -> None:
    """Where there is one, the Deployment has no number of its own, which every upgrade would set back."""
    for form, kind in (("production", "HorizontalPodAutoscaler"), ("the others", "ScaledObject")):
        objects = rendered(form)
        (scaler,) = of_kind(objects, kind).values()
        target = scaler["spec"]["scaleTargetRef"]
        assert (target["apiVersion"], target["kind"]) == ("apps/v1", "Deployment")
        assert "replicas" not in of_kind(objects, "Deployment")[target["name"]]["spec"]
    assert of_kind(rendered("defaults"), "Deployment")["release-runstream-gateway"]["spec"]["replicas"] == 2


def test_releases_in_a_namespace_are_counted_apart() -> None:
    """Jobs are called by their release, whichever monitor there is; so an autoscaler adds up its own pods' streams."""
    for form, kind, name in (("everything", "ServiceMonitor", "streams"), ("the others", "PodMonitor", RELEASED)):
        jobs = [
            relabeling["replacement"]
            for each in of_kind(rendered(form), kind).values()
            for endpoint in each["spec"].get("endpoints") or each["spec"]["podMetricsEndpoints"]
            for relabeling in endpoint["relabelings"]
            if relabeling["targetLabel"] == "job"
        ]
        assert sorted(jobs) == [f"{name}-broker", f"{name}-gateway"]
    (scaler,) = of_kind(rendered("the others"), "ScaledObject").values()
    asked = {trigger["type"]: trigger["metadata"] for trigger in scaler["spec"]["triggers"]}
    open_streams = f'sum(runstream_followers{{namespace="{NAMESPACE}", job="{RELEASED}-gateway"}})'
    assert asked["prometheus"]["query"] == open_streams


def test_pods_go_slowly() -> None:
    """Each gateway that goes sends its readers away: one in two minutes, and after five of little to do."""
    (scaler,) = of_kind(rendered("production"), "HorizontalPodAutoscaler").values()
    down = scaler["spec"]["behavior"]["scaleDown"]
    assert down["stabilizationWindowSeconds"] >= 300
    assert down["policies"] == [{"type": "Pods", "value": 1, "periodSeconds": 120}]


def test_a_budget_is_one_of_two() -> None:
    """A budget has one bound, takes pods that are not ready as gone, and is there from the second pod on."""
    budgets = of_kind(rendered("defaults"), "PodDisruptionBudget")
    assert len(budgets) == 2
    for form in FORMS:
        for budget in of_kind(rendered(form), "PodDisruptionBudget").values():
            assert len({"minAvailable", "maxUnavailable"} & budget["spec"].keys()) == 1
            assert budget["spec"]["unhealthyPodEvictionPolicy"] == "AlwaysAllow"
    assert [*of_kind(rendered("the others"), "PodDisruptionBudget")] == ["release-runstream-gateway"]


# -- what is refused --------------------------------------------------------------------------------------------------


def test_a_parent_chart_may_have_globals_of_its_own() -> None:
    """`global` is everybody's; the registry in it is used."""
    images = {
        container["image"]
        for _, pod in pods(rendered("everything"))
        for container in pod["spec"]["containers"]
        if container["name"] != "beside"
    }
    assert images == {f"registry.example.com/runstream@sha256:{'1' * 64}"}
