"""Two hosts that serve the same, behind nginx as it is shipped."""

import os
import signal
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path

from servers import registry as server
from servers.nginx import Front
from servers.process import HOST, free_ports
from servers.registry import Service

from faults.observer import until
from faults.processes import alive


class Hosts:
    """The registry on two hosts, which share what `settings` say and have a data_dir each."""

    def __init__(
        self,
        directory: Path,
        front: Front,
        repositories: Sequence[Mapping[str, object]],
        storage: Sequence[Mapping[str, object]],
        **settings: object,
    ) -> None:
        self.front = front
        self.services: dict[int, Service] = {}
        self._ports = free_ports(2)
        self._places = [directory / "first", directory / "second"]
        self._what = repositories, storage
        self._settings = {"public_url": front.url, "trusted_proxies": 1, **settings}
        self._running = [ExitStack(), ExitStack()]
        self._said = ["", ""]

    @contextmanager
    def running(self) -> Iterator["Hosts"]:
        """Both hosts, and nginx before them, until the end of the block. Meanwhile each host can be
        stopped and started.
        """
        for place in self._places:
            place.mkdir()
        with self._running[0], self._running[1]:
            for number in range(2):
                self.start(number)
            with self.front.running([f"{HOST}:{port}" for port in self._ports]):
                yield self

    def start(self, number: int) -> None:
        """Starts the service of a host, and waits until it is ready."""
        started = server.start(
            self._places[number], *self._what, port=self._ports[number], **self._settings
        )
        self.services[number] = self._running[number].enter_context(started)

    def stop(self, number: int) -> None:
        """Stops it with SIGTERM, as an init system does, and waits until it has ended."""
        pid = self.services[number].pid
        os.kill(pid, signal.SIGTERM)
        until(lambda: not alive(pid))
        self.kill(number)

    def kill(self, number: int) -> None:
        """All its processes at once, as if the power had failed."""
        self._running[number].close()
        self._said[number] += self.services.pop(number).log.read_text()

    def log(self, number: int, ever: bool = False) -> str:
        """What a host has said since its service was started last, or ever."""
        now = self.services[number].log.read_text() if number in self.services else ""
        return self._said[number] + now if ever else now
