"""How this process signs in at NATS: who it is, how it knows the other end, and where its answers go.

Files are looked at when settings are read, so that a wrong one is told at start, and read anew for each connection that
is made: keys and certificates are rotated while processes run.
"""

from __future__ import annotations

import os
import re
import ssl
from base64 import b64encode
from binascii import Error as NotBase32
from typing import TYPE_CHECKING, Final

import msgspec
import nkeys  # type: ignore[import-untyped]

if TYPE_CHECKING:
    from pathlib import Path

__all__ = ["Identity", "NatsAccess", "new_key", "read_authorities", "read_certificate", "read_credentials", "read_key"]

JWT: Final = re.compile(r"-----BEGIN NATS USER JWT-----\s+(\S+)\s+-+END NATS USER JWT-+")
SEED: Final = re.compile(r"-----BEGIN USER NKEY SEED-----\s+(\S+)\s+-+END USER NKEY SEED-+")
SEED_BYTES: Final = 32
UNREADABLE_KEYS: Final = (nkeys.NkeysError, NotBase32, ValueError)


class Identity:
    """Who a process is to NATS: a key that signs what the server asks it to, and, with credentials, what it may do."""

    def __init__(self, seed: bytes, jwt: str | None = None) -> None:
        self._pair = nkeys.from_seed(bytearray(seed))
        self.jwt = jwt
        self.public_key = bytes(self._pair.public_key).decode()

    def sign(self, nonce: str) -> bytes:
        """Sign what the server has thought of."""
        return b64encode(self._pair.sign(nonce.encode()))


class NatsAccess(msgspec.Struct, frozen=True, kw_only=True):
    """What one role needs to be let in. The defaults are those of a NATS that lets everybody in."""

    credentials: Path | None = None
    key: Path | None = None
    authorities: Path | None = None
    certificate: Path | None = None
    certificate_key: Path | None = None
    server_name: str | None = None
    inbox_prefix: str = "_INBOX"
    """The subjects that answers come on begin with it: whoever may listen to another role's reads its answers."""

    @property
    def wants_tls(self) -> bool:
        """Whether a server without TLS is to be told nothing."""
        return any((self.authorities, self.certificate, self.server_name))

    def identity(self) -> Identity | None:
        """Read who this is; None if a URL's password says it, or nothing does. Raises `ValueError`."""
        if self.credentials is not None:
            return read_credentials(self.credentials)
        return None if self.key is None else read_key(self.key)

    def tls(self) -> ssl.SSLContext:
        """Read whom to believe, and what to show. Raises `ValueError`."""
        context = ssl.create_default_context() if self.authorities is None else read_authorities(self.authorities)
        if self.certificate is not None and self.certificate_key is not None:
            read_certificate(self.certificate, self.certificate_key, context)
        return context


def new_key() -> tuple[str, str]:
    """Make a user's key: its seed, which is secret, and its public key, which the server is told."""
    seed: bytes = nkeys.encode_seed(os.urandom(SEED_BYTES), nkeys.PREFIX_BYTE_USER)
    return seed.decode(), Identity(seed).public_key


def read_key(path: Path) -> Identity:
    """Read a file with the seed of a user's nkey. Raises `ValueError`, which shows nothing of it."""
    return _identity(_text(path).strip(), None, f"the file {str(path)!r} does not hold the seed of a user's nkey (SU…)")


def read_credentials(path: Path) -> Identity:
    """Read a `.creds` file, as `nsc` writes it. Raises `ValueError`, which shows nothing of it."""
    text = _text(path)
    jwt, seed = JWT.search(text), SEED.search(text)
    complaint = f"the file {str(path)!r} does not hold credentials of NATS, a user's JWT and the seed of its nkey"
    if jwt is None or seed is None:
        raise ValueError(complaint)
    return _identity(seed[1], jwt[1], complaint)


def _identity(seed: str, jwt: str | None, complaint: str) -> Identity:
    try:
        prefix, raw = nkeys.decode_seed(seed.encode())
        # nkeys passes over the checksum: a seed with a slip of the pen in it is another key, which nobody knows.
        if prefix == nkeys.PREFIX_BYTE_USER and nkeys.encode_seed(raw, prefix) == seed.encode():
            return Identity(seed.encode(), jwt)
    except UNREADABLE_KEYS:
        pass
    raise ValueError(complaint) from None


def read_authorities(path: Path) -> ssl.SSLContext:
    """Read a file with the certificates of those who sign NATS's, in PEM. Raises `ValueError`."""
    _text(path)
    try:
        return ssl.create_default_context(cafile=path)
    except OSError as error:  # As ssl's errors are.
        raise ValueError(f"the file {str(path)!r} does not hold certificates in PEM") from error


def read_certificate(certificate: Path, key: Path, context: ssl.SSLContext) -> None:
    """Have `context` show a certificate, with its key, both in PEM. Raises `ValueError`."""
    _text(certificate)
    _text(key)
    try:
        # Without a password OpenSSL would ask the terminal for one.
        context.load_cert_chain(certificate, key, password="")
    except OSError as error:
        raise ValueError(
            f"the files {str(certificate)!r} and {str(key)!r} do not hold a certificate and its key in PEM, "
            "without a password"
        ) from error


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="ascii")
    except OSError as error:
        raise ValueError(f"the file {str(path)!r} cannot be read: {error.strerror}") from error
    except UnicodeDecodeError:
        raise ValueError(f"the file {str(path)!r} is no ASCII text") from None
