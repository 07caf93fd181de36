"""What gunicorn reads: `gunicorn --config python:registry.server registry.wsgi:app`.

Every setting is here but where to listen and how many workers to run, so that gunicorn started by
hand is the server that `registry serve` starts. GUNICORN_CMD_ARGS overrides each of them.

    a client has    to                                   and then
    5 s             send the head of a request           its connection is closed
    10 s, and 1 s   send the body, after the head        the body ends there
    for each 64 KB
    30 s            read on, while an answer is sent     its connection is closed
    75 s            ask again on an open connection      it is closed
    25 s            be answered after SIGTERM            its connection is closed
"""

import errno
import gc
import json
import logging
import os
import re
import select
import signal
import socket
import struct
import sys
import time
from collections.abc import Callable
from concurrent.futures import Future
from contextlib import suppress
from functools import partial
from http import HTTPStatus
from mmap import mmap
from pathlib import Path
from typing import Any

import gunicorn.glogging  # type: ignore[import-untyped]
from gunicorn import util
from gunicorn.workers.gthread import ThreadWorker  # type: ignore[import-untyped]

from registry import logs, metrics

HEAD, BODY, WRITE = 5, 10, 30
"""Seconds that a client has, as in the table above."""
PACE = 65_536
"""Bytes of a body for which a client has a second more: an upload takes as long as it takes."""
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
REST = 0.5
"""Seconds for which a worker accepts nothing when the system has no more to give."""
EXHAUSTED = (errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM)

worker_class = "registry.server.Worker"
workers = 2
threads = 16  # requests wait for Git and for storage
timeout = 60  # a worker that does not say for so long that it lives is replaced
graceful_timeout = 30
keepalive = 75  # longer than a proxy keeps a connection that it may want to use once more
limit_request_line = 8190  # the longest query: repositories and paths are long when escaped
limit_request_fields = 64
limit_request_field_size = 8190
control_socket_disable = True  # nobody asked for a way in
loglevel = "warning"
logger_class = "registry.server.Logger"
logconfig_dict = logs.CONFIGURATION

NOTICES = mmap(-1, 8)
"""Memory that all workers share, since the arbiter has it before it forks them."""

logger = logging.getLogger(__name__)


class Logger(gunicorn.glogging.Logger):  # type: ignore[misc]
    """gunicorn's own, without the access log, whose lines would hold gateway links: secrets. Where
    logging is configured it puts them together for every request, whoever reads them.
    """

    def access(self, *_: object) -> None:
        """Says nothing: `web.observe` does."""


class Worker(ThreadWorker):  # type: ignore[misc]
    """gunicorn's worker with threads, which no client and no restart can hold up.

    Its threads wait for a slow client without end, its loop lingers up to 2 s over a connection
    that is to be closed, and while it drains, others wait in a queue only to be turned away.
    """

    sockets: list[Any]

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        # Connections that threads are busy with or will be, and when they must be done reading.
        self._busy: dict[Any, float] = {}
        self._drained = float("inf")
        self._looked = 0.0
        self._rested = 0.0

    def init_process(self) -> None:
        """Works until it is told to stop."""
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
        now = time.monotonic()
        if now < self._looked + GLANCE:
            return  # it is said after every event, and there are thousands a second
        self._looked = now
        if not self.alive:
            self._drained = min(self._drained, now + self.cfg.graceful_timeout - LAST)
        for connection, deadline in list(self._busy.items()):
            if now > self._drained:
                _shut(connection.sock, socket.SHUT_RDWR)
            elif now > deadline:
                # Who reads finds an end. Who has read everything is not concerned.
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
                before = -1
                while before < self.nr_conns < self.worker_connections:
                    before = self.nr_conns
                    self.accept(listener)
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
        """Puts a connection that is to be read before the threads.

        Its time runs already: in a crowd of slow ones the last are over when their turn comes. What
        has arrived of a request until then is read all the same.
        """
        self._busy[connection] = time.monotonic() + HEAD
        super().enqueue_req(connection)

    def handle(self, connection: Any) -> Any:
        """Reads a request and answers it, in a thread."""
        if not connection.initialized and not connection.data_ready:
            # gunicorn would look with a selector, which takes a descriptor and more calls.
            connection.data_ready = _has_data(connection.sock)
        try:
            return super().handle(connection)
        finally:
            self._busy.pop(connection, None)

    def handle_request(self, request: Any, connection: Any) -> Any:
        """Answers a request whose head was read."""
        names = {name for name, _ in request.headers}
        has_body = "CONTENT-LENGTH" in names or "TRANSFER-ENCODING" in names
        self._busy[connection] = time.monotonic() + BODY if has_body else float("inf")
        unread = request.unreader
        unread.sock = _Counted(connection.sock, partial(self._received, connection))
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

    def finish_request(self, connection: Any, done: "Future[Any]") -> None:
        """Keeps the connection or closes it, in the loop; but lingers only in a thread."""
        if done.cancelled() or done.exception() or done.result():
            super().finish_request(connection, done)
            return
        self.nr_conns -= 1
        if not _closed(connection.sock):
            self.tpool.submit(_linger, connection.sock)


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


def _has_data(connection: Any) -> bool:
    """Whether something has arrived, or will not any more."""
    looked = select.poll()
    looked.register(connection, select.POLLIN)
    return bool(looked.poll(0))


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


def _linger(connection: Any) -> None:
    """Closes it once the client has stopped talking, and so has looked for the answer."""
    util.close_graceful(connection, timeout=LINGER, max_drain=LARGEST_BODY)


def _shut(connection: Any, how: int) -> None:
    with suppress(OSError):  # closed meanwhile
        connection.shutdown(how)


def on_starting(_: object) -> None:
    """Imports what every worker needs, once and before any is forked: they share its memory."""
    import registry.services  # noqa: PLC0415 not for whoever reads only the settings
    import registry.web  # noqa: F401, PLC0415

    gc.collect()
    gc.freeze()  # a collection writes to every object it looks at, and what is written is copied


def when_ready(server: Any) -> None:
    """Makes SIGHUP harmless while the configuration is not one to start workers with.

    gunicorn replaces its workers whether or not the new ones can start, and ends if they cannot.
    """
    reload = server.handle_hup

    def handle_hup() -> None:
        if _can_start():
            reload()

    server.handle_hup = handle_hup


def _can_start() -> bool:
    """Whether the configuration holds, tried in a process of its own, of which nothing is left."""
    child = os.fork()
    if child:
        return os.waitpid(child, 0)[1] == 0
    try:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        from registry.errors import RegistryError  # noqa: PLC0415 only in the child
        from registry.services import Services  # noqa: PLC0415
        from registry.settings import Settings  # noqa: PLC0415

        try:
            Services.of(Settings.load())
        except RegistryError as error:
            logger.error("the configuration is not read again, it does not hold: %s", error)
            os._exit(1)
        os._exit(0)
    finally:
        os._exit(1)


def child_exit(_: object, worker: Any) -> None:
    """Takes what a worker that ended had in memory out of the metrics."""
    if os.environ.get("PROMETHEUS_MULTIPROC_DIR"):
        metrics.forget(worker.pid)


def on_exit(server: Any) -> None:
    """Removes the directory in which the workers added up their metrics, unless it was handed on
    to a server that took over.
    """
    shared = os.environ.get("PROMETHEUS_MULTIPROC_DIR")
    if shared and not server.reexec_pid:
        for file in Path(shared).glob("*.db"):
            file.unlink(missing_ok=True)
        with suppress(OSError):  # what else is in there is not ours
            Path(shared).rmdir()
