"""A client that is lighter than what it measures: keep-alive connections on raw sockets.

One thread and one selector serve all connections; a request is a constant, and of an answer only
the status line and the length of the body are looked at.
"""

import re
import selectors
import socket
import time
from collections.abc import Callable
from dataclasses import dataclass

_LENGTH = re.compile(rb"\r\ncontent-length: *([0-9]+)", re.IGNORECASE)


@dataclass(frozen=True)
class Load:
    """What came of a round: `latencies` in seconds, sorted, over `seconds` of wall time."""

    latencies: list[float]
    seconds: float

    @property
    def rate(self) -> float:
        """Requests per second."""
        return len(self.latencies) / self.seconds

    def percentile(self, share: float) -> float:
        """The latency, in seconds, that `share` (0.99) of the requests did not exceed."""
        return self.latencies[min(len(self.latencies) - 1, int(len(self.latencies) * share))]


class _Connection:
    def __init__(self, port: int) -> None:
        self.socket = socket.create_connection(("127.0.0.1", port), timeout=300)
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.sent = 0.0
        self.received = b""

    def is_answered(self) -> bool:
        """Whether it is whole. Raises AssertionError for other statuses than 200 and 304."""
        head, found, body = self.received.partition(b"\r\n\r\n")
        if not found:
            return False
        if head.startswith(b"HTTP/1.1 304 "):
            return True
        assert head.startswith(b"HTTP/1.1 200 "), (head[:80], body[:300])
        length = _LENGTH.search(head)
        assert length, head
        return len(body) >= int(length[1])

    def finish(self) -> None:
        """Waits for the answer that is still to come: whoever is measured next has the machine."""
        while not self.is_answered():
            data = self.socket.recv(65536)
            if not data:
                break
            self.received += data
        self.socket.close()


def request_of(path: str, token: str, etag: str = "") -> bytes:
    """A GET request, as a client that keeps its connection would send it; `etag` is of the answer
    that it has already.
    """
    has = f"If-None-Match: {etag}\r\n" if etag else ""
    return (
        f"GET {path} HTTP/1.1\r\nHost: 127.0.0.1\r\nAuthorization: token {token}\r\n{has}"
        "User-Agent: bench\r\nAccept: */*\r\n\r\n"
    ).encode()


def apply(
    port: int,
    request: bytes | Callable[[], bytes],
    *,
    connections: int = 32,
    seconds: float = 3.0,
    until: Callable[[], bool] = lambda: False,
    least: int = 0,
    quick: bool = False,
) -> Load:
    """Keeps that many connections busy, one request each at a time, for so long or `until`, and on
    until so many were answered at the `least`.

    `request` may make one request after the other. A client that is `quick` acknowledges at once
    whatever it receives, which spares a server that sends its answer in two parts to wait for it.
    """
    following = request if callable(request) else lambda: request
    selector = selectors.DefaultSelector()
    everyone = [_Connection(port) for _ in range(connections)]
    latencies: list[float] = []
    start = time.perf_counter()
    for connection in everyone:
        selector.register(connection.socket, selectors.EVENT_READ, connection)
        connection.sent = time.perf_counter()
        connection.socket.sendall(following())
    end = start + seconds
    while (time.perf_counter() < end and not until()) or len(latencies) < least:
        for key, _ in selector.select(0.1):
            connection = key.data
            data = connection.socket.recv(65536)
            if quick:
                connection.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_QUICKACK, 1)
            assert data, "the server closed a connection"
            connection.received += data
            if connection.is_answered():
                now = time.perf_counter()
                latencies.append(now - connection.sent)
                connection.received = b""
                connection.sent = now
                connection.socket.sendall(following())
    elapsed = time.perf_counter() - start
    for connection in everyone:
        connection.finish()
    return Load(sorted(latencies), elapsed)


@dataclass(frozen=True)
class Download:
    """One large answer: seconds to its first byte of body and to its end, and its size in bytes."""

    first: float
    total: float
    size: int
    is_whole: bool


def download(port: int, request: bytes) -> Download:
    """Reads one answer to the end, and keeps nothing of it."""
    request = request.replace(b"\r\n\r\n", b"\r\nConnection: close\r\n\r\n")
    start = time.perf_counter()
    with socket.create_connection(("127.0.0.1", port), timeout=120) as connection:
        connection.sendall(request)
        received = b""
        while b"\r\n\r\n" not in received or received.endswith(b"\r\n\r\n"):
            data = connection.recv(1 << 20)
            assert data, "the server closed the connection before it answered"
            received += data
        first = time.perf_counter() - start
        assert received.startswith(b"HTTP/1.1 200 "), received[:300]
        size = len(received.partition(b"\r\n\r\n")[2])
        last = received
        while data := connection.recv(1 << 20):
            size += len(data)
            last = data
    chunked = b"transfer-encoding: chunked" in received[:2000].lower()
    whole = last.endswith(b'"}\r\n0\r\n\r\n' if chunked else b'"}')
    return Download(first, time.perf_counter() - start, size, whole or last.endswith(b"0\r\n\r\n"))
