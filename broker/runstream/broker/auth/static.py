"""Keys that an operator hands out: the file has their hashes, and nobody who reads it could use one.

A key is 256 random bits behind a public id, so a plain hash is enough: nobody guesses one, at whatever speed. It is
found by its id and compared in constant time; one that is not there is compared, too.
"""

from __future__ import annotations

import hashlib
import hmac
import re
import secrets
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Final, Self

import msgspec

from runstream.broker.auth.files import WatchedFile
from runstream.broker.auth.principal import SCOPES, Principal, Scope, is_tenant
from runstream.broker.errors import Unauthenticated
from runstream.broker.logs import get_logger
from runstream.schemas import is_agent_id, is_conversation_id, is_run_id

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

__all__ = ["KeyLine", "StaticKeys", "key_named", "new_key"]

log = get_logger(__name__)

KEY_ID: Final = r"[0-9a-f]{12}"
KEY: Final = re.compile(rf"rsk_({KEY_ID})_[-_a-zA-Z0-9]{{43}}")
WHERE: Final = re.compile(r"at `\$\.([a-z_0-9]+)")
NO_HASH: Final = "0" * 64
EDITION_DIGITS: Final = 12


class KeyLine(msgspec.Struct, forbid_unknown_fields=True, omit_defaults=True, kw_only=True):
    """A key as its file has it: one JSON object on a line."""

    id: str
    sha256: str
    """Of the whole key, in hexadecimal."""
    tenant: str
    scopes: list[Scope]
    agent_id: str | None = None
    conversation_id: str | None = None
    run_id: str | None = None
    expires_at: datetime | None = None

    def __post_init__(self) -> None:
        if not re.fullmatch(KEY_ID, self.id):
            raise ValueError("id has 12 hexadecimal digits")
        if not re.fullmatch(r"[0-9a-f]{64}", self.sha256):
            raise ValueError("sha256 has 64 hexadecimal digits")
        if not is_tenant(self.tenant):
            raise ValueError("a tenant has up to 64 letters, digits, -, _ and =")
        if self.expires_at is not None and self.expires_at.tzinfo is None:
            raise ValueError("expires_at needs a time zone, as in 2027-01-01T00:00:00Z")
        narrowed = {
            "agent_id": (self.agent_id, is_agent_id),
            "conversation_id": (self.conversation_id, is_conversation_id),
            "run_id": (self.run_id, is_run_id),
        }
        for name, (value, fits) in narrowed.items():
            if value is not None and not fits(value):
                raise ValueError(f"{name} is not such an id")

    @property
    def principal(self) -> Principal:
        """Whoever has the key."""
        return Principal(
            tenant=self.tenant,
            scopes=frozenset(self.scopes),
            agent_id=self.agent_id,
            conversation_id=self.conversation_id,
            run_id=self.run_id,
            expires_at=None if self.expires_at is None else self.expires_at.timestamp(),
            key_id=self.id,
            edition=self.sha256[:EDITION_DIGITS],
        )


_line_in = msgspec.json.Decoder(KeyLine).decode


def new_key(tenant: str, scopes: Sequence[str], **narrowed: str | None) -> tuple[str, bytes]:
    """Make a key, and the line that stands for it. Raises `ValueError` for what no line may say."""
    key_id = secrets.token_hex(6)
    key = f"rsk_{key_id}_{secrets.token_urlsafe(32)}"
    said = {"id": key_id, "sha256": _hash(key), "tenant": tenant, "scopes": scopes, **narrowed}
    return key, msgspec.json.encode(msgspec.convert(said, KeyLine))


def key_named(said: str) -> str | None:
    """Return the id of a key that somebody has, None if it is none."""
    match = KEY.fullmatch(said)
    return None if match is None else match[1]


def _hash(key: str) -> str:
    return hashlib.sha256(key.encode()).hexdigest()


def keys_in(said: bytes) -> Mapping[str, KeyLine]:
    """Read a file of keys: one a line; empty lines, and those that begin with `#`, are for people.

    Raises `ValueError`, which shows nothing of a line.
    """
    found: dict[str, KeyLine] = {}
    for number, line in enumerate(said.decode().splitlines(), 1):
        if not line.strip() or line.lstrip().startswith("#"):
            continue
        try:
            key = _line_in(line)
        except msgspec.MsgspecError as error:
            raise ValueError(f"line {number}: {_told(error)}") from None
        if key.id in found:
            raise ValueError(f"line {number}: its id is there twice")
        found[key.id] = key
    return found


def _told(error: msgspec.MsgspecError) -> str:
    """Say what is wrong with a line in words of ours: the decoder's would quote it, and a key may stand in it."""
    reason = error.__cause__
    if isinstance(reason, ValueError):
        return str(reason)
    names = [field.name for field in msgspec.structs.fields(KeyLine)]
    where = WHERE.search(str(error))
    if where is not None and where[1] == "scopes":
        return f"its scopes are a list of {', '.join(SCOPES)}"
    if where is not None and where[1] in names:
        return f"its {where[1]} is of another type than it has to be"
    return f"it is no JSON object with the fields of a key: {', '.join(names)}"


class StaticKeys:
    """The authenticator of keys in a file. Use as an async context manager: entered, it follows the file's changes.

    Raises `InvalidSettings` when it is made and the file cannot be used.
    """

    unready = None

    def __init__(self, path: Path) -> None:
        self._file = WatchedFile(path, keys_in, setting="RUNSTREAM_AUTH_KEYS_FILE")

    async def __aenter__(self) -> Self:
        await self._file.__aenter__()
        if not self._file.value:
            log.warning(
                "auth_no_keys", meaning="nobody is let in until the file has a key: runstream keys new makes one"
            )
        return self

    async def __aexit__(self, *error: object) -> None:
        await self._file.__aexit__(*error)

    @property
    def changes(self) -> int:
        """How often the file was read again."""
        return self._file.changes

    async def principal(self, credential: str | None) -> Principal:
        """Return whoever has this key. Raises `Unauthenticated`."""
        if credential is None:
            raise Unauthenticated
        key_id = key_named(credential)
        if key_id is None:
            raise Unauthenticated(reason="This is no key.", cause="malformed")
        line = self._file.value.get(key_id)
        is_same = hmac.compare_digest(_hash(credential), NO_HASH if line is None else line.sha256)
        if line is None or not is_same:
            raise Unauthenticated(reason="The key is not known.", cause="unknown_key")
        principal = line.principal
        if principal.has_expired:
            raise Unauthenticated(reason="The key has expired.", cause="expired")
        return principal

    def stands(self, who: Principal) -> bool:
        """Whether a key that was taken is still in the file, the same one, and may do as much for as long."""
        line = self._file.value.get(who.key_id)
        return line is not None and (now := line.principal).edition == who.edition and now.covers(who)
