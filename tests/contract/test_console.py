"""The console as it is served: its pages, its assets, what a browser is told to allow, and that it can be left out."""

import re

import pytest

from runstream.gateway.console.pages import ASSETS, CONTENT_SECURITY_POLICY, VERSION
from tests.support.http import Reply
from tests.support.stack import Stack, stack_running

PAGES = ["/console", "/console/", "/console/try", "/console/health", "/console/runs/run-1", "/console/?status=all"]


async def asset(stack: Stack, name: str, version: str = VERSION, **headers: str) -> Reply:
    return await stack.fetch("GET", f"/console/assets/{version}/{name}", headers=headers)


@pytest.mark.parametrize("path", PAGES)
async def test_every_address_is_the_one_document(stack: Stack, path: str) -> None:
    """Which view it is, is the page's to see; the document is asked for anew each time."""
    reply = await stack.fetch("GET", path)
    assert reply.status == 200
    assert reply.headers["content-type"] == "text/html; charset=utf-8"
    assert reply.headers["cache-control"] == "no-cache"
    assert reply.body == (await stack.fetch("GET", "/console")).body
    again = await stack.fetch("GET", path, headers={"If-None-Match": reply.headers["etag"]})
    assert (again.status, again.body) == (304, b"")


async def test_the_gateways_own_address_leads_to_it(stack: Stack) -> None:
    """Whoever opens that in a browser looks for something to look at."""
    reply = await stack.fetch("GET", "/")
    assert (reply.status, reply.headers["location"]) == (302, "/console/")


async def test_the_document_names_assets_that_there_are(stack: Stack) -> None:
    """All that it loads is there, under a name that has the content in it."""
    document = (await stack.fetch("GET", "/console")).body.decode()
    named = re.findall(r'(?:src|href)="/console/assets/([0-9a-f]{16})/([\w.]+)"', document)
    assert {version for version, _ in named} == {VERSION}
    assert {name for _, name in named} <= set(ASSETS)
    assert "{version}" not in document


@pytest.mark.parametrize("name", sorted(ASSETS))
async def test_assets_are_kept_for_good(stack: Stack, name: str) -> None:
    """Each is what its type says, and never changes under its name."""
    reply = await asset(stack, name)
    assert reply.status == 200
    assert reply.body == ASSETS[name]
    assert reply.headers["cache-control"] == "public, max-age=31536000, immutable"
    kind = {"css": "text/css", "js": "text/javascript", "svg": "image/svg+xml"}[name.rpartition(".")[2]]
    assert reply.headers["content-type"] == f"{kind}; charset=utf-8"
    again = await asset(stack, name, **{"If-None-Match": reply.headers["etag"]})
    assert again.status == 304


@pytest.mark.parametrize("name", sorted(name for name in ASSETS if name.endswith(".js")))
def test_modules_import_what_there_is(name: str) -> None:
    """And each other only: nothing comes from anywhere else."""
    imported = re.findall(r'^(?:import|export) .*from "([^"]+)";$', ASSETS[name].decode(), flags=re.MULTILINE)
    assert all(module.startswith("./") and module[2:] in ASSETS for module in imported), imported


@pytest.mark.parametrize("name", sorted(ASSETS))
def test_nothing_is_made_of_text_but_text(name: str) -> None:
    """What an agent says can become no markup, no script and no style; no asset names another origin."""
    source = ASSETS[name].decode()
    for word in ("innerHTML", "outerHTML", "insertAdjacentHTML", "document.write", "eval(", "new Function"):
        assert word not in source
    assert set(re.findall(r"https?://[^\s\"']+", source)) <= {"http://www.w3.org/2000/svg"}


@pytest.mark.parametrize("path", ["/console", f"/console/assets/{VERSION}/app.js"])
async def test_a_browser_is_told_what_to_allow(stack: Stack, path: str) -> None:
    """Its own scripts and styles, its own gateway, nobody's frame; and nothing inline."""
    headers = (await stack.fetch("GET", path)).headers
    assert headers["content-security-policy"] == CONTENT_SECURITY_POLICY
    assert "unsafe" not in CONTENT_SECURITY_POLICY
    assert headers["x-content-type-options"] == "nosniff"
    assert headers["referrer-policy"] == "no-referrer"
    assert headers["cross-origin-opener-policy"] == "same-origin"
    document = (await stack.fetch("GET", "/console")).body.decode()
    assert not re.search(r"<style|\sstyle=|\son\w+=|<script>", document)


@pytest.mark.parametrize(
    "path",
    [
        "/console/nothing",
        "/console/assets/index.html",
        f"/console/assets/{VERSION}/index.html",
        f"/console/assets/{VERSION}/nothing.js",
        f"/console/assets/{VERSION}/..%2fpages.py",
        "/console/assets/0000000000000000/app.js",
    ],
)
async def test_nothing_else_is_served(stack: Stack, path: str) -> None:
    """Neither what is not there, nor what is of another release, nor what lies beside it."""
    assert (await stack.fetch("GET", path)).status == 404


@pytest.mark.parametrize("path", ["/console/nothing", "/console/runs/a/b", "/console/assets/index.html"])
async def test_a_page_that_is_none_says_so_to_a_person(stack: Stack, path: str) -> None:
    """A browser gets the document, as a 404, and it says so; a program gets JSON, and a slash is still mended."""
    headers = {"Accept": "text/html,application/xhtml+xml,*/*;q=0.8"}
    reply = await stack.fetch("GET", path, headers=headers)
    assert reply.status == 404
    assert reply.headers["content-type"] == "text/html; charset=utf-8"
    assert reply.headers["content-security-policy"] == CONTENT_SECURITY_POLICY
    assert reply.body == (await stack.fetch("GET", "/console")).body
    assert (await stack.fetch("GET", path, headers={"Accept": "*/*"})).json == {"detail": "Not Found"}
    assert (await stack.fetch("POST", path, headers=headers)).json == {"detail": "Not Found"}
    assert (await stack.fetch("GET", "/console/try/", headers=headers)).status == 307
    assert (await stack.fetch("GET", "/nothing", headers=headers)).json == {"detail": "Not Found"}


async def test_it_can_be_left_out(nats_url: str) -> None:
    """Then there is none, and no session can be opened; the API is as it was."""
    async with stack_running(nats_url, gateway={"console": False}) as stack:
        for path in ("/", *PAGES, f"/console/assets/{VERSION}/app.js"):
            reply = await stack.fetch("GET", path, headers={"Accept": "text/html"})
            assert (reply.status, reply.json) == (404, {"detail": "Not Found"})
        assert (await stack.fetch("POST", "/v1/runstream/session")).status == 404
        assert (await stack.fetch("GET", "/v1/runstream/session")).status == 200
