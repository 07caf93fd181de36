"""HTTP connections on which an answer begins in time, or not at all.

The time limit of a socket holds for each read of it anew: a store that sends its headers a byte a
second would stay below it for ever, and keep whoever waits for them.
"""

import socket
import threading
from collections.abc import Callable
from contextlib import suppress
from http.client import HTTPException

import urllib3
from urllib3.connection import HTTPConnection, HTTPSConnection
from urllib3.connectionpool import HTTPConnectionPool, HTTPSConnectionPool
from urllib3.response import HTTPResponse

BEGINNING = 4.0
"""Seconds until an answer has begun, however long it may go on: clients wait no longer."""


def pool_manager() -> urllib3.PoolManager:
    """A pool of connections whose read timeout limits all of the headers together, too: to
    BEGINNING at most.
    """
    manager = urllib3.PoolManager(retries=False, maxsize=8)
    manager.pool_classes_by_scheme = {"http": _PlainPool, "https": _SecurePool}
    return manager


class _Plain(HTTPConnection):
    def getresponse(self) -> HTTPResponse:  # type: ignore[override]  # as urllib3 itself does
        return _in_time(self, super().getresponse)


class _Secure(HTTPSConnection):
    def getresponse(self) -> HTTPResponse:  # type: ignore[override]
        return _in_time(self, super().getresponse)


class _PlainPool(HTTPConnectionPool):
    ConnectionCls = _Plain


class _SecurePool(HTTPSConnectionPool):
    ConnectionCls = _Secure


def _in_time(connection: HTTPConnection, answer: Callable[[], HTTPResponse]) -> HTTPResponse:
    """What `answer` returns within the time limit. Raises TimeoutError."""
    wire, limit = connection.sock, min(connection.timeout or BEGINNING, BEGINNING)
    late = threading.Event()

    def hang_up() -> None:
        late.set()
        with suppress(OSError):  # the store may have done so first
            wire.shutdown(socket.SHUT_RDWR)

    timer = threading.Timer(limit, hang_up)
    timer.daemon = True
    timer.start()
    try:
        response = answer()
    except (OSError, HTTPException):
        if not late.is_set():
            raise
    else:
        if not late.is_set():
            return response
        response.close()  # headers that were cut off look as if they had ended
    finally:
        timer.cancel()
    raise TimeoutError
