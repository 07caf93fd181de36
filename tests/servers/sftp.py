"""An SSH server on loopback that hands out one directory, for one key."""

import asyncio
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import asyncssh

from servers.process import HOST


class _Connections(asyncssh.SSHServer):
    """Keeps every connection that is made in `known`."""

    def __init__(self, known: list[asyncssh.SSHServerConnection]) -> None:
        self._known = known

    def connection_made(self, conn: asyncssh.SSHServerConnection) -> None:
        self._known.append(conn)


@dataclass(frozen=True)
class Sftp:
    """A running server. `options` are what a client needs to be let in, and to know the server;
    `hang_up` ends every connection.
    """

    port: int
    root: Path
    options: dict[str, str]
    hang_up: Callable[[], None]

    @property
    def url(self) -> str:
        """Its directory, as DVC spells it."""
        return f"ssh://somebody@{HOST}:{self.port}/store"


@contextmanager
def start(directory: Path) -> Iterator[Sftp]:
    """Starts a server in this process."""
    root = directory / "root"
    (root / "store").mkdir(parents=True)
    host_key, client_key = (asyncssh.generate_private_key("ssh-ed25519") for _ in range(2))
    client_key.write_private_key(directory / "client")
    client_key.write_public_key(directory / "authorized")
    known: list[asyncssh.SSHServerConnection] = []
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever, daemon=True)
    thread.start()

    async def listen() -> asyncssh.SSHAcceptor:
        return await asyncssh.listen(
            HOST,
            0,
            server_factory=lambda: _Connections(known),
            server_host_keys=[host_key],
            authorized_client_keys=str(directory / "authorized"),
            sftp_factory=lambda channel: asyncssh.SFTPServer(channel, chroot=str(root).encode()),
        )

    async def end_connections() -> None:
        for connection in known:
            connection.abort()
            await connection.wait_closed()
        known.clear()

    async def stop() -> None:
        acceptor.close()
        await acceptor.wait_closed()
        await end_connections()

    def hang_up() -> None:
        asyncio.run_coroutine_threadsafe(end_connections(), loop).result(10)

    acceptor = asyncio.run_coroutine_threadsafe(listen(), loop).result(10)
    port = acceptor.get_port()
    public = host_key.export_public_key().decode().strip()
    (directory / "known_hosts").write_text(f"[{HOST}]:{port} {public}\n")
    options = {
        "username": "reader",
        "client_keys": str(directory / "client"),
        "known_hosts": str(directory / "known_hosts"),
    }
    try:
        yield Sftp(port, root, options, hang_up)
    finally:
        asyncio.run_coroutine_threadsafe(stop(), loop).result(10)
        loop.call_soon_threadsafe(loop.stop)
        thread.join(10)
        loop.close()
