"""The image without Docker: buildah builds the Dockerfile as it is, on a stand-in for the base that it names.

The stand-in is Debian with its own Python, under the name that the Dockerfile asks for: no registry is asked for
anything. What the real base has beside, and other architectures, are not tested by this.
"""

import contextlib
import json
import re
import subprocess
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from tests.deploy.tools import CACHE, ROOT

DOCKERFILE = ROOT / "deploy" / "Dockerfile"
TAG = "localhost/runstream:test"

_STORE = CACHE / "containers"
_PACKAGES = "python3,python3-venv,ca-certificates"
# Registries of packages may be behind certificates that this machine has been given.
_CERTIFICATES = "/etc/ssl/certs/ca-certificates.crt"


def buildah(*args: str | Path) -> str:
    """What buildah says on stdout; in a store of its own, so that nobody else's images are seen or touched."""
    store = [f"--root={_STORE / 'root'}", f"--runroot={_STORE / 'run'}", "--storage-driver=vfs"]
    done: subprocess.CompletedProcess[str] = subprocess.run(
        ["buildah", *store, *args], capture_output=True, text=True, check=False, cwd=ROOT
    )
    assert done.returncode == 0, f"buildah {args[0]}: {done.stdout[-2000:]}{done.stderr[-4000:]}"
    return done.stdout


def base_name() -> str:
    """The base that the Dockerfile names."""
    found = re.search(r"^ARG PYTHON_IMAGE=(\S+)$", DOCKERFILE.read_text(encoding="utf-8"), flags=re.MULTILINE)
    assert found is not None
    return f"docker.io/library/{found[1]}"


def make_base() -> None:
    """Make the stand-in, unless it is there."""
    if base_name() in buildah("images", "--format", "{{.Name}}:{{.Tag}}").split():
        return
    with tempfile.TemporaryDirectory(dir=CACHE) as temporary:
        archive = Path(temporary, "base.tar")
        keep = f'mkdir -p "$1/etc/ssl/certs" && cp {_CERTIFICATES} "$1/etc/ssl/certs/"'
        command = ["mmdebstrap", "--quiet", "--variant=minbase", f"--include={_PACKAGES}", f"--customize-hook={keep}"]
        subprocess.run([*command, "bookworm", archive], check=True)
        container = buildah("from", "scratch").strip()
        buildah("add", "--quiet", container, archive, "/")
        buildah("commit", "--quiet", "--rm", container, base_name())


def build() -> None:
    """Build the Dockerfile as anybody would, but without keeping the layers in between, each a copy of everything."""
    make_base()
    pip = ["--env", f"PIP_CERT={_CERTIFICATES}"]
    buildah(
        "bud", *pip, "--isolation", "chroot", "--format", "docker", "--pull-never", "--quiet",
        "--file", DOCKERFILE, "--tag", TAG, ROOT,
    )  # fmt: skip


def config() -> dict[str, Any]:
    """What the image says of itself."""
    inspected: dict[str, Any] = json.loads(buildah("inspect", "--type", "image", TAG))
    return dict(inspected["Docker"]["config"])


@contextlib.contextmanager
def root() -> Iterator[Path]:
    """The image's root as a directory, until the block ends."""
    container = buildah("from", "--pull-never", TAG).strip()
    try:
        yield Path(buildah("mount", container).strip())
    finally:
        buildah("rm", container)


# A mount namespace of its own, where the root cannot be written but in /tmp, as with readOnlyRootFilesystem.
_CONTAINED = """
set -e
mount --bind "$1" "$1"
mount --rbind /dev "$1/dev"
mount --bind "$2" "$1/mnt"
mount -o remount,bind,ro "$1"
mount -t tmpfs tmpfs "$1/tmp"
root=$1; user=$3; shift 3
exec chroot --userspec="$user" "$root" env -i "$@"
"""


def contained(directory: Path, *command: str, env: Mapping[str, str], shared: Path) -> list[str]:
    """How a command is called in the image: as its user, with its variables and `env`, in a root that is read-only.

    What is in `shared` it finds in /mnt. The network is this machine's.
    """
    image = config()
    variables = [*image["Env"], *(f"{name}={value}" for name, value in env.items())]
    inside = ["sh", "-c", _CONTAINED, "contained", str(directory), str(shared), image["User"], *variables, *command]
    return ["unshare", "--mount", "--propagation", "private", *inside]
