"""A store on loopback that sends ranges, and fails as a test tells it to."""

import threading
from collections import defaultdict
from collections.abc import Mapping
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


class RangeServer:
    """Serves bytes: path -> content. Use it in a `with` block.

    `requests` has the path and first byte that each request asked for. What is put into `breaks`
    for a path ends the connection after so many bytes, once each; `answers` has statuses that are
    sent instead, once each, with `headers`. `whole` makes it ignore ranges, `hang` wait for
    `release` after the first half of every body, and `mute` before it answers at all.
    """

    def __init__(self, files: Mapping[str, bytes]) -> None:
        self.files = dict(files)
        self.requests: list[tuple[str, int]] = []
        self.breaks: dict[str, list[int]] = defaultdict(list)
        self.answers: dict[str, list[int]] = defaultdict(list)
        self.headers: dict[str, str] = {}
        self.redirects: dict[str, str] = {}
        self.whole = False
        self.hang = False
        self.mute = False
        self.hung = threading.Event()
        self.release = threading.Event()
        store = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_GET(self) -> None:
                store.serve(self)

            def log_message(self, *_: object) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self._server.server_port}"

    def __enter__(self) -> "RangeServer":
        threading.Thread(target=self._server.serve_forever, args=(0.01,), daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self.release.set()
        self._server.shutdown()
        self._server.server_close()

    def serve(self, request: BaseHTTPRequestHandler) -> None:
        if self.mute:
            self.hung.set()
            self.release.wait()
            return
        path = request.path.partition("?")[0]
        span = request.headers.get("Range", "bytes=0-").removeprefix("bytes=")
        first = int(span.partition("-")[0])
        self.requests.append((request.path, first))
        if self.answers[path] or path in self.redirects or path not in self.files:
            status = self.answers[path].pop(0) if self.answers[path] else 404
            location = {}
            if path in self.redirects:
                status, location = 303, {"Location": self.redirects[path]}
            self._send(request, status, b"", {**self.headers, **location})
            return
        data = self.files[path]
        if first and first >= len(data):
            self._send(request, 416, b"", {"Content-Range": f"bytes */{len(data)}"})
        elif first and not self.whole:
            part = {"Content-Range": f"bytes {first}-{len(data) - 1}/{len(data)}"}
            self._send(request, 206, data[first:], part)
        else:
            self._send(request, 200, data, {})

    def _send(
        self, request: BaseHTTPRequestHandler, status: int, body: bytes, headers: Mapping[str, str]
    ) -> None:
        request.send_response(status)
        for name, value in headers.items():
            request.send_header(name, value)
        request.send_header("Content-Length", str(len(body)))
        request.end_headers()
        breaks = self.breaks[request.path.partition("?")[0]]
        if breaks and status < 300:
            request.wfile.write(body[: breaks.pop(0)])
            request.close_connection = True
            return
        if self.hang and status < 300:
            request.wfile.write(body[: len(body) // 2])
            request.wfile.flush()
            self.hung.set()
            self.release.wait()
            return
        request.wfile.write(body)
