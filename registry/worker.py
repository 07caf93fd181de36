"""gunicorn's worker with threads, which wait for clients themselves.

gunicorn's has one thread that waits for all clients and hands each request on to another one, which
hands the connection back: half of what a small answer costs is spent waking one another. Here every
thread waits at the same epoll, takes one connection that has something to say, answers, and puts
the connection back.

    accepted, by the main thread    _busy, until HEAD is over
    something arrived               _busy, in the hands of one thread: EPOLLONESHOT
    answered, and kept              _kept, until its `timeout`

The main thread accepts, tells the arbiter that the worker lives, and ends what takes too long by
shutting the connection: whoever reads it, or waits for it, finds an end. Only Linux has epoll.
"""

import errno
import io
import json
import logging
import re
import select
import socket
import struct
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from http import HTTPStatus
from threading import Thread
from typing import Any

from gunicorn import util  # type: ignore[import-untyped]
from gunicorn.http.body import LengthReader  # type: ignore[import-untyped]
from gunicorn.workers import gthread  # type: ignore[import-untyped]

HEAD, BODY, WRITE = 5, 10, 30
"""Seconds that a client has to send the head of a request, to send its body, and to read on."""
PACE = 65_536
"""Bytes of a body for which a client has a second more: an upload takes as long as it takes."""
LARGE = 1 << 16
"""Bytes from which on a body is received on a way of its own."""
LINGER = 2
"""Seconds, and bytes, for which a client is listened to that talks on when all was said to it."""
LARGEST_BODY = 8 << 20
LAST = 5
"""Seconds before gunicorn kills a worker that drains: for what was answered to be written down."""
AGAIN = 2
"""Seconds until another worker is tried where one could not start."""
GLANCE = 0.1
"""Seconds between two looks for clients whose time is over."""
QUEUE = 0.2
"""Seconds for which a worker that was told to stop goes on accepting what was on its way."""
TURN = 0.001
"""Seconds that a thread may keep the interpreter while others want it. Python's own 5 ms are longer
than the answers of all threads take: whoever was last waited for several of them.
"""
REST = 0.5
"""Seconds for which a worker accepts nothing when the system has no more to give."""
EXHAUSTED = (errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM, errno.ENOSPC)

_READABLE = getattr(select, "EPOLLIN", 0) | getattr(select, "EPOLLONESHOT", 0)
_AT_ONCE = _READABLE | getattr(select, "EPOLLOUT", 0)

logger = logging.getLogger(__name__)


class Worker(gthread.ThreadWorker):  # type: ignore[misc]
    """gunicorn's worker with threads, which no client and no restart can hold up.

    gunicorn's waits for a slow client without end, lingers up to 2 s over a connection that is to
    be closed while nobody else is looked after, and while it drains, others wait in a queue only to
    be turned away.
    """

    sockets: list[Any]

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self._ready: select.epoll
        self._waiting: dict[int, Any] = {}  # by descriptor, what no thread has in its hands
        self._busy: dict[Any, float] = {}  # and until when they must be done reading
        self._kept: dict[Any, None] = {}  # gunicorn's own list of these stays empty
        self._started = 0  # threads
        self._drained = float("inf")
        self._looked = 0.0
        self._rested = 0.0

    def init_process(self) -> None:
        """Works until it is told to stop."""
        self._ready = select.epoll()
        sys.setswitchinterval(TURN)
        # Whoever connects and says nothing is not even accepted, for as long as a head may take.
        _defer(self.sockets, HEAD)
        for listener in self.sockets:
            # Every connection that is accepted inherits this, on Linux. What has left in part when
            # the time is over is tried once more.
            limit = struct.pack("ll", WRITE // 2, 0)
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, limit)
        super().init_process()

    def load_wsgi(self) -> None:
        """Loads the application. A worker that replaces another one is tried again if it cannot:
        gunicorn would end the server, and with it those who still answer.
        """
        try:
            super().load_wsgi()
        except Exception:
            if self.age <= self.cfg.workers:
                raise
            logger.exception("a worker could not start, and will be tried again")
            time.sleep(AGAIN)
            sys.exit(1)

    def notify(self) -> None:
        """Says that the worker lives, at least once a second; and ends what takes too long."""
        super().notify()
        # In this order nothing that a thread takes meanwhile is missed.
        self.nr_conns = len(self._kept) + len(self._busy)
        # With too many, gunicorn closes each further one: it looks into its own list for that.
        self.max_keepalived = self.worker_connections - self.cfg.threads - len(self._kept)
        now = time.monotonic()
        if now < self._looked + GLANCE:
            return  # it is said after every event
        self._looked = now
        if not self.alive:
            self._drained = min(self._drained, now + self.cfg.graceful_timeout - LAST)
        for connection, deadline in list(self._busy.items()):
            if now > self._drained:
                _shut(connection.sock, socket.SHUT_RDWR)
            elif now > deadline:
                # Who reads finds an end. Who has read everything is not concerned.
                _shut(connection.sock, socket.SHUT_RD)
        for connection in list(self._kept):
            if now > connection.timeout:
                _shut(connection.sock, socket.SHUT_RD)

    def set_accept_enabled(self, enabled: bool) -> None:
        """Takes connections or not. A worker that stops takes those on their way, and leaves.

        Whoever comes after the last worker of a server left is refused, which a proxy takes for
        an invitation to ask the next host; gunicorn's would wait for the drain and be reset.
        """
        if enabled and time.monotonic() < self._rested:
            return
        leaves = not enabled and not self.alive
        if leaves and self._accepting:
            _defer(self.sockets, 0)
            over = time.monotonic() + QUEUE
            while time.monotonic() < over:
                self.wait_for_and_dispatch_events(QUEUE / 4)
        super().set_accept_enabled(enabled)
        if leaves:
            left, self.sockets = self.sockets, []
            for listener in left:
                while self.nr_conns < self.worker_connections and _is_asked(listener):
                    self.accept(listener)
                    if time.monotonic() < self._rested:
                        break
                listener.close()

    def accept(self, listener: Any) -> None:
        """Takes a connection. One that there is no descriptor for waits, or another worker has it:
        gunicorn's worker would end, and with it every connection that it has.
        """
        try:
            super().accept(listener)
        except OSError as error:
            if error.errno not in EXHAUSTED:
                raise
            logger.warning("no connection is accepted for a while: %s", error.strerror)
            self._rested = time.monotonic() + REST
            super().set_accept_enabled(False)

    def enqueue_req(self, connection: Any) -> None:
        """Puts a connection that was accepted before the threads.

        Its time runs already: in a crowd of slow ones the last are over when their turn comes. What
        has arrived of a request until then is read all the same.
        """
        self._start()
        connection.data_ready = True  # when a thread gets it
        descriptor = connection.sock.fileno()
        self._busy[connection] = time.monotonic() + HEAD
        self._waiting[descriptor] = connection
        try:
            self._ready.register(descriptor, _READABLE)
        except OSError:
            del self._busy[connection], self._waiting[descriptor]
            connection.close()
            raise

    def _start(self) -> None:
        """Starts one thread more, until there are as many as there may be."""
        if self._started == self.cfg.threads:
            return
        try:
            Thread(target=self._serve, name=f"answers {self._started}", daemon=True).start()
        except RuntimeError:  # the system has no more to give
            if not self._started:
                raise
            return
        self._started += 1

    def _serve(self) -> None:
        """What a thread does: answers one request after the other, whoever asks."""
        while True:
            for descriptor, _ in self._ready.poll(maxevents=1):
                self._answer(self._waiting.pop(descriptor), descriptor)

    def _answer(self, connection: Any, descriptor: int) -> None:
        if connection.initialized:
            self._busy[connection] = time.monotonic() + HEAD
            self._kept.pop(connection, None)
        try:
            is_kept = self.handle(connection)
        except (Exception, SystemExit):  # which is of this connection alone
            logger.exception("a connection is given up")
            is_kept = False
        if not is_kept:
            if not _closed(connection.sock):
                # Closes it once the client has stopped talking, and so has looked for the answer.
                util.close_graceful(connection.sock, timeout=LINGER, max_drain=LARGEST_BODY)
            del self._busy[connection]
            return
        connection.set_timeout()
        if not self.alive:
            last = time.monotonic() + gthread.STOP_KEEPALIVE_LINGER
            connection.timeout = min(connection.timeout, last)
        self._kept[connection] = None
        del self._busy[connection]
        # A request that is here already makes nothing readable: it is the turn of others first.
        is_asked = connection.parser.unreader.buf.getvalue()
        self._waiting[descriptor] = connection
        self._ready.modify(descriptor, _AT_ONCE if is_asked else _READABLE)

    def wait_for_and_dispatch_events(self, timeout: float) -> None:
        """Waits for connections; with some open, no longer than until the next glance at them."""
        super().wait_for_and_dispatch_events(min(timeout, GLANCE) if self.nr_conns else timeout)

    def murder_keepalived(self, force: bool = False) -> None:
        """Ends all that wait for nothing any more, at the end: `notify` sees to the others."""
        if force:
            for connection in list(self._kept):
                _shut(connection.sock, socket.SHUT_RDWR)

    def _cap_keepalive(self, deadline: float) -> None:
        for connection in list(self._kept):
            connection.timeout = min(connection.timeout, deadline)

    def handle_request(self, request: Any, connection: Any) -> Any:
        """Answers a request whose head was read."""
        names = {name for name, _ in request.headers}
        has_body = "CONTENT-LENGTH" in names or "TRANSFER-ENCODING" in names
        self._busy[connection] = time.monotonic() + BODY if has_body else float("inf")
        connection.has_body = has_body
        unread = request.unreader
        unread.sock = _Counted(connection.sock, partial(self._received, connection))
        reader = getattr(request.body, "reader", None)
        if isinstance(reader, LengthReader) and reader.length > LARGE:
            request.body = _Large(unread, reader.length)
            request.should_close = partial(_is_last, request.should_close, request.body)
        socket_, connection.sock = connection.sock, _Together(connection.sock)
        try:
            answered = super().handle_request(request, connection)
            connection.sock.flush()
            return answered
        except BlockingIOError as error:  # SO_SNDTIMEO
            problem = "the client does not read on"
            raise ConnectionResetError(errno.ECONNRESET, problem) from error
        finally:
            connection.sock = unread.sock = socket_

    def _received(self, connection: Any, size: int) -> None:
        """Takes note that some of a body came."""
        self._busy[connection] += size / PACE

    def handle_error(self, request: Any, client: Any, address: Any, error: Exception) -> None:
        """Refuses what is no HTTP request, or too large for one."""
        super().handle_error(request, _Refusal(client), address, error)

    def _keepalive_after(self, connection: Any, keepalive: bool) -> bool:
        """Whether the connection can be used again: not if there is a body that nobody read."""
        if not connection.has_body:
            return keepalive
        return bool(super()._keepalive_after(connection, keepalive))


class _Counted:
    """A socket of which it is told how much was received."""

    def __init__(self, connected: Any, received: Callable[[int], None]) -> None:
        self._socket = connected
        self._received = received

    def recv(self, size: int) -> bytes:
        """Receives some."""
        data: bytes = self._socket.recv(size)
        self._received(len(data))
        return data

    def recv_into(self, buffer: memoryview) -> int:
        """Receives some."""
        size: int = self._socket.recv_into(buffer)
        self._received(size)
        return size


class _Large(io.RawIOBase):
    """A body of known length, received straight into what it is read to.

    gunicorn's hands every piece through three buffers, which takes as long as to receive it.
    """

    failed = False
    """What gunicorn asks before it uses the connection again."""

    def __init__(self, unreader: Any, length: int) -> None:
        super().__init__()
        self._unreader = unreader
        self.left = length

    def readable(self) -> bool:
        """As every body."""
        return True

    def readinto(self, buffer: Any) -> int:
        """Fills all of the buffer, unless the body ends before."""
        view = memoryview(buffer)
        view = view[: self.left]
        known = self._unreader.take_buffered()
        have = min(len(known), len(view))
        view[:have] = known[:have]
        if len(known) > have:
            self._unreader.unread(known[have:])
        try:
            while have < len(view):
                received = self._unreader.sock.recv_into(view[have:])
                have += received
                if not received:
                    break
        except Exception:
            self.failed = True
            raise
        self.left -= have
        return have


def _is_last(told: Callable[[], bool], body: _Large) -> bool:
    """Whether a connection ends with this answer, whose head must say so: it was to anyway, as
    `told`, or nobody read all of a large body.
    """
    return told() or body.left > 0


class _Together:
    """A socket that sends the head of an answer together with the beginning of its body.

    gunicorn sends one and then the other. Together they are one segment, if they fit, and one look
    for whoever waits. (TCP_CORK would do the same, but sends while it holds the interpreter.)
    """

    def __init__(self, connected: Any) -> None:
        self._socket = connected
        self._head: bytes | None = None

    def sendall(self, data: bytes) -> None:
        """Keeps the head, which comes first and in one piece; sends everything after it."""
        if self._head is None:
            self._head = data
            return
        if self._head:
            self._head, data = b"", self._head + data
        self._socket.sendall(data)

    def flush(self) -> None:
        """Sends the head of an answer without a body."""
        if self._head:
            self.sendall(b"")

    def sendfile(self, *arguments: Any, **options: Any) -> Any:
        """Sends a file, whose bytes nobody here sees."""
        self.flush()
        return self._socket.sendfile(*arguments, **options)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._socket, name)


class _Refusal:
    """A socket on which gunicorn's page about a refusal becomes what the service says of one."""

    def __init__(self, connection: Any) -> None:
        self._connection = connection
        self.gettimeout = connection.gettimeout
        self.setblocking = connection.setblocking

    def sendall(self, page: bytes) -> None:
        """Sends the same status in the form of registry.web.errors."""
        status = HTTPStatus(int(page.split(b" ", 2)[1]))
        code = re.sub(r"[^a-z]+", "_", status.phrase.lower())
        more: str = ""
        body: dict[str, object] = {"detail": f"{status.phrase}.", "code": code}
        if status >= HTTPStatus.INTERNAL_SERVER_ERROR:
            more, body["retry_after"] = "Retry-After: 5\r\n", 5
        text = json.dumps(body, separators=(",", ":"))
        head = (
            f"HTTP/1.1 {status.value} {status.phrase}\r\nConnection: close\r\n"
            f"Content-Type: application/json\r\nX-Content-Type-Options: nosniff\r\n{more}"
        )
        self._connection.sendall(f"{head}Content-Length: {len(text)}\r\n\r\n{text}".encode())


def _defer(listeners: list[Any], seconds: int) -> None:
    for listener in listeners:
        with suppress(OSError, AttributeError):  # a Unix socket, or not Linux
            listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_DEFER_ACCEPT, seconds)


def _is_asked(listener: Any) -> bool:
    """Whether somebody waits to be accepted.

    Unlike what `select` has, this keeps the interpreter: no other thread gets a turn between the
    look and what follows from it, and whoever came meanwhile would be reset.
    """
    import ctypes  # noqa: PLC0415 only when a worker ends

    looked = ctypes.create_string_buffer(struct.pack("ihh", listener.fileno(), select.POLLIN, 0))
    return bool(ctypes.PyDLL(None).poll(looked, ctypes.c_ulong(1), 0) > 0)


def _closed(connection: Any) -> bool:
    """Closes the connection to a client that has said all it had to, and tells whether it did.

    One that still talks would lose the answer: its kernel throws away what it has not read.
    """
    with suppress(OSError):
        connection.shutdown(socket.SHUT_WR)
        connection.setblocking(False)
        try:
            if connection.recv(4096):
                return False
        except BlockingIOError:
            pass
    with suppress(OSError):
        connection.close()
    return True


def _shut(connection: Any, how: int) -> None:
    with suppress(OSError):  # closed meanwhile
        connection.shutdown(how)
