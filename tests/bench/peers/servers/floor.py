"""The floor: a loop of `send` on as many sockets, and nothing else. No server of Python's can cost less.

GET joins the crowd. POST /write?count=N&per_second=R makes N chunks, each once, as the frame that runstream sends, and
sends it to everybody. Says `ready <url>`.
"""

import socket
import time
from urllib.parse import parse_qs, urlsplit

from tests.bench.chunks import due, fresh

HEAD = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n"
DONE = b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\nConnection: close\r\n\r\n"
FIRST_SEQ = 28_019_515_840_000


def frame(number: int) -> bytes:
    """A chunk that is made now, with a cursor, as an event, framed for chunked encoding."""
    event = b'data: %b,"seq_id":%d}\n\n' % (fresh(number)[:-1], FIRST_SEQ + number)
    return b"%x\r\n%b\r\n" % (len(event), event)


def write(followers: list[socket.socket], first: int, count: int, per_second: float) -> None:
    """Send the next chunks to everybody, at that pace."""
    begun = time.monotonic()
    for number in range(count):
        time.sleep(due(begun, number, per_second))
        data = frame(first + number)
        for follower in followers:
            follower.send(data)


def main() -> None:
    """Serve until killed: one request after the other, so that nothing but the loop is measured."""
    followers: list[socket.socket] = []
    written = 0
    with socket.create_server(("127.0.0.1", 0), backlog=1024) as listener:
        print(f"ready http://127.0.0.1:{listener.getsockname()[1]}", flush=True)
        while True:
            client, _ = listener.accept()
            client.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            method, target, *_ = client.recv(65536).decode().split()
            if method == "GET":
                client.sendall(HEAD)
                followers.append(client)
                continue
            asked = parse_qs(urlsplit(target).query)
            count = int(asked["count"][0])
            if count:
                write(followers, written, count, float(asked["per_second"][0]))
                written += count
            else:
                followers, written = [], 0
            client.sendall(DONE)
            client.close()


if __name__ == "__main__":
    main()
