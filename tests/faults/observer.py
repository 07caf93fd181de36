"""What must never happen, whatever is broken: watched from outside of a running service."""

import json
import time
from base64 import b64encode
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from subprocess import CalledProcessError
from threading import Event, Lock, Thread
from typing import TypeVar
from urllib.parse import quote

import sqlalchemy as sa
import urllib3
from gitrepo import GitRepository
from servers.registry import Service

from registry.audit import AuditLog

ENDPOINT = "/api/model-registry/get-download-uris"
PATIENCE = 20.0
"""Seconds without a byte after which an answer fails the test with urllib3's ReadTimeoutError.

Nothing that is broken is waited for longer than 4 s, so that DVC's client, which gives up after 5,
gets an answer; what waits where it must not waits for half a minute, or for ever. Between the two
is room for a machine that has something else to do.
"""
DEADLINE = 60.0
"""Seconds after which nothing is waited for any more."""
_PROC = Path("/proc")
_POLL = 0.02
_WARNING = '110 - "Response is Stale"'

Found = TypeVar("Found")


def until(look: Callable[[], Found], deadline: float = DEADLINE) -> Found:
    """What `look` returns as soon as that is true; it is asked again and again until then."""
    end = time.monotonic() + deadline
    while not (found := look()):
        if time.monotonic() > end:
            raise AssertionError(f"not within {deadline:g} s: the last look gave {found!r}")
        Event().wait(_POLL)
    return found


@dataclass(frozen=True)
class Answer:
    """What the service answered; `headers` are found however they are spelled."""

    status: int
    headers: Mapping[str, str]
    body: bytes

    @property
    def links(self) -> dict[str, str]:
        """Path -> link, of a success."""
        assert self.status == 200, (self.status, self.body)
        links: dict[str, str] = json.loads(self.body)
        return links

    @property
    def detail(self) -> str:
        """What a failure says."""
        return str(json.loads(self.body)["detail"])

    @property
    def revision(self) -> str | None:
        """The commit that the artifact was found at."""
        return self.headers.get("X-Registry-Revision")

    @property
    def tag(self) -> str | None:
        """The tag that named the commit."""
        return self.headers.get("X-Registry-Tag")

    @property
    def age(self) -> int:
        """Seconds since the origin was last seen."""
        return int(self.headers["X-Registry-Mirror-Age"])

    @property
    def is_stale(self) -> bool:
        """Whether it is labelled as older than it should be."""
        return "Warning" in self.headers


class Observer:
    """Asks a running service, and holds every answer against what must never happen:

    - a commit under a tag where the origin never had it;
    - for one client, an answer that is older than the one before;
    - a link to anywhere but the granted locations;
    - a secret in a body, a header, the log, the metrics, a command line of any process of the
      service at any time, or anywhere in the database, of which the audit log must be whole;
    - a 5xx without `Retry-After` or without a body in JSON that says what is wrong.

    What must not happen raises an AssertionError where it is seen, on leaving the block at the
    latest. The way to use it, here with the fixture `serve` of conftest.py:

    >>> origin = model(tmp_path / "models.git")              # a GitRepository, faults.origins
    >>> watched = serve({"team/models": origin})              # starts the service
    >>> answer = watched.ask("team/models", stage="prod")     # by default of the artifact `m`
    >>> assert (answer.status, answer.revision) == (200, origin.head())
    >>> origin.tag("m#prod#1", newer)
    >>> watched.note("team/models")                           # where a state would pass unseen
    >>> until(lambda: watched.ask("team/models", stage="prod").revision == newer)

    and by itself, over any Service:

    >>> with Observer(service, {"team/models": origin}, granted=[url], secrets=[...]) as watched:

    Every request goes over a connection of its own, so that all workers are asked. `ask` is for one
    thread; each further one takes a `client()` of its own. `granted` are the beginnings of links;
    those of the service's own gateway always count. `token` is one that sees all repositories and
    the metrics, by default a new one; `clock` is the clock of the service, where that is not ours.
    Repositories that are not among `origins` are not followed.
    """

    def __init__(
        self,
        service: Service,
        origins: Mapping[str, GitRepository],
        *,
        granted: Sequence[str],
        secrets: Iterable[str],
        token: str | None = None,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self.service = service
        self.clock = clock
        self.token = token or service.token("--scope", "models:read", "--scope", "metrics:read")
        self._granted = (f"{service.url}/objects/", *granted)
        self._secrets = {text: _forms(text) for text in (*secrets, self.token)}
        self._ledgers = {name: _Ledger(origin) for name, origin in origins.items()}
        self._pool = urllib3.PoolManager(retries=False, maxsize=32)
        self._client = self.client()
        self.command_lines: set[bytes] = set()
        self._over = Event()
        self._watch = Thread(target=self._read_command_lines, name="command lines")

    def __enter__(self) -> "Observer":
        for name in self._ledgers:
            self.note(name)
        self._watch.start()
        return self

    def __exit__(self, kind: object, *_: object) -> None:
        self._over.set()
        self._watch.join()
        try:
            if kind is None:
                self._look_around()
        finally:
            self._pool.clear()

    def client(self, token: str | None = None, timeout: float = PATIENCE) -> "Client":
        """Another client, for one thread. Its answers must come within `timeout` seconds."""
        return Client(self, token or self.token, timeout)

    def ask(self, repository: str, name: str = "m", **query: str) -> Answer:
        """What the service answers about an artifact."""
        return self._client.ask(repository, name, **query)

    def get(self, path: str, **headers: str) -> Answer:
        """What the service answers to GET, with the token."""
        return self._client.get(path, **headers)

    def hook(self, repository: str) -> Answer:
        """What the service answers to a webhook that says that the repository changed."""
        return self._client.hook(repository)

    def note(self, repository: str) -> None:
        """Takes note of the tags that the origin has now: to be called after each of several
        changes that follow too fast for the service to be asked between them.
        """
        self._ledgers[repository].look()

    def hold_secrets(self, place: str, data: bytes) -> None:
        """Raises AssertionError when `data`, found at `place`, holds a secret in any form."""
        for secret, forms in self._secrets.items():
            for form in forms:
                assert form not in data, f"the secret {secret[:12]}... is in {place}"

    def hold(self, answer: Answer, where: str) -> None:
        """Raises AssertionError for an answer that must never be given to anybody."""
        text = "".join(f"{name}: {value}\n" for name, value in answer.headers.items())
        self.hold_secrets(f"the headers of {where}", text.encode())
        self.hold_secrets(f"the body of {where}", answer.body)
        if answer.status >= 500:
            told = f"{where}: {answer.status} {answer.body[:200]!r}"
            assert int(answer.headers.get("Retry-After", "0")) > 0, f"no Retry-After: {told}"
            assert answer.headers["Content-Type"] == "application/json", f"no JSON: {told}"
            assert json.loads(answer.body), told
            assert len(answer.body) <= 512, f"too long: {told}"
            assert b"Traceback" not in answer.body, told

    def hold_links(self, links: Mapping[str, str], where: str) -> None:
        """Raises AssertionError for links to what was not granted."""
        for path, link in links.items():
            place = link.partition("?")[0]
            assert place.startswith(self._granted), f"{where}: {path} is at {place}"
            assert ".." not in place.split("/"), f"{where}: {path} is at {place}"

    def ledger(self, repository: str) -> "_Ledger | None":
        """What the origin is known to have had, if it is followed."""
        return self._ledgers.get(repository)

    # What is looked at besides the answers

    def _read_command_lines(self) -> None:
        """Reads the command line of every process of the service, while the block lasts."""
        while not self._over.wait(_POLL) and _PROC.is_dir():
            for pid in descendants(self.service.pid):
                with suppress(OSError):
                    self.command_lines.add((_PROC / str(pid) / "cmdline").read_bytes())

    def _look_around(self) -> None:
        for line in self.command_lines:
            self.hold_secrets(f"the command line {line[:80]!r}", line)
        self.hold_secrets("the log", self.service.log.read_bytes())
        with suppress(urllib3.exceptions.HTTPError):  # it may have been stopped
            self.hold(self.get("/metrics"), "/metrics")
        document = json.loads(self.service.config.read_text())
        database = document.get("database_url") or f"sqlite:///{document['data_dir']}/registry.db"
        for table, row in _rows(database):
            self.hold_secrets(f"a row of {table}", row)
        keys = document["secret_key"]
        audit = AuditLog(database, [keys] if isinstance(keys, str) else keys, "off")
        assert list(audit.verify()) == []
        audit.close()


class Client:
    """One client, who must never be told less than it was told before. For one thread."""

    def __init__(self, observer: Observer, token: str, timeout: float) -> None:
        self._observer = observer
        self._token = token
        self._pool = urllib3.PoolManager(retries=False, timeout=timeout)
        self._told: dict[tuple[str, str], tuple[str, str]] = {}
        self._checked: dict[str, float] = defaultdict(float)

    def ask(self, repository: str, name: str = "m", **query: str) -> Answer:
        """What the service answers about an artifact."""
        pairs = {"repo": repository, "name": name, **query}
        asked = "&".join(f"{key}={quote(value)}" for key, value in pairs.items())
        begun = self._observer.clock()
        answer = self.get(f"{ENDPOINT}?{asked}")
        if answer.status == 200:
            self._observer.hold_links(answer.links, asked)
            self._hold_age(repository, answer, begun)
            ledger = self._observer.ledger(repository)
            if ledger:
                self._hold_truth(ledger, repository, asked, answer)
        return answer

    def get(self, path: str, **headers: str) -> Answer:
        """What the service answers to GET, with the token."""
        more = {name.replace("_", "-"): value for name, value in headers.items()}
        return self._request("GET", path, f"token {self._token}", **more)

    def _request(self, method: str, path: str, authorization: str, **headers: str) -> Answer:
        sent = {"Authorization": authorization, "Connection": "close", **headers}
        answer = self._pool.request(method, f"{self._observer.service.url}{path}", headers=sent)
        given = Answer(answer.status, answer.headers, answer.data)
        self._observer.hold(given, path)
        return given

    def hook(self, repository: str) -> Answer:
        """What the service answers to a webhook of the repository, which knows its secret."""
        configured = json.loads(self._observer.service.config.read_text())["repositories"]
        (secret,) = [it["webhook_secret"] for it in configured if it["name"] == repository]
        return self._request("POST", f"/hooks/generic?repo={quote(repository)}", f"Bearer {secret}")

    def _hold_age(self, repository: str, answer: Answer, begun: float) -> None:
        """By the age it gives, the state of this answer is not older than that of the last one."""
        # An age is in whole seconds, and that of an answer made earlier in its second.
        oldest, newest = begun - answer.age - 2, self._observer.clock() - answer.age
        assert newest >= self._checked[repository], (
            f"{repository}: seen at {newest:.1f} at the latest, and at "
            f"{self._checked[repository]:.1f} before"
        )
        self._checked[repository] = max(oldest, self._checked[repository])
        assert answer.headers.get("Warning") in (None, _WARNING)

    def _hold_truth(self, ledger: "_Ledger", repository: str, asked: str, answer: Answer) -> None:
        assert answer.tag
        assert answer.revision
        told = answer.tag, answer.revision
        assert ledger.had(told), f"{asked}: the origin never had {told[1]} as {told[0]}"
        last = self._told.get((repository, asked))
        assert last is None or not ledger.is_over(told, before=last), (
            f"{asked}: {told} was over before {last} was there, and came after it"
        )
        self._told[repository, asked] = told


@dataclass
class _Ledger:
    """Every state of an origin's tags that was seen, numbered in their order."""

    origin: GitRepository
    _states: int = 0
    _first: dict[tuple[str, str], int] = field(default_factory=dict)
    _last: dict[tuple[str, str], int] = field(default_factory=dict)
    _named: dict[str, int] = field(default_factory=dict)
    _lock: Lock = field(default_factory=Lock)

    def look(self) -> None:
        """Takes note of the tags as they are; of none where the origin cannot be read now."""
        command = ("for-each-ref", "--format=%(objectname) %(*objectname) %(refname:strip=2)")
        with self._lock, suppress(CalledProcessError):
            for line in self.origin.git(*command, "refs/tags").splitlines():
                direct, peeled, name = line.split(" ", 2)
                pair = name, peeled or direct
                self._first.setdefault(pair, self._states)
                self._last[pair] = self._named[name] = self._states
            self._states += 1

    def had(self, pair: tuple[str, str]) -> bool:
        """Whether the origin ever had a tag, the first of the pair, at a commit, the second."""
        if pair not in self._first:
            self.look()
        return pair in self._first

    def is_over(self, pair: tuple[str, str], before: tuple[str, str]) -> bool:
        """Whether a pair was gone before another one appeared. A version goes on meaning what it
        did for as long as there is a tag of its name.
        """
        self.look()
        tag = pair[0]
        last = self._named[tag] if "@" in tag else self._last[pair]
        return last < self._first[before]


def descendants(pid: int) -> Iterator[int]:
    """A process and all that descend from it and live."""
    children = defaultdict(list)
    for place in _PROC.glob("[0-9]*"):
        with suppress(OSError):  # it ended meanwhile
            # The name of the program, in parentheses, may hold anything.
            parent = int((place / "stat").read_text().rpartition(")")[2].split()[1])
            children[parent].append(int(place.name))
    waiting = [pid]
    while waiting:
        one = waiting.pop()
        yield one
        waiting += children[one]


def command_line(pid: int) -> list[str]:
    """The words of it; none of a process that is dead, reaped or not."""
    try:
        return (_PROC / str(pid) / "cmdline").read_bytes().decode(errors="replace").split("\0")[:-1]
    except OSError:
        return []


def _forms(secret: str) -> tuple[bytes, ...]:
    """A secret as it is, as a part of a URL, and inside of anything in Base64."""
    raw = secret.encode()
    encoded = []
    for shift in range(3):
        text = b64encode(bytes(shift) + raw)
        encoded.append(text[4 if shift else 0 : -4].rstrip(b"="))
    return (raw, quote(secret, safe="").encode(), *encoded)


def _rows(database: str) -> Iterator[tuple[str, bytes]]:
    """Every row of every table of a database, and its table."""
    engine = sa.create_engine(database)
    try:
        with engine.connect() as connection:
            for name in sa.inspect(connection).get_table_names():
                for row in connection.execute(sa.select(sa.text("*")).select_from(sa.table(name))):
                    yield name, repr(tuple(row)).encode()
    finally:
        engine.dispose()
