"""The public keys that tokens are signed with: a JSON Web Key Set, fetched from a URL and kept, or read from a file.

Each key is for one algorithm, which its type decides and never a token: so no public key is ever taken for a secret.
"""

from __future__ import annotations

import asyncio
import time
from contextlib import AsyncExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Self
from urllib.parse import urlsplit

import httpx
import jwt
import msgspec

from runstream.broker.auth.files import WatchedFile
from runstream.broker.errors import InvalidSettings, KeysUnavailable
from runstream.broker.logs import get_logger
from runstream.broker.tasks import end_task

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = ["ASYMMETRIC", "FileKeys", "PublicKey", "RemoteKeys", "keys_in"]

log = get_logger(__name__)

ALGORITHMS: Final = ((("RSA", None), "RS256"), (("EC", "P-256"), "ES256"), (("OKP", "Ed25519"), "EdDSA"))
"""What a key's type and curve are good for."""
ASYMMETRIC: Final = frozenset(name for _, name in ALGORITHMS)
NONE_OF_USE: Final = "it has no key for RS256 (of 2048 bits or more), ES256 or EdDSA signatures"
LEAST_RSA_BITS: Final = 2048

FETCH_SECONDS: Final = 5.0
"""How long a fetch may take: somebody may wait for it with a token in hand."""
REFETCH_SECONDS: Final = 10.0
"""How long a fetch is good for, whatever keys are asked for meanwhile: who sends made-up key ids makes no load."""
RETRY_SECONDS: Final = 2.0
"""How long after one that failed, while none has succeeded."""
MOST_BYTES: Final = 2**20
"""As large as a set of keys may be."""
LOOPBACK: Final = frozenset({"localhost", "127.0.0.1", "::1"})


class PublicKey(msgspec.Struct, frozen=True):
    """A key that signatures are checked with, and the one algorithm it is for."""

    kid: str | None
    algorithm: str
    key: Any


class _KeySet(msgspec.Struct):
    keys: list[dict[str, Any]]


def keys_in(said: bytes) -> list[PublicKey]:
    """Read a set of keys. Those that no signature here can be by are left out; `ValueError` if of some none is left.

    One that is empty says that none is good any more.
    """
    try:
        found = msgspec.json.decode(said, type=_KeySet).keys
    except (msgspec.MsgspecError, RecursionError):
        raise ValueError("it is no JSON Web Key Set") from None
    keys = [key for each in found if (key := _key_of(each)) is not None]
    if found and not keys:
        raise ValueError(NONE_OF_USE)
    return keys


def _keys_in_file(said: bytes) -> list[PublicKey]:
    if not (keys := keys_in(said)):
        raise ValueError(NONE_OF_USE)  # Whoever wants nobody let in has nobody serve.
    return keys


def _key_of(said: dict[str, Any]) -> PublicKey | None:
    algorithm = next((name for kind, name in ALGORITHMS if kind == (said.get("kty"), said.get("crv"))), None)
    uses = said.get("key_ops", ["verify"])
    is_for_signatures = said.get("use", "sig") == "sig" and isinstance(uses, list) and "verify" in uses
    if algorithm is None or said.get("alg", algorithm) != algorithm or not is_for_signatures:
        return None
    public = {name: value for name, value in said.items() if name not in {"d", "p", "q", "dp", "dq", "qi", "oth"}}
    try:
        key = jwt.PyJWK.from_dict(public, algorithm=algorithm).key
    except (jwt.PyJWTError, ValueError, TypeError):
        return None
    if algorithm == "RS256" and key.key_size < LEAST_RSA_BITS:
        return None
    kid = said.get("kid")
    return PublicKey(kid if isinstance(kid, str) else None, algorithm, key)


def _chosen(keys: Sequence[PublicKey], algorithm: str, kid: str | None) -> PublicKey | None:
    """Return the key that a token names; one that names none gets the only one of its algorithm."""
    fitting = [key for key in keys if key.algorithm == algorithm and kid in {None, key.kid}]
    return fitting[0] if len(fitting) == 1 else None


class FileKeys:
    """Keys in a file, which is read again when it changes. Raises `InvalidSettings` when it is made."""

    unready = None

    def __init__(self, path: str) -> None:
        self._file = WatchedFile(Path(path), _keys_in_file, setting="RUNSTREAM_AUTH_JWKS")

    async def __aenter__(self) -> Self:
        await self._file.__aenter__()
        return self

    async def __aexit__(self, *error: object) -> None:
        await self._file.__aexit__(*error)

    async def key(self, algorithm: str, kid: str | None) -> PublicKey | None:
        """Return the key that a token names, None if there is none."""
        return _chosen(self._file.value, algorithm, kid)


class RemoteKeys:
    """Keys at a URL. They are kept, fetched again every `seconds`, and when a token names one that is not there.

    A fetch that fails leaves in force what was fetched before, for as long as it takes. Raises `InvalidSettings` when
    it is made with a URL that anybody on the way could answer for.
    """

    def __init__(self, url: str, *, seconds: float) -> None:
        parts = urlsplit(url)
        if parts.scheme.lower() != "https" and parts.hostname not in LOOPBACK:
            raise InvalidSettings("auth_jwks: fetch the keys with https: whoever answers for them decides who gets in")
        self._url = url
        self._shown = f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}{parts.path}"
        self._seconds = seconds
        self._keys: Sequence[PublicKey] | None = None
        self._fetched_at = float("-inf")
        self._fetching: asyncio.Task[None] | None = None
        self._refreshing: asyncio.Task[None] | None = None
        self._stack = AsyncExitStack()

    async def __aenter__(self) -> Self:
        # A proxy that the environment names is for the outside; redirects could lead to where nobody meant.
        self._client = await self._stack.enter_async_context(
            httpx.AsyncClient(timeout=FETCH_SECONDS, trust_env=False, follow_redirects=False)
        )
        self._refreshing = asyncio.create_task(self._refresh(), name="jwks")
        return self

    async def __aexit__(self, *_: object) -> None:
        for task in (self._refreshing, self._fetching):
            if task is not None:
                await end_task(task)
        await self._stack.aclose()

    @property
    def unready(self) -> str | None:
        """Why no key is there yet, None once there was a set of them, however old."""
        is_there = self._keys is not None
        return (
            None if is_there else "The keys that sign tokens were not fetched yet: its log says why (jwks_not_fetched)."
        )

    async def key(self, algorithm: str, kid: str | None) -> PublicKey | None:
        """Return the key that a token names, None if there is none. Raises `KeysUnavailable` if none was ever had."""
        found = _chosen(self._keys or (), algorithm, kid)
        if found is None:
            await self._fetched()
            found = _chosen(self._keys or (), algorithm, kid)
        if self._keys is None:
            raise KeysUnavailable
        return found

    async def _refresh(self) -> None:
        while True:
            await self._fetched()
            await asyncio.sleep(self._seconds if self._keys is not None else self._pause_seconds)

    @property
    def _pause_seconds(self) -> float:
        """How long a fetch is good for, if it was one: without any keys nobody is let in, and nobody sent here."""
        return min(self._seconds, RETRY_SECONDS if self._keys is None else REFETCH_SECONDS)

    async def _fetched(self) -> None:
        """Fetch, unless that was done a moment ago; all who want it at one time wait for the same fetch."""
        if self._fetching is None or self._fetching.done():
            if time.monotonic() - self._fetched_at < self._pause_seconds:
                return
            self._fetching = asyncio.create_task(self._fetch(), name="jwks-fetch")
        await asyncio.shield(self._fetching)

    async def _fetch(self) -> None:
        try:
            async with asyncio.timeout(FETCH_SECONDS):
                self._keys = keys_in(await self._read())
            if not self._keys:
                log.warning("jwks_empty", meaning="no token is good that is signed with a key of it")
        except (httpx.HTTPError, httpx.InvalidURL, TimeoutError, ValueError) as error:
            reason = str(error) or type(error).__name__
            log.warning("jwks_not_fetched", url=self._shown, error=reason, has_keys=self._keys is not None)
        except Exception:
            # A defect: the keys that there are stay good, and it is tried again.
            log.exception("jwks_crashed")
        finally:
            self._fetched_at = time.monotonic()

    async def _read(self) -> bytes:
        said = b""
        async with self._client.stream("GET", self._url) as response:
            if response.status_code != httpx.codes.OK:
                raise ValueError(f"its status is {response.status_code}")
            async for part in response.aiter_bytes():
                said += part
                if len(said) > MOST_BYTES:
                    raise ValueError(f"it has more than {MOST_BYTES} bytes")
        return said
