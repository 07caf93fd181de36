"""HTTP/1.1 by hand, for clients that do what no library lets them."""

import re
import socket
import struct
from contextlib import suppress
from urllib.parse import urlsplit

_DATA_SEGMENTS = 152  # tcpi_data_segs_in, in struct tcp_info of linux/tcp.h


class Connection:
    """One connection to the server of a URL. Use it in a `with` block."""

    def __init__(
        self, url: str, *, timeout: float = 10, receive: int | None = None, source: str = ""
    ) -> None:
        """`receive` is how many bytes the kernel may keep for us, by default many; `source` is the
        address of this machine that the connection comes from, by default any.
        """
        place = urlsplit(url)
        self.socket = socket.socket()
        self.socket.settimeout(timeout)
        if source:
            self.socket.bind((source, 0))
        if receive:
            self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive)
        try:
            self.socket.connect((place.hostname, place.port))
        except OSError:
            self.socket.close()
            raise
        self._received = b""

    def __enter__(self) -> "Connection":
        return self

    def __exit__(self, *_: object) -> None:
        self.socket.close()

    def send(self, data: bytes) -> None:
        """Sends it all. The server may have had enough before the end."""
        with suppress(ConnectionError):
            self.socket.sendall(data)

    def answer(self, has_body: bool = True) -> tuple[int, dict[str, str], bytes]:
        """The next answer with a Content-Length: status, headers in lower case, and body, which an
        answer to HEAD has none of. Raises EOFError when the server closed the connection instead.
        """
        while b"\r\n\r\n" not in self._received:
            self._more()
        head, _, self._received = self._received.partition(b"\r\n\r\n")
        first, *lines = head.decode("latin-1").split("\r\n")
        pairs = [line.split(":", 1) for line in lines]
        headers = {name.lower(): value.strip() for name, value in pairs}
        length = int(headers.get("content-length", "0")) if has_body else 0
        while len(self._received) < length:
            self._more()
        body, self._received = self._received[:length], self._received[length:]
        return int(first.split(" ", 2)[1]), headers, body

    def rest(self) -> bytes:
        """All that comes until the server closes the connection."""
        with suppress(EOFError, ConnectionError):
            while True:
                self._more()
        rest, self._received = self._received, b""
        return rest

    def stop(self) -> None:
        """Says that no more will be sent."""
        with suppress(OSError):
            self.socket.shutdown(socket.SHUT_WR)

    def is_closed(self) -> bool:
        """Whether the server has closed the connection, as far as can be seen now."""
        self.socket.setblocking(False)
        try:
            while True:
                self._more()
        except BlockingIOError:
            return False
        except (EOFError, ConnectionError):
            return True

    def is_refused(self) -> bool:
        """Whether the server takes not even a byte any more; nothing that it sent is read."""
        try:
            self.socket.sendall(b"x")
        except ConnectionError:
            return True
        return False

    def reset(self) -> None:
        """Goes away without a word: the server gets a reset for whatever it sends."""
        self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.socket.close()

    def segments(self) -> int:
        """How many segments with data have arrived. Linux only."""
        told = self.socket.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, _DATA_SEGMENTS + 4)
        (count,) = struct.unpack_from("I", told, _DATA_SEGMENTS)
        return int(count)

    def _more(self) -> None:
        piece = self.socket.recv(65536)
        if not piece:
            raise EOFError(self._received[:200])
        self._received += piece


def request(path: str, *lines: str, method: str = "GET", body: bytes = b"") -> bytes:
    """A request as it should be, with these header lines besides Host."""
    length = [f"Content-Length: {len(body)}"] if body else []
    head = [f"{method} {path} HTTP/1.1", "Host: registry.example", *lines, *length, "", ""]
    return "\r\n".join(head).encode("latin-1") + body


def statuses(data: bytes) -> list[int]:
    """The status of each answer in what a server sent, bodies with such a line aside."""
    return [int(status) for status in re.findall(rb"HTTP/1\.[01] (\d{3}) ", data)]
