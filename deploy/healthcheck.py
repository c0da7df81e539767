"""The image's HEALTHCHECK: whether the service in this container answers at all. Kubernetes has probes of its own."""

import http.client
import os
import sys

DEFAULTS = {"RUNSTREAM_METRICS_PORT": 0, "RUNSTREAM_PORT": 8283, "RUNSTREAM_BROKER_PORT": 8284}
PORTS = [port for name, default in DEFAULTS.items() if (port := int(os.environ.get(name) or default))]
"""That of the metrics, which clients cannot fill, if there is one; the gateway's and the broker's, of which a container
has one."""


def is_alive(port: int) -> bool:
    """Ask `/livez`."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=2)
    try:
        connection.request("GET", "/livez")
        return connection.getresponse().status == http.HTTPStatus.OK
    except (OSError, http.client.HTTPException):
        return False
    finally:
        connection.close()


sys.exit(not any(map(is_alive, PORTS)))
