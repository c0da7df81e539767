"""The five proxies, each a real one with the configuration that is shipped; only its addresses are this machine's."""

import contextlib
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import NamedTuple

from tests.deploy.tools import ROOT, debian, program
from tests.support.nats import free_ports
from tests.support.processes import RunningProcess, running

SHIPPED = ROOT / "deploy" / "proxies"


class Kind(NamedTuple):
    """A proxy: the files that it reads, and how it is started in their directory."""

    files: tuple[str, ...]
    argv: Callable[[Path], list[str]]


def _nginx(directory: Path) -> list[str]:
    # Where Debian's has its temporary files is not there: nothing was installed.
    main = f"daemon off; pid {directory}/nginx.pid; error_log stderr;"
    return [*debian("nginx"), "-p", str(directory), "-c", str(directory / "nginx.conf"), "-g", main, "-e", "stderr"]


KINDS = {
    "nginx": Kind(("nginx.conf",), _nginx),
    "haproxy": Kind(("haproxy.cfg",), lambda directory: [*debian("haproxy"), "-f", str(directory / "haproxy.cfg")]),
    "caddy": Kind(
        ("Caddyfile",),
        lambda directory: [str(program("caddy")), "run", "--config", f"{directory}/Caddyfile"],
    ),
    "traefik": Kind(
        ("traefik.yaml", "traefik-gateways.yaml"),
        lambda directory: [str(program("traefik")), f"--configfile={directory}/traefik.yaml"],
    ),
    "envoy": Kind(
        ("envoy.yaml",),
        lambda directory: [
            str(program("envoy")), "--config-path", f"{directory}/envoy.yaml", "--use-dynamic-base-id",
            "--concurrency", "1", "--log-level", "warning",
        ],
    ),
}  # fmt: skip


@contextlib.asynccontextmanager
async def proxy(name: str, directory: Path, gateways: tuple[int, int]) -> AsyncIterator[tuple[str, RunningProcess]]:
    """A proxy in front of the gateways on these ports: its base URL, and its process."""
    (port,) = free_ports(1)
    kind = KINDS[name]
    for file in kind.files:
        text = (SHIPPED / file).read_text(encoding="utf-8")
        (directory / file).write_text(_here(text, port, gateways), encoding="utf-8")
    if name == "nginx":
        _give_places(directory)
    home = {"HOME": str(directory), "XDG_DATA_HOME": str(directory), "XDG_CONFIG_HOME": str(directory)}
    async with running(*kind.argv(directory), env=home, cwd=directory) as process:
        yield f"http://127.0.0.1:{port}", process


def _here(text: str, port: int, gateways: tuple[int, int]) -> str:
    """The configuration with the addresses of this machine in place of those that it is shipped with."""
    names = {
        "listen 8080;": f"listen 127.0.0.1:{port};",
        "bind :8080": f"bind 127.0.0.1:{port}",
        # Of an address with a host Caddy would take it that it wants a certificate.
        "\n:8080 {": f"\nhttp://127.0.0.1:{port} {{\n\tbind 127.0.0.1",
        'address: ":8080"': f'address: "127.0.0.1:{port}"',
        "0.0.0.0, port_value: 8080": f"127.0.0.1, port_value: {port}",
    }
    for number, gateway in enumerate(gateways, 1):
        names[f"gateway-{number}:8283"] = f"127.0.0.1:{gateway}"
        names[f"gateway-{number}, port_value: 8283"] = f"127.0.0.1, port_value: {gateway}"
    for shipped, here in names.items():
        text = text.replace(shipped, here)
    assert ":8283" not in text, "a gateway is named in a way that is not known here"
    return text


def _give_places(directory: Path) -> None:
    """Say where nginx puts what it has no room for in memory, for other protocols, too; and keep no log."""
    kinds = ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
    places = "  access_log off;\n" + "".join(f"  {kind}_temp_path {directory}/{kind};\n" for kind in kinds)
    file = directory / "nginx.conf"
    file.write_text(file.read_text(encoding="utf-8").replace("http {\n", f"http {{\n{places}"), encoding="utf-8")
