"""A process that kills itself at one of its writes to NATS, whichever that is."""

import os
import signal
from typing import Any

from runstream.broker.connection import Connection

WRITE = "write"
"""What each counted write is announced with, on a line of its own: whoever counts the lines knows what was reached."""
QUESTIONS = ("$JS.API.", "_INBOX_", "stuck.", "brokers.", "credentials.", "$KV.RUNSTREAM.pulse.")
"""What changes nothing that anybody reads later. A batch is as many writes as it has messages."""


class Deadly:
    """Counts this process's writes to NATS, and kills it `before` or `after` one of them; 0 kills nobody."""

    def __init__(self, number: int, moment: str) -> None:
        self._number, self._moment = number, moment
        self._count = 0

    def arm(self) -> None:
        """Count from now on, whatever connection the process uses."""
        publish, request = Connection.publish, Connection.request

        async def deadly_publish(connection: Connection, subject: str, body: bytes, **options: Any) -> None:
            number = self._next(subject, body)
            await publish(connection, subject, body, **options)
            if self._is_last(number, "after"):
                await connection._client.flush()  # nats-py sends a moment later
                die()

        async def deadly_request(connection: Connection, subject: str, body: bytes, **options: Any) -> Any:
            number = self._next(subject, body)
            answer = await request(connection, subject, body, **options)
            if self._is_last(number, "after"):
                die()
            return answer

        Connection.publish = deadly_publish  # type: ignore[assignment,method-assign]
        Connection.request = deadly_request  # type: ignore[assignment,method-assign]

    def _next(self, subject: str, body: bytes) -> int:
        if subject.startswith(QUESTIONS):
            return 0
        self._count += 1
        print(WRITE, self._count, subject if not subject.startswith("$JS.ACK") else body.decode()[:4])
        if self._is_last(self._count, "before"):
            die()
        return self._count

    def _is_last(self, number: int, moment: str) -> bool:
        return number == self._number != 0 and moment == self._moment


def die() -> None:
    """End this process as a machine ends that loses its power."""
    os.kill(os.getpid(), signal.SIGKILL)
