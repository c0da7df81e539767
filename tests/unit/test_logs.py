"""What is logged of a failure: where it happened, and not what people and agents said."""

import subprocess

import pytest

from tests.support.processes import python

SCRIPT = """
import structlog
from runstream.gateway.logs import configure_logs

configure_logs(level="info", as_json={as_json})

def agent():
    api_key = "sk-" + "secret"
    raise ValueError("a defect")

try:
    agent()
except ValueError:
    structlog.get_logger().exception("agent_crashed")
"""


@pytest.mark.parametrize("as_json", [True, False])
def test_a_failure_is_logged_without_local_variables(*, as_json: bool) -> None:
    """In both forms the log names the error and the function, and shows none of its variables."""
    argv = python("-c", SCRIPT.format(as_json=as_json))
    done = subprocess.run(argv, capture_output=True, text=True, check=True, timeout=20)
    assert "agent_crashed" in done.stderr
    assert "a defect" in done.stderr
    assert "agent" in done.stderr.replace("agent_crashed", "")
    assert "sk-secret" not in done.stderr
