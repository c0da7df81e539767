"""A platform as its URL names it: where a run is asked for, and what the request says."""

from __future__ import annotations

from typing import TYPE_CHECKING
from urllib.parse import quote

import httpx
import msgspec

from runstream.broker.errors import InvalidAgent

if TYPE_CHECKING:
    from runstream.schemas import RunRequest

__all__ = ["Platform"]


class Platform:
    """Where requests go, and what they say. Raises `InvalidAgent`, which shows nothing of the URL: it may be secret."""

    def __init__(self, url: str) -> None:
        try:
            self._url = httpx.URL(url)
        except httpx.InvalidURL:
            # Not its text: what it takes for a wrong port may be a part of a password.
            raise InvalidAgent("Its URL is none: write it as http://platform:8283.") from None
        if self._url.scheme not in {"http", "https"} or not self._url.host or "%" in self._url.host:
            raise InvalidAgent("Its URL names no host: write it as http://platform:8283.")
        if self._url.userinfo:
            raise InvalidAgent(
                "Its URL has a user or a password in it: put a token into a file, and name that in"
                " RUNSTREAM_UPSTREAM_AUTH."
            )
        if self._url.port == 0 or (self._url.port or 0) >= 2**16:
            raise InvalidAgent("Its URL has a port that does not exist.")
        path, _, self._query = self._url.raw_path.decode("ascii").partition("?")
        self._base = path.rstrip("/")
        self.is_letta = self._base == "" or self._base.endswith("/v1")

    @property
    def root(self) -> str:
        """What `/v1/…` is below, without a last slash."""
        return f"{self._url.scheme}://{self._url.netloc.decode('ascii')}{self._base.removesuffix('/v1')}"

    @property
    def address(self) -> tuple[str, int]:
        """Which host and port is connected to."""
        return self._url.host, self._url.port or (443 if self._url.scheme == "https" else 80)

    @property
    def query(self) -> str:
        """What the URL says after its path, which every request for a run says, too."""
        return self._query

    def url_for(self, run: RunRequest) -> httpx.URL:
        """Give the URL that answers this run."""
        if not self.is_letta:
            return self._url
        if run.conversation_id is None:
            return self._at(f"/v1/agents/{quote(run.agent_id, safe='')}/messages/stream")
        return self._at(f"/v1/conversations/{quote(run.conversation_id, safe='')}/messages")

    def cancel_url_for(self, run: RunRequest) -> httpx.URL:
        """Give the URL that ends a run of this run's agent, on a Letta platform."""
        return self._at(f"/v1/agents/{quote(run.agent_id, safe='')}/messages/cancel")

    def _at(self, path: str) -> httpx.URL:
        query = f"?{self._query}" if self._query else ""
        return self._url.copy_with(raw_path=f"{self._base.removesuffix('/v1')}{path}{query}".encode("ascii"))

    def body_for(self, run: RunRequest) -> bytes:
        """Give the client's request as the platform gets it: in the foreground, as the run is kept here."""
        letta = {"streaming": True, "include_pings": True} if self.is_letta else {}
        return msgspec.json.encode({**run.body, "background": False, **letta})
