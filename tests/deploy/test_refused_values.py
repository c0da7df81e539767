"""Values that cannot work are refused before anything is installed, in a sentence that says what to do."""

from typing import Any

import pytest

from tests.deploy.chart import CHART, Refused, helm, with_values
from tests.deploy.tools import ROOT

BY_TEMPLATES: list[tuple[dict[str, Any], str]] = [
    ({"nats": {"url": ""}}, "nats.url: say where NATS is, such as nats://nats:4222"),
    (
        {"gateway": {"drainSeconds": 60, "terminationGracePeriodSeconds": 74}},
        "gateway.terminationGracePeriodSeconds is 74, and a pod needs preStopSeconds (5) + drainSeconds (60) + 10 = 75",
    ),
    ({"broker": {"terminationGracePeriodSeconds": 29}}, "broker.terminationGracePeriodSeconds is 29"),
    (
        {"gateway": {"autoscaling": {"enabled": True}, "keda": {"enabled": True}}},
        "gateway.autoscaling and gateway.keda are both enabled",
    ),
    (
        {"gateway": {"autoscaling": {"enabled": True, "minReplicas": 11}}},
        "gateway: minReplicas (11) is more than maxReplicas (10)",
    ),
    (
        {"gateway": {"autoscaling": {"enabled": True, "connectionsPerPod": 0, "cpuUtilization": 0}}},
        "an autoscaler needs connectionsPerPod, cpuUtilization or both",
    ),
    ({"gateway": {"keda": {"enabled": True}}}, "gateway.keda.prometheusAddress: say where Prometheus is"),
    (
        {"broker": {"podDisruptionBudget": {"minAvailable": 1, "maxUnavailable": 1}}},
        "broker.podDisruptionBudget has both minAvailable and maxUnavailable",
    ),
    (
        {"metrics": {"serviceMonitor": {"enabled": True}, "podMonitor": {"enabled": True}}},
        "everything would be counted twice",
    ),
    ({"ingress": {"enabled": True}}, "ingress.hosts: name at least one host"),
    ({"httpRoute": {"enabled": True}}, "httpRoute.parentRefs: name the Gateway"),
    ({"sidecar": {"enabled": True}}, "sidecar.selector: give the labels"),
    ({"auth": {}}, "set auth.mode to static or jwt, or auth.insecure to true"),
    ({"auth": {"mode": "static"}}, "name the Secret that has the file of keys in auth.existingSecret"),
    ({"auth": {"mode": "jwt"}}, "say how tokens are checked, by auth.jwks, the URL of public keys, or auth.secretKey"),
    ({"auth": {"mode": "jwt", "secretKey": "secret"}}, "auth.secretKey is a key of a Secret"),
    (
        {"auth": {"mode": "jwt", "jwks": "https://login.example.com/keys", "issuer": "https://login.example.com"}},
        "say whose tokens are taken, and for whom, by auth.issuer and auth.audience",
    ),
    (
        {"nats": {"nkeys": {"existingSecret": "a"}, "credentials": {"existingSecret": "b"}}},
        "nats.nkeys and nats.credentials both have a Secret",
    ),
    (
        {"config": {"RUNSTREAM_DRAIN_SECONDS": 60}},
        "RUNSTREAM_DRAIN_SECONDS is the chart's to set; say gateway.drainSeconds or broker.drainSeconds",
    ),
    ({"broker": {"config": {"RUNSTREAM_AGENT": "demo"}}}, "RUNSTREAM_AGENT is the chart's to set; say broker.agent"),
]
BY_THE_SCHEMA: list[tuple[dict[str, Any], str]] = [
    ({"replicas": 3}, "replicas"),
    ({"gateway": {"replica": 3}}, "replica"),
    ({"gateway": {"replicas": "three"}}, "replicas"),
    ({"gateway": {"service": {"port": 70_000}}}, "port"),
    ({"gateway": {"resources": {"requests": {"cpu": "1x"}}}}, "cpu"),
    ({"gateway": {"podDisruptionBudget": {"minAvailable": "half"}}}, "minAvailable"),
    ({"gateway": {"livenessProbe": {"successThreshold": 2}}}, "successThreshold"),  # Kubernetes takes 1 alone
    ({"broker": {"startupProbe": {"successThreshold": 2}}}, "successThreshold"),
    ({"gateway": {"topologySpread": "Always"}}, "topologySpread"),
    ({"config": {"retention": "24h"}}, "retention"),
    ({"config": {"RUNSTREAM_RETENTION": {"hours": 24}}}, "RUNSTREAM_RETENTION"),
    ({"image": {"digest": "latest"}}, "digest"),
    ({"ingress": {"preset": "apache"}}, "preset"),
    ({"secretFiles": {"RUNSTREAM_UPSTREAM_AUTH": {"secret": "letta"}}}, "key"),
    ({"metrics": {"serviceMonitor": {"interval": "often"}}}, "interval"),
    ({"logLevel": "loud"}, "logLevel"),
]


@pytest.mark.parametrize("major", ["3", "4"])
@pytest.mark.parametrize(("values", "message"), BY_TEMPLATES)
def test_what_contradicts_itself_is_told_so(values: dict[str, Any], message: str, major: str) -> None:
    """Helm ends with the sentence, and renders nothing."""
    with pytest.raises(Refused) as refused:
        with_values(values, major=major)
    assert message in str(refused.value)


@pytest.mark.parametrize("major", ["3", "4"])
@pytest.mark.parametrize(("values", "name"), BY_THE_SCHEMA)
def test_what_is_no_value_is_told_so(values: dict[str, Any], name: str, major: str) -> None:
    """A name that is misspelt, or a value of a wrong kind, is refused with its name."""
    with pytest.raises(Refused) as refused:
        with_values(values, major=major)
    assert "schema" in str(refused.value)
    assert name in str(refused.value)


def test_lint_refuses_the_same() -> None:
    """`helm lint` holds values against the schema, as installing does."""
    with pytest.raises(Refused):
        helm("4", "lint", CHART, "--set", "gateway.replica=3", "--kubeconfig", ROOT / "none")
