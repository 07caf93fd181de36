"""Clients that ask without a pause, and keep in mind how each question ended."""

import time
from collections import Counter
from threading import Event, Lock, Thread

from faults.observer import until
from faults.wire import Connection


class Load:
    """Threads that send `data`, a request, to the server of a URL, again and again, and read each
    answer. Half of them ask on one connection for as long as the server keeps it, half open one for
    every request. Each waits `patience` seconds for an answer. Use it in a `with` block.
    """

    def __init__(self, url: str, data: bytes, clients: int = 8, patience: float = 10) -> None:
        self.answers: Counter[int] = Counter()
        self.refused = 0
        self.failures: list[str] = []
        self._patience = patience
        self._over = Event()
        self._lock = Lock()
        self._threads = [
            Thread(target=self._ask, args=(url, data, number % 2 == 0), name=f"client {number}")
            for number in range(clients)
        ]

    def __enter__(self) -> "Load":
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        for thread in self._threads:
            thread.join()

    def more(self, count: int = 100) -> None:
        """Waits until so many more questions were answered."""
        wanted = self.answers.total() + count
        until(lambda: self.answers.total() >= wanted)

    def _ask(self, url: str, data: bytes, keeps: bool) -> None:
        while not self._over.is_set():
            try:
                connection = Connection(url, timeout=self._patience)
            except (ConnectionRefusedError, ConnectionResetError):  # it ends meanwhile
                with self._lock:
                    self.refused += 1
                self._over.wait(0.01)
                continue
            with connection:
                self._ask_on(connection, data, keeps)

    def _ask_on(self, connection: Connection, data: bytes, keeps: bool) -> None:
        asked = 0
        while not self._over.is_set() and (keeps or not asked):
            asked += 1
            begun = time.monotonic()
            try:
                connection.socket.sendall(data)
                status, headers, _ = connection.answer()
            except (OSError, EOFError) as error:
                after = time.monotonic() - begun
                with self._lock:
                    self.failures.append(f"request {asked}, after {after:.3f} s: {error!r}")
                return
            with self._lock:
                self.answers[status] += 1
            if headers.get("connection") == "close":
                return
