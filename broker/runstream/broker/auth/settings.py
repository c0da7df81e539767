"""Every setting of authentication, with its default and the reason for it."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field
from pydantic_settings import BaseSettings, SettingsConfigDict

from runstream.broker.settings import Duration

__all__ = ["AuthSettings"]


class AuthSettings(BaseSettings):
    """How the gateway and the ingest port find out who asks. `RUNSTREAM_X_Y` sets `x_y`."""

    model_config = SettingsConfigDict(env_prefix="RUNSTREAM_", frozen=True, extra="ignore", env_ignore_empty=True)

    auth: Literal["none", "static", "jwt"] = "none"
    """`static`: keys in a file. `jwt`: tokens that an identity provider, or the platform itself, has signed. `none`:
    whoever reaches the port may do everything; so it is refused on an address that others reach."""

    insecure: bool = False
    """Serve without authentication on any address all the same: something else keeps strangers out."""

    auth_keys_file: Path | None = None
    """Of `static`: the file of the keys' hashes, one key a line. `runstream keys new` makes one."""

    auth_issuer: str | None = None
    """Of `jwt`: who must have issued a token, its `iss`."""

    auth_audience: str | None = None
    """Of `jwt`: whom a token must be for, its `aud`: what was issued for another service is none here."""

    auth_secret_file: Path | None = None
    """Of `jwt`: the file of the secret that HS256 tokens are signed with, 32 bytes at least: for a platform that makes
    its tokens itself."""

    auth_jwks: str | None = None
    """Of `jwt`: the public keys of RS256, ES256 and EdDSA tokens, a JSON Web Key Set: its URL (`https`), or a file."""

    auth_jwks_seconds: Annotated[Duration, Field(gt=0)] = 300.0
    """Seconds after which the keys at a URL are fetched again, beside whenever a token names one that is not known: so
    long a key that was withdrawn may still be taken."""

    auth_leeway_seconds: Annotated[Duration, Field(ge=0, le=300)] = 10.0
    """Seconds by which the clocks of issuer and gateway may differ: a token stands for so much longer."""

    auth_tenant_claim: str = "tenant"
    """Of `jwt`: the claim that names the tenant."""
