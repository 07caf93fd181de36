"""A TCP proxy in front of a real server, that breaks the connections to it as it is told."""

import asyncio
import socket
import threading
from collections.abc import Coroutine
from contextlib import suppress
from typing import Any

from servers.process import HOST, free_ports

_POLL = 0.01
_CHUNK = 65_536


class Proxy:
    """Listens on `port`, and passes everything on to `target`, a port of this machine.

    Each method below says what happens from then on, to the connections there are and to new ones.
    `connections` counts those that were taken. Use it in a `with` block.
    """

    def __init__(self, target: int) -> None:
        (self.port,) = free_ports(1)
        self.connections = 0
        self._target = target
        self._is_silent = False
        self._left: int | None = None
        self._rate: int | None = None
        self._reserved: socket.socket | None = None
        self._listener: asyncio.Server | None = None
        self._open: set[asyncio.Task[None]] = set()
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="proxy")

    def __enter__(self) -> "Proxy":
        self._thread.start()
        self._run(self._listen())
        return self

    def __exit__(self, *_: object) -> None:
        self._run(self._stop())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()
        if self._reserved:
            self._reserved.close()

    @property
    def url(self) -> str:
        """For a server of HTTP."""
        return f"http://{HOST}:{self.port}"

    def passes(self) -> None:
        """All is well."""
        self._is_silent, self._left, self._rate = False, None, None
        self._run(self._listen())

    def refuses(self) -> None:
        """Connections are refused, and those there are reset."""
        self._run(self._stop())
        if self._reserved is None:
            self._reserved = socket.socket()  # so that nobody else takes the port
            self._reserved.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            self._reserved.bind((HOST, self.port))

    def hangs(self) -> None:
        """Connections are taken, and not a byte is passed on."""
        self._is_silent = True

    def trickles(self, rate: int) -> None:
        """What the server says comes at `rate` bytes a second."""
        self._rate = rate

    def cuts(self, after: int) -> None:
        """Each connection is reset once the server has said `after` bytes."""
        self._left = after

    def _run(self, what: Coroutine[Any, Any, None]) -> None:
        asyncio.run_coroutine_threadsafe(what, self._loop).result(10)

    async def _listen(self) -> None:
        if self._listener is None:
            if self._reserved:
                self._reserved.close()
                self._reserved = None
            self._listener = await asyncio.start_server(self._take, HOST, self.port)

    async def _stop(self) -> None:
        if self._listener:
            self._listener.close()
            self._listener = None
        for task in tuple(self._open):
            task.cancel()
        await asyncio.gather(*self._open, return_exceptions=True)

    async def _take(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task
        self._open.add(task)
        self.connections += 1
        server: asyncio.StreamWriter | None = None
        try:
            theirs, server = await asyncio.open_connection(HOST, self._target)
            there = asyncio.ensure_future(self._pass(reader, server))
            back = asyncio.ensure_future(self._answer(theirs, writer))
            try:
                await asyncio.wait([there, back], return_when=asyncio.FIRST_COMPLETED)
                await back  # who asked may have no more to say, and still listens
            finally:
                there.cancel()
                back.cancel()
                await asyncio.gather(there, back, return_exceptions=True)
        except (OSError, asyncio.CancelledError):
            pass  # either side is gone, or the connection is to be
        finally:
            self._open.discard(task)
            for end in filter(None, (server, writer)):
                end.transport.abort()

    async def _pass(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while data := await reader.read(_CHUNK):
            await self._speak()
            writer.write(data)
            await writer.drain()
        with suppress(OSError):
            writer.write_eof()

    async def _answer(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        said = 0
        while data := await reader.read(1 if self._rate else _CHUNK):
            await self._speak()
            if self._left is not None:
                data = data[: max(0, self._left - said)]
            writer.write(data)
            await writer.drain()
            said += len(data)
            if self._rate:
                await asyncio.sleep(len(data) / self._rate)
            if self._left is not None and said >= self._left:
                return
        writer.write_eof()
        while not writer.transport.is_closing():
            await asyncio.sleep(_POLL)

    async def _speak(self) -> None:
        while self._is_silent:
            await asyncio.sleep(_POLL)
