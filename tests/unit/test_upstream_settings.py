"""How the HTTP agent is set up, and what is refused before there is a run."""

import json

import pytest

from runstream.broker.agents.http_platform import Platform
from runstream.broker.agents.loading import agent_source
from runstream.broker.agents.settings import UpstreamSettings
from runstream.broker.errors import InvalidAgent, InvalidSettings
from runstream.broker.settings import resolved

SECRET = "hunter2"


def test_settings_are_read_from_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each has a variable; durations may have a unit, and headers are a JSON object."""
    monkeypatch.setenv("RUNSTREAM_UPSTREAM_SILENCE_SECONDS", "2m")
    monkeypatch.setenv("RUNSTREAM_UPSTREAM_EVENT_BYTES", "65536")
    monkeypatch.setenv("RUNSTREAM_UPSTREAM_HEADERS", json.dumps({"X-Team": "a b", "X-Empty": ""}))
    monkeypatch.setenv("RUNSTREAM_UPSTREAM_AUTH", "forward")
    settings = resolved(UpstreamSettings)
    assert (settings.silence_seconds, settings.event_bytes) == (120.0, 65536)
    assert settings.headers == {"X-Team": "a b", "X-Empty": ""}
    assert settings.auth == "forward"


@pytest.mark.parametrize(
    ("name", "value", "complaint"),
    [
        ("CONNECT_SECONDS", "soon", "RUNSTREAM_UPSTREAM_CONNECT_SECONDS: "),
        ("SILENCE_SECONDS", "0", "RUNSTREAM_UPSTREAM_SILENCE_SECONDS: "),
        ("PATIENCE_SECONDS", "-1", "RUNSTREAM_UPSTREAM_PATIENCE_SECONDS: "),
        ("EVENT_BYTES", "10", "RUNSTREAM_UPSTREAM_EVENT_BYTES: "),
        ("HEADERS", SECRET, "RUNSTREAM_UPSTREAM_HEADERS: this setting is JSON"),
        ("HEADERS", f'["{SECRET}"]', "RUNSTREAM_UPSTREAM_HEADERS: "),
        ("HEADERS", json.dumps({"X": {"a": SECRET}}), "RUNSTREAM_UPSTREAM_HEADERS.X: "),
        ("HEADERS", json.dumps({"a b": SECRET}), "'a b' is no name of a header"),
        ("HEADERS", json.dumps({"": SECRET}), "'' is no name of a header"),
        ("HEADERS", json.dumps({"X": f"{SECRET}\r\nY: 1"}), "the value of X has to be printable ASCII"),
        ("HEADERS", json.dumps({"X": f" {SECRET}"}), "the value of X has to be printable ASCII"),
        ("HEADERS", json.dumps({"X": f"{SECRET}é"}), "the value of X has to be printable ASCII"),
        ("HEADERS", json.dumps({"Content-Type": SECRET}), "Content-Type is set by runstream itself"),
        ("HEADERS", json.dumps({"via": SECRET}), "via is set by runstream itself"),
    ],
)
def test_a_wrong_setting_is_named_and_no_secret_shown(
    monkeypatch: pytest.MonkeyPatch, name: str, value: str, complaint: str
) -> None:
    """It is refused at the start, with its name; of headers, values are not shown."""
    monkeypatch.setenv(f"RUNSTREAM_UPSTREAM_{name}", value)
    with pytest.raises(InvalidSettings) as caught:
        resolved(UpstreamSettings)
    assert complaint in str(caught.value)
    assert SECRET not in str(caught.value)


def test_settings_keep_their_secrets() -> None:
    """Who logs the settings does not log what may be secret in them."""
    assert SECRET not in repr(UpstreamSettings(headers={"X": SECRET}, auth=SECRET))


@pytest.mark.parametrize(
    ("url", "complaint"),
    [
        ("http://", "names no host"),
        ("http:///v1", "names no host"),
        ("http:platform", "names no host"),
        ("platform:8283", "names no host"),
        ("ftp://platform", "names no host"),
        ("http://plat form/", "names no host"),
        ("http://platform:x/", "is none"),
        ("http://platform:0/", "a port that does not exist"),
        ("http://platform:65536/", "a port that does not exist"),
        ("http://platform/\n", "is none"),
        (f"http://user:{SECRET}/", "is none"),
        (f"http://user:{SECRET}@platform/", "RUNSTREAM_UPSTREAM_AUTH"),
        (f"http://{SECRET}@platform/", "RUNSTREAM_UPSTREAM_AUTH"),
    ],
)
def test_a_url_that_cannot_be_asked_is_refused(url: str, complaint: str) -> None:
    """Not at the first run but at once, and without a word of what may be secret in it."""
    with pytest.raises(InvalidAgent) as caught:
        Platform(url)
    assert complaint in str(caught.value)
    assert SECRET not in str(caught.value)


@pytest.mark.parametrize(
    "spec",
    [
        f"htp://user:{SECRET}@platform/chat",
        f"https:/user:{SECRET}@platform",
        f"http:user:{SECRET}@platform",
        f"HTTP:{SECRET}",
        f"user:{SECRET}@platform/chat",
        f"user:{SECRET}@platform",
        f"//user:{SECRET}@platform",
    ],
)
def test_what_may_be_a_mistyped_url_is_not_shown(spec: str) -> None:
    """Whatever `--agent` does not understand may have a password in it."""
    with pytest.raises(InvalidAgent, match="http://") as caught:
        agent_source(spec, UpstreamSettings())
    assert SECRET not in str(caught.value)
