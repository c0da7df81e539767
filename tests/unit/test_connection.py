"""The parts of the connection that need no server: what of a URL may be shown, and what is no URL."""

import pytest

from runstream.broker.connection import Connection
from runstream.broker.errors import InvalidSettings, Unavailable
from runstream.broker.settings import BrokerSettings, resolved, without_password
from runstream.gateway.settings import UpSettings


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("nats://127.0.0.1:4222", "nats://127.0.0.1:4222"),
        ("nats://user:secret@a:4222", "nats://a:4222"),
        ("nats://token@a:4222,tls://user:secret@b:4222", "nats://a:4222,tls://b:4222"),
        ("nats://a:4222,nats://user:secret@b", "nats://a:4222,nats://b"),
        ("user:secret@a:4222", "nats://a:4222"),
        ("secret@a", "nats://a"),
        ("nats://user:sec@secret@a:4222", "nats://a:4222"),
        ("ws://user:secret@a/secret?secret#secret", "ws://a"),
        ("nats://user:secret@[::1]:4222", "nats://[::1]:4222"),
        ("nats://user:secret", "(no URL)"),
        ("nats://user:secret/secret@a:4222", "(no URL)"),
    ],
)
def test_a_url_is_shown_without_its_credentials(url: str, shown: str) -> None:
    """An address is all that is anybody's business."""
    assert without_password(url) == shown


@pytest.mark.parametrize(
    "url",
    [
        "user:secret@nats:port",
        "nats://user:secret/secret@nats:4222",
        "nats://user:1/secret@nats:4222",
        "nats://user:1?secret@nats:4222",
        "nats://user:1,secret/@nats:4222",
        "nats://user:secret,secret@nats:4222",
        "http://user:secret@nats:4222",
    ],
)
def test_a_url_that_is_refused_is_not_shown(url: str) -> None:
    """Where its password begins and ends is just what is not known."""
    with pytest.raises(InvalidSettings, match="write the URL of NATS as") as caught:
        resolved(BrokerSettings, {"nats_url": url})
    assert "secret" not in str(caught.value)


def test_settings_do_not_show_where_nats_is() -> None:
    """Who logs the settings does not log a password."""
    url = "nats://user:secret@nats:4222"
    assert "secret" not in repr(BrokerSettings(nats_url=url)) + repr(UpSettings(nats_url=url))


@pytest.mark.parametrize("url", ["", ",", " , "])
async def test_an_empty_url_is_refused_at_once(url: str) -> None:
    """nats-py would look for a server among none for ever, without a pause."""
    with pytest.raises(Unavailable, match="The URL of NATS is empty"):
        await Connection(url, name="test").__aenter__()


def test_what_is_wrong_with_a_setting_is_said_and_nothing_before_it() -> None:
    """In the words of whoever looked at it, and not in pydantic's."""
    with pytest.raises(InvalidSettings) as caught:
        resolved(BrokerSettings, {"retention": "5x"})
    assert str(caught.value).endswith("retention: write a duration as 24h, 90s, 250ms or a number of seconds, not '5x'")
