"""The observer sees what must not happen: a check that cannot fail would be worth nothing."""

import json
import re
import subprocess
import sys
import threading
from base64 import b64encode
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from faults.observer import Observer, until
from faults.origins import LINKS, model, publish

pytestmark = pytest.mark.servers
NAME = "team/models"
SECRET = "canary-of-the-observer-itself"


class Liar:
    """A service that answers to everything as it is told."""

    def __init__(self, url: str) -> None:
        self.url = url
        self.status = 200
        self.headers: dict[str, str] = {}
        self.body = b""

    def says(self, status: int, body: object, **headers: str) -> None:
        self.status = status
        self.body = body if isinstance(body, bytes) else json.dumps(body).encode()
        names = {name.replace("_", "-"): value for name, value in headers.items()}
        self.headers = {"Content-Type": "application/json", **names}

    def tells(self, tag: str, revision: str, link: str = LINKS, age: int = 0) -> None:
        told = {"X_Registry_Tag": tag, "X_Registry_Revision": revision}
        self.says(200, {"m": link}, X_Registry_Mirror_Age=str(age), **told)


@contextmanager
def liar() -> Iterator[Liar]:
    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(told.status)
            for name, value in told.headers.items():
                self.send_header(name, value)
            self.send_header("Content-Length", str(len(told.body)))
            self.end_headers()
            self.wfile.write(told.body)

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    told = Liar(f"http://127.0.0.1:{server.server_port}")
    thread = threading.Thread(target=server.serve_forever, args=(0.01,))
    thread.start()
    try:
        yield told
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def test_what_is_well_passes(serve, tmp_path) -> None:
    origin = model(tmp_path / "models.git")
    watched = serve({NAME: origin}, repository={"refresh": 1})
    first = watched.ask(NAME, stage="prod")
    newer = publish(origin, "2")
    origin.tag("m#prod#2", newer)

    assert (first.status, first.tag) == (200, "m#prod#1")
    assert until(lambda: watched.ask(NAME, stage="prod").revision == newer)
    assert watched.ask(NAME, version="v9.9.9").status == 404


@pytest.fixture
def lies(serve, tmp_path) -> Iterator:
    """What makes a lie, told to an observer, fail as it must."""
    origin = model(tmp_path / "models.git")
    real = serve({NAME: origin})
    with liar() as told:

        def fails(what: str, act: Callable[[Observer], object] = lambda it: it.ask(NAME)) -> None:
            made = Observer(
                replace(real.service, url=told.url),
                {NAME: origin},
                granted=[LINKS],
                secrets=[SECRET],
                token=real.token,
            )
            with pytest.raises(AssertionError, match=re.escape(what)), made as watched:
                act(watched)

        fails.told, fails.origin, fails.service = told, origin, real.service
        yield fails


def test_an_answer_that_must_not_be_given_is_seen(lies) -> None:
    told, first = lies.told, lies.origin.head()

    told.tells("m@v1.0.0", "0" * 40)
    lies("the origin never had")
    told.tells("m#dev#1", first)
    lies("the origin never had")
    told.tells("m@v1.0.0", first, "https://elsewhere.example/m")
    lies("is at https://elsewhere.example/m")
    told.tells("m@v1.0.0", first, f"{LINKS}../secrets")
    lies("is at ")
    told.says(503, {"detail": "?"})
    lies("no Retry-After")
    told.says(500, b"<h1>Internal Server Error", Content_Type="text/html", Retry_After="5")
    lies("no JSON")
    told.says(404, {"detail": SECRET})
    lies("is in the body")
    encoded = b64encode(f"git:{SECRET}".encode()).decode()
    told.says(404, {"detail": "?"}, X_Debug=f"Basic {encoded}")
    lies("is in the headers")


def test_what_shows_in_time_or_elsewhere_is_seen(lies) -> None:
    told, origin, first = lies.told, lies.origin, lies.origin.head()

    def goes_back(watched: Observer) -> None:
        newer = publish(origin, "2")
        origin.tag("m#prod#1", newer)
        told.tells("m#prod#1", newer)
        assert watched.ask(NAME, stage="prod").revision == newer
        told.tells("m#prod#1", first)
        watched.ask(NAME, stage="prod")

    def grows_old(watched: Observer) -> None:
        told.tells("m@v1.0.0", first)
        watched.ask(NAME)
        told.tells("m@v1.0.0", first, age=60)
        watched.ask(NAME)

    def shows_arguments(watched: Observer) -> None:
        command = [sys.executable, "-c", "input()", SECRET]
        child = subprocess.Popen(command, stdin=subprocess.PIPE)
        watched.service = replace(watched.service, pid=child.pid)
        until(lambda: watched.command_lines)
        child.communicate(b"\n")

    lies("came after it", goes_back)
    lies("at the latest", grows_old)
    told.tells("m@v1.0.0", first)
    lies("is in the command line", shows_arguments)
    with lies.service.log.open("a") as log:
        log.write(SECRET)
    lies("is in the log")
