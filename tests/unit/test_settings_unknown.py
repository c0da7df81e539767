"""A setting that nobody reads is noticed, whichever service it may have been for."""

import pytest
from structlog.testing import capture_logs

from runstream.gateway.settings_unknown import KNOWN, unknown_settings, warn_of_unknown_settings
from tests.unit.test_docs import client_variables, settings


@pytest.mark.parametrize(
    ("name", "nearest"),
    [
        ("RUNSTREAM_AUHT", "RUNSTREAM_AUTH"),
        ("RUNSTREAM_RETENTOIN", "RUNSTREAM_RETENTION"),
        ("RUNSTREAM_BACKGROUNDS", "RUNSTREAM_BACKGROUND"),
        ("runstream_max_follower", "RUNSTREAM_MAX_FOLLOWERS"),
        ("RUNSTREAM_OF_TOMORROW", None),
    ],
)
def test_what_means_nothing_is_told_with_what_may_have_been_meant(
    monkeypatch: pytest.MonkeyPatch, name: str, nearest: str | None
) -> None:
    """A warning has both names, and never the value."""
    monkeypatch.setenv(name, "hunter2")
    assert unknown_settings({name: "hunter2"}) == {name: nearest}
    with capture_logs() as logs:
        warn_of_unknown_settings()
    (said,) = [line for line in logs if line["name"] == name]
    assert (said["event"], said["log_level"], said.get("did_you_mean")) == ("setting_unknown", "warning", nearest)
    assert "hunter2" not in str(logs)


def test_what_any_service_reads_is_known() -> None:
    """One environment may be for all services and commands; what Kubernetes says of a service is none of ours."""
    read = {*settings(), *client_variables()}
    assert read == KNOWN
    assert unknown_settings({**dict.fromkeys(read, ""), "runstream_auth": "", "PATH": ""}) == {}
    pod = ("RUNSTREAM_SERVICE_HOST", "RUNSTREAM_BROKER_SERVICE_PORT_HTTP", "RUNSTREAM_GATEWAY_PORT_8283_TCP_ADDR")
    assert unknown_settings(dict.fromkeys([*pod, "RUNSTREAM_GATEWAY_PORT"], "")) == {}
