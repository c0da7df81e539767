"""The Dockerfile as it is read, without being built."""

import re
import subprocess

from tests.deploy.chart import pods, rendered
from tests.deploy.tools import ROOT, program

DOCKERFILE = ROOT / "deploy" / "Dockerfile"


def test_the_dockerfile_is_without_fault() -> None:
    """hadolint finds nothing."""
    done = subprocess.run([program("hadolint"), DOCKERFILE], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (0, "")


def test_the_images_user_is_the_charts() -> None:
    """The Dockerfile makes the user that pods run as."""
    text = DOCKERFILE.read_text(encoding="utf-8")
    users = {
        container["securityContext"]["runAsUser"]
        for _, pod in pods(rendered("defaults"))
        for container in pod["spec"]["containers"]
    }
    assert [int(user) for user in re.findall(r"^USER (\d+):\d+$", text, flags=re.MULTILINE)] == list(users)
