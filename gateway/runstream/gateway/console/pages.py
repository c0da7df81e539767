"""Serves the console: one document for all its addresses, and what it loads, under a name that has its content in it.

Nothing of it is secret, so nobody is asked who they are: what the pages then ask of the API is admitted there, as
everywhere. The document is asked for anew each time, and says which assets are its own; these never change under their
names, so they are kept for good.
"""

from __future__ import annotations

import hashlib
from http import HTTPStatus
from pathlib import Path
from typing import TYPE_CHECKING, Final

from aiohttp import ETag, hdrs, web

if TYPE_CHECKING:
    from collections.abc import Mapping

__all__ = ["ASSETS", "CONTENT_SECURITY_POLICY", "VERSION", "console_routes", "no_such_page"]

HERE: Final = Path(__file__).parent / "assets"
DOCUMENT: Final = "index.html"
MEDIA: Final = {
    ".css": "text/css",
    ".html": "text/html",
    ".js": "text/javascript",
    ".svg": "image/svg+xml",
}

CONTENT_SECURITY_POLICY: Final = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'; "
    # What agents say is shown as text: no script can be made of it, not even by mistake.
    "require-trusted-types-for 'script'; trusted-types 'none'"
)
PROTECTED: Final = {
    "Content-Security-Policy": CONTENT_SECURITY_POLICY,
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Referrer-Policy": "no-referrer",  # An address of the console's names a run.
}


def _read() -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(HERE.iterdir()) if path.suffix in MEDIA}


def _version(assets: Mapping[str, bytes]) -> str:
    """Name a set of assets by its content: they import each other, so they change together."""
    found = hashlib.sha256()
    for name, content in assets.items():
        found.update(f"{name} {len(content)} ".encode())
        found.update(content)
    return found.hexdigest()[:16]


_FILES: Final = _read()
VERSION: Final = _version(_FILES)
DOCUMENT_BYTES: Final = _FILES[DOCUMENT].replace(b"{version}", VERSION.encode())
ASSETS: Final[Mapping[str, bytes]] = {name: content for name, content in _FILES.items() if name != DOCUMENT}


def console_routes() -> list[web.RouteDef]:
    """Make the routes of the console: its addresses, and its assets."""
    return [
        web.get("/", _lead_in),
        web.get("/console", _document),
        web.get("/console/", _document),
        web.get("/console/health", _document),
        web.get("/console/try", _document),
        web.get("/console/runs/{run_id}", _document),
        web.get("/console/assets/{version}/{name}", _asset),
    ]


async def _lead_in(_: web.Request) -> web.Response:
    """Whoever opens the gateway's address looks for something to look at."""
    return web.Response(status=HTTPStatus.FOUND, headers={hdrs.LOCATION: "/console/"})


async def _document(request: web.Request) -> web.Response:
    return _answer(request, DOCUMENT, DOCUMENT_BYTES, "no-cache")


async def _asset(request: web.Request) -> web.Response:
    name = request.match_info["name"]
    if request.match_info["version"] != VERSION or name not in ASSETS:
        # Of another release's gateway: a page that is open over a change of releases is to be loaded anew.
        raise web.HTTPNotFound
    return _answer(request, name, ASSETS[name], "public, max-age=31536000, immutable")


def no_such_page(request: web.Request) -> web.Response | None:
    """The document as a 404, for a person who asks for a page that the console does not have; None for all others.

    The document itself says that there is none. Programs, and what asks for an asset, do not ask for HTML.
    """
    asked = request.headers.get(hdrs.ACCEPT, "").lower()
    if request.method not in {hdrs.METH_GET, hdrs.METH_HEAD} or MEDIA[".html"] not in asked:
        return None
    if not request.path.startswith("/console/"):
        return None
    headers = {**PROTECTED, "Cache-Control": "no-cache", hdrs.VARY: hdrs.ACCEPT}
    return web.Response(
        status=HTTPStatus.NOT_FOUND, body=DOCUMENT_BYTES, content_type=MEDIA[".html"], charset="utf-8", headers=headers
    )


def _answer(request: web.Request, name: str, content: bytes, cache: str) -> web.Response:
    etag = ETag(VERSION)
    headers = {**PROTECTED, "Cache-Control": cache}
    if etag in (request.if_none_match or ()):
        response = web.Response(status=HTTPStatus.NOT_MODIFIED, headers=headers)
    else:
        response = web.Response(body=content, content_type=MEDIA[Path(name).suffix], charset="utf-8", headers=headers)
    response.etag = etag
    return response
