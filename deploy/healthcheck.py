"""The image's HEALTHCHECK: whether the service in this container answers at all. Kubernetes has probes of its own."""

import http.client
import os
import sys

PORTS = [int(os.environ.get("RUNSTREAM_PORT") or 8283), int(os.environ.get("RUNSTREAM_BROKER_PORT") or 8284)]
"""The gateway's and the broker's: a container has one of them."""


def is_alive(port: int) -> bool:
    """Ask `/livez`."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=2)
    try:
        connection.request("GET", "/livez")
        return connection.getresponse().status == http.HTTPStatus.OK
    except OSError:
        return False
    finally:
        connection.close()


sys.exit(not any(map(is_alive, PORTS)))
