"""A whole registry for tests, over real Git repositories, asked through Flask's test client."""

from collections.abc import Mapping, Sequence
from datetime import datetime, timezone
from hashlib import md5
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import TYPE_CHECKING
from urllib.parse import parse_qs, unquote, urlsplit

from gitrepo import GitRepository
from werkzeug.test import TestResponse

from registry.dvc.manifest import object_key
from registry.services import Services
from registry.settings import Settings
from registry.web import create_app

if TYPE_CHECKING:
    from _typeshed.wsgi import StartResponse, WSGIEnvironment

NOW = 1_800_000_000
"""2027-01-15T08:00:00Z, where the clock of every registry in tests stands until it is moved."""

S3_KEYS = {"access_key_id": "AKIATEST", "secret_access_key": "secret"}
"""Links for S3 are made offline, so that any key will do."""

ENDPOINT = "/api/model-registry/get-download-uris"


class Clock:
    """Unix time as the test wants it."""

    def __init__(self) -> None:
        self.now = float(NOW)

    def __call__(self) -> float:
        return self.now


class Registry:
    """A service for `origins`: the name of each repository and where it is, with settings of its
    own if need be. Use it in a `with` block.
    """

    def __init__(
        self,
        directory: Path,
        origins: Mapping[str, GitRepository | Mapping[str, object]],
        storage: Sequence[Mapping[str, object]],
        **more: object,
    ) -> None:
        self.clock = Clock()
        self.name = next(iter(origins), "")
        document = {
            "data_dir": str(directory),
            "public_url": "https://registry.example",
            "secret_key": "a secret key for tests, long enough",
            "repositories": [
                {"url": str(it.path), "name": name, "aliases": [f"https://git.example/{name}.git"]}
                if isinstance(it, GitRepository)
                else {"name": name, **it}
                for name, it in origins.items()
            ],
            "storage": list(storage),
            **more,
        }
        self.settings = Settings.parse(document, {})
        self.settings.data_dir.mkdir(parents=True, exist_ok=True)
        self.services = Services.of(self.settings, self.clock)
        self.services.access.create_tables()
        self.services.audit.create_tables()
        self.services.issued.create_tables()
        self.app = create_app(self.services, linger=0)
        self.client = self.app.test_client()
        self.everything = self.token()

    def __enter__(self) -> "Registry":
        return self

    def __exit__(self, *_: object) -> None:
        self.services.close()

    def token(
        self, *repositories: str, scopes: Sequence[str] = ("models:read",), lives: int = 86_400
    ) -> str:
        """A new token for the repositories, all of them by default."""
        until = datetime.fromtimestamp(self.clock() + lives, timezone.utc)
        _, text = self.services.access.create(
            "test", list(scopes), list(repositories) or ["*"], until
        )
        return text

    def ask(self, name: str = "m", *, token: str | None = None, **query: str) -> TestResponse:
        """What the registry answers about an artifact, of its first repository by default."""
        return self.client.get(
            ENDPOINT,
            query_string={"repo": self.name, "name": name, **query},
            headers={"Authorization": f"token {token or self.everything}"},
        )

    def links(self, name: str = "m", **query: str) -> dict[str, str]:
        """Path -> link, of an answer that must be a success."""
        answer = self.ask(name, **query)
        assert answer.status_code == 200, answer.text
        links: dict[str, str] = answer.json
        return links

    def places(self, name: str = "m", **query: str) -> dict[str, str]:
        """The same, path -> place: where each link points to, as DVC would spell it."""
        return {path: place(link) for path, link in self.links(name, **query).items()}

    def whole(self, environ: "WSGIEnvironment", start_response: "StartResponse") -> list[bytes]:
        """The service for a client that knows WSGI, and neither reads answers to their end nor
        closes them, which servers do.
        """
        answer = self.app(environ, start_response)
        try:
            return list(answer)
        finally:
            answer.close()

    def download(self, link: str, method: str = "GET", **headers: str) -> TestResponse:
        """What the gateway answers to a link of its own. No token is sent."""
        base, _, path = link.partition("/objects/")
        assert base == self.settings.public_url
        sent = {name.replace("_", "-"): value for name, value in headers.items()}
        return self.client.open(f"/objects/{path}", method=method, headers=sent, buffered=True)


def place(link: str) -> str:
    """Where a link points to, without its signature: `s3://bucket/key?versionId=...` for a link
    to S3 that is signed as it should be, and for any other the URL without its query.
    """
    url = urlsplit(link)
    query = parse_qs(url.query)
    bucket, found, region = (url.hostname or "").partition(".s3.")
    if not found or not region.endswith("amazonaws.com"):
        return link.partition("?")[0]
    assert url.scheme == "https"
    assert query["X-Amz-Algorithm"] == ["AWS4-HMAC-SHA256"]
    assert query["X-Amz-Expires"] == ["3600"]
    assert query["X-Amz-SignedHeaders"] == ["host"]
    assert len(query["X-Amz-Signature"][0]) == 64
    version = f"?versionId={query['versionId'][0]}" if "versionId" in query else ""
    return f"s3://{bucket}{unquote(url.path)}{version}"


def unmarked(answer: TestResponse) -> str:
    """The body of a failure without the id of the request, by which any two differ."""
    request_id = answer.headers["X-Request-Id"]
    assert answer.text.count(request_id) == 1
    return answer.text.replace(request_id, "")


def digest(text: str | bytes) -> str:
    """The MD5 of a text."""
    return md5(text.encode() if isinstance(text, str) else text).hexdigest()


def key(text: str | bytes) -> str:
    """Where DVC 3 keeps an object, below the URL of its remote."""
    return object_key(digest(text), legacy=False)


def legacy_key(text: str | bytes) -> str:
    """Where DVC 2 keeps an object."""
    return object_key(digest(text), legacy=True)


def remote(url: str, name: str = "storage", more: str = "") -> str:
    """A `.dvc/config` with a default remote."""
    return f"[core]\n    remote = {name}\n['remote \"{name}\"']\n    url = {url}\n{more}"


def artifacts(**paths: str) -> str:
    """A `dvc.yaml` that declares artifacts: name -> path."""
    return "artifacts:\n" + "".join(
        f"  {name}:\n    path: {path}\n    type: model\n" for name, path in paths.items()
    )


def output(path: str, md5: str, *more: str, legacy: bool = False) -> str:
    """A `.dvc` file of DVC 3, or of DVC 2."""
    lines = ["outs:", f"- md5: {md5}", "  size: 1", *([] if legacy else ["  hash: md5"])]
    return "\n".join([*lines, f"  path: {path}", *(f"  {line}" for line in more), ""])


class Store:
    """A DVC remote in a directory."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory

    @property
    def url(self) -> str:
        """As a location of the configuration."""
        return f"file://{self.directory}"

    def put(self, data: str | bytes, suffix: str = "") -> str:
        """Stores an object and returns its MD5."""
        raw = data.encode() if isinstance(data, str) else data
        file = self.directory / object_key(digest(raw) + suffix, legacy=False)
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(raw)
        return digest(raw) + suffix


class WebServer:
    """Serves bytes on loopback: path -> content, and keeps a line for every request it gets.

    `password` is the value of the Authorization header it wants, if any; `status` is what it
    answers instead of a content, while that is set. Use it in a `with` block.
    """

    def __init__(self, files: Mapping[str, bytes] | None = None, password: str = "") -> None:
        self.files = dict(files or {})
        self.requests: list[str] = []
        self.status: int | None = None
        server = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                server.requests.append(f"{self.command} {self.path}")
                data = server.files.get(self.path)
                status = server.status or (200 if data is not None else 404)
                if password and self.headers["Authorization"] != password:
                    status = 401
                body = data if status == 200 and data is not None else b""
                self.send_response(status)
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                if self.command == "GET":
                    self.wfile.write(body)

            do_HEAD = do_GET  # noqa: N815 the names are those of http.server

            def log_message(self, *_: object) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._server.server_port}"

    def __enter__(self) -> "WebServer":
        Thread(target=self._server.serve_forever, args=(0.01,), daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._server.server_close()
