"""The locks beside requirements.lock name the same versions, and all that they are for."""

import re
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
OTHERS = ["requirements-image.lock", "requirements-deploy.lock", "deploy/build.lock"]


def pins(name: str) -> dict[str, str]:
    """What a lock installs: each distribution with its version and its hashes, as they stand there."""
    text = (ROOT / name).read_text(encoding="utf-8")
    found = re.finditer(r"^([\w.-]+)==(\S+ (?:\\\n\s+--hash=\S+ ?)+)", text, flags=re.MULTILINE)
    return {re.sub(r"[-_.]+", "-", pin[1]).lower(): " ".join(pin[2].split()) for pin in found}


@pytest.mark.parametrize("name", OTHERS)
def test_locks_agree(name: str) -> None:
    """What is tested is what goes into the image: `make lock` writes all of them."""
    tested, other = pins("requirements.lock"), pins(name)
    assert other
    assert {each: other[each] for each in other.keys() & tested.keys()} == {
        each: tested[each] for each in other.keys() & tested.keys()
    }
    if name != "requirements-deploy.lock":
        assert other.keys() <= tested.keys()


def test_the_image_has_what_the_product_needs() -> None:
    """A dependency that was added is in the image's lock, and in that of the tests of deployments."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    needed = {re.split(r"[>=<\[]", each)[0].lower() for each in project["dependencies"]}
    tools = {re.split(r"[>=<\[]", each)[0].lower() for each in project["optional-dependencies"]["deploy"]}
    assert needed <= pins("requirements-image.lock").keys()
    assert needed | tools <= pins("requirements-deploy.lock").keys()
