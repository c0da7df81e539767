"""Who asks, and what they may: the same for the gateway and for the ingest port.

    principal.py      whoever asks: a tenant, scopes, and what they are narrowed to
    authenticator.py  turns what was sent into a principal; the one choice between the ways below
    static.py         keys in a file, as hashes
    tokens.py         JSON Web Tokens
    jwks.py           the public keys that such tokens are signed with, by URL or in a file
    files.py          a file that is read again when it changes
    admissions.py     lets people in, and ends what goes on in their names when they stand no longer
    revoking.py       credentials that were revoked
    tickets.py        lets in once who can send no header
    sessions.py       knows a person's page by its cookie, for an hour
    causes.py         why one is refused, as it is counted
    settings.py       every setting of it

HTTP is next door, in `http_auth.py`: which header, which refusal.
"""
