"""Two hosts behind nginx, with the configuration that is shipped: what it promises to clients, and
what the hosts share: the origin, the store and the database, and nothing else.
"""

import json
import os
import re
import signal
from collections.abc import Iterator
from contextlib import ExitStack, closing
from dataclasses import replace
from pathlib import Path

import pytest
import urllib3
from gitrepo import GitRepository
from servers.nginx import Front
from service import Store, artifacts, digest, output, remote
from smuggling import HIDDEN, SMUGGLING, line

from faults.hosts import Hosts
from faults.load import Load
from faults.observer import ENDPOINT, Observer, descendants, until
from faults.origins import BUCKET, LINKS, model
from faults.processes import needs_linux
from faults.wire import Connection, request, statuses
from registry.audit import AuditLog

pytestmark = [pytest.mark.servers, needs_linux]
MODELS, FILES = "team/models", "team/files"
MANY = 20_000
DATA = b"the model" * 1000
KEY = "canary-in-the-key-that-signs-tokens-and-links"
SECRET = "canary-in-the-webhook"
STORE = {
    "url": BUCKET,
    "repositories": [MODELS],
    "access_key_id": "AKIATEST",
    "secret_access_key": "canary-in-the-keys-of-the-store",
}
ELSEWHERE = "127.0.0.2"
"""Another client's address."""


def files(path: Path, store: Store) -> GitRepository:
    """A repository with a file `f` and a directory `d` of many files."""
    one = store.put(DATA)
    names = [{"md5": one, "relpath": f"part-{number:05}.bin"} for number in range(MANY)]
    many = store.put(json.dumps(names), ".dir")
    origin = GitRepository(path)
    origin.commit(
        {
            ".dvc/config": remote(store.url),
            "dvc.yaml": artifacts(f="model.bin", d="data"),
            "model.bin.dvc": output("model.bin", one),
            "data.dvc": output("data", many),
        }
    )
    for name in ("f@v1.0.0", "d@v1.0.0"):
        origin.tag(name)
    return origin


@pytest.fixture(scope="module")
def hosts(tmp_path_factory, servers_directory, postgresql) -> Iterator[Hosts]:
    directory = servers_directory / "faults-hosts"
    for place in (directory, directory / "front"):
        place.mkdir()
    front = Front.below(directory / "front")
    origins = tmp_path_factory.mktemp("origins")
    # What is in a path has to be escaped on the way to nginx, and is read there as it was.
    kept = files(origins / "files.git", Store(front.files / "team é+%41 x"))
    repositories = [
        {"name": name, "url": str(origin.path), "refresh": 1, "webhook_secret": SECRET}
        for name, origin in ((MODELS, model(origins / "models.git")), (FILES, kept))
    ]
    local = {
        "url": f"file://{front.files}",
        "repositories": [FILES],
        "x_accel_redirect": "/_files/",
    }
    hosts = Hosts(
        directory,
        front,
        repositories,
        [STORE, local],
        secret_key=KEY,
        database_url=postgresql.create_database(),
    )
    with hosts.running():
        yield hosts


@pytest.fixture(scope="module")
def watched(hosts) -> Iterator[Observer]:
    """Whoever asks nginx."""
    service = replace(hosts.services[0], url=hosts.front.url)
    secrets = [KEY, SECRET, str(STORE["secret_access_key"])]
    with Observer(service, {}, granted=[LINKS], secrets=secrets) as watched:
        yield watched
        for number in range(2):
            watched.hold_secrets(f"the log of host {number}", hosts.log(number, ever=True).encode())
        watched.hold_secrets("the log of nginx", hosts.front.log.read_bytes())
        watched.hold_secrets("the access log of nginx", hosts.front.access_log.read_bytes())


def question(watched: Observer, repository: str = MODELS, name: str = "m") -> bytes:
    path = f"{ENDPOINT}?repo={repository}&name={name}"
    return request(path, f"Authorization: token {watched.token}")


def get(url: str, method: str = "GET", **headers: str) -> urllib3.BaseHTTPResponse:
    sent = {name.replace("_", "-"): value for name, value in headers.items()}
    return urllib3.request(method, url, headers=sent, retries=False)


def lines(log: str) -> list[dict[str, object]]:
    return [json.loads(text) for text in log.splitlines() if text.startswith("{")]


# ---------------------------------------------------------------------------- downloads


def test_what_a_host_links_to_is_downloaded_through_nginx(hosts, watched) -> None:
    (link,) = watched.ask(FILES, "f").links.values()
    md5 = digest(DATA)
    whole = get(link)

    assert (whole.status, whole.data) == (200, DATA)
    assert whole.headers["ETag"] == f'"{md5}"'
    assert whole.headers["Content-Disposition"] == "attachment; filename*=UTF-8''model.bin"
    assert whole.headers["Cache-Control"] == "private, no-store"
    assert whole.headers["X-Content-Type-Options"] == "nosniff"
    assert whole.headers["Content-Type"] == "application/octet-stream"
    assert "X-Accel-Redirect" not in whole.headers
    part = get(link, Range="bytes=4-12")
    assert (part.status, part.data) == (206, DATA[4:13])
    resumed = get(link, Range="bytes=4-", If_Range=f'"{md5}"')
    assert (resumed.status, resumed.data) == (206, DATA[4:])
    assert get(link, Range="bytes=4-", If_Range='"other"').data == DATA
    assert get(link, If_None_Match=f'"{md5}"').status == 304
    beyond = get(link, Range=f"bytes={len(DATA)}-")
    assert (beyond.status, beyond.json()["code"]) == (416, "requested_range_not_satisfiable")
    assert beyond.headers["Content-Range"] == f"bytes */{len(DATA)}"
    head = get(link, "HEAD")
    assert (head.status, head.headers["Content-Length"]) == (200, str(len(DATA)))
    token = link.partition("/objects/")[2]
    for log in (hosts.front.log, hosts.front.access_log):
        assert token not in log.read_text()


def test_over_tls_as_well_where_those_lines_are_in(hosts, watched) -> None:
    (link,) = watched.ask(FILES, "f").links.values()
    with urllib3.PoolManager(ca_certs=str(hosts.front.certificate)) as pool:
        answer = pool.request("GET", link.replace(hosts.front.url, hosts.front.tls_url))

    assert (answer.status, answer.data) == (200, DATA)


def test_nothing_but_what_a_host_says_comes_out_of_the_store(hosts, watched) -> None:
    (link,) = watched.ask(FILES, "f").links.values()
    md5 = digest(DATA)
    (kept,) = hosts.front.files.glob(f"*/files/md5/{md5[:2]}/{md5[2:]}")
    below = kept.relative_to(hosts.front.files)
    for path in (f"/_files/{below}", f"/_files/../_files/{below}", "/_files/", "/%5ffiles/x"):
        refused = get(f"{hosts.front.url}{path}")
        assert refused.status == 404, path
    moved = kept.rename(kept.with_name("moved"))
    try:
        gone = get(link)
        kept.symlink_to(moved)
        behind_a_link = get(link)
    finally:
        kept.unlink()
        moved.rename(kept)

    assert (gone.status, gone.json()["code"]) == (404, "not_found")
    assert (behind_a_link.status, behind_a_link.json()["code"]) == (403, "forbidden")
    assert link.partition("/objects/")[2] not in hosts.front.log.read_text()
    assert get(link).status == 200


def test_a_directory_of_many_files_flows_through_and_is_kept_nowhere(hosts, watched) -> None:
    asked = question(watched, FILES, "d")
    with Connection(hosts.front.url, receive=4096) as slow:
        slow.send(asked)
        assert slow.socket.recv(100).startswith(b"HTTP/1.1 200 ")
        fast = watched.ask(FILES, "d")
        opened = {os.readlink(file) for pid in nginx(hosts) for file in fds(pid)}

    assert len(fast.links) == MANY
    assert len(fast.body) > 1 << 20
    assert not [file for file in opened if str(hosts.front.log.parent / "proxy") in file]


def nginx(hosts: Hosts) -> list[int]:
    """nginx's own processes."""
    master = int((hosts.front.log.parent / "nginx.pid").read_text())
    children = Path(f"/proc/{master}/task/{master}/children").read_text().split()
    return [master, *map(int, children)]


def fds(pid: int) -> list[Path]:
    return [*Path(f"/proc/{pid}/fd").iterdir()]


def test_a_small_answer_is_one_segment_here_too(hosts, watched) -> None:
    with Connection(hosts.front.url) as client:
        for count in range(1, 11):
            client.send(question(watched))
            client.answer()
            assert client.segments() == count


# ------------------------------------------------------------------------ who asks, and what


def test_the_hosts_know_who_asks_and_log_the_same_request(hosts, watched) -> None:
    given = "given-by-the-client-1"
    asked = f"{ENDPOINT}?repo={MODELS}&name=m"
    token = f"Authorization: token {watched.token}"
    claims = "X-Forwarded-For: 192.0.2.66"
    with Connection(hosts.front.url, source=ELSEWHERE) as client:
        client.send(request(asked, token, claims, f"X-Request-Id: {given}"))
        first = client.answer()[1]["x-request-id"]
        client.send(request(asked, token, claims, "X-Request-Id: no"))
        second = client.answer()[1]["x-request-id"]

    assert first == given
    assert re.fullmatch("[0-9a-f]{32}", second)
    log = lines(until(lambda: logged(hosts, first, second)))
    told = {item["request"]: item["address"] for item in log if "request" in item}
    assert (told[first], told[second]) == (ELSEWHERE, ELSEWHERE)
    until(lambda: second in hosts.front.access_log.read_text())
    at_nginx = {item["request"]: item for item in lines(hosts.front.access_log.read_text())}
    assert at_nginx[first]["address"] == ELSEWHERE
    assert at_nginx[first]["path"] == ENDPOINT
    assert "name=m" not in hosts.front.access_log.read_text()


def logged(hosts: Hosts, *requests: str) -> str:
    """What both hosts have logged, once these requests are among it."""
    log = hosts.log(0) + hosts.log(1)
    return log if all(request in log for request in requests) else ""


def test_a_hook_goes_through(hosts, watched) -> None:
    url = f"{hosts.front.url}/hooks/generic?repo={MODELS}"

    assert get(url, "POST", Authorization=f"Bearer {SECRET}").status == 202
    assert get(url, "POST", Authorization="Bearer wrong").status == 401


REFUSED = [
    (200, "", request("/healthz?" + "x" * (8190 - len("GET /healthz? HTTP/1.1")))),
    (414, "request_uri_too_long", request("/healthz?" + "x" * 8170)),
    (414, "request_uri_too_long", request("/" + "x" * 100_000)),
    (431, "request_header_fields_too_large", request("/healthz", "X: " + "x" * 65_536)),
    (413, "request_entity_too_large", request("/x", "Content-Length: 9999999", method="POST")),
    (413, "request_entity_too_large", request("/hooks/x", method="POST", body=b"x" * (2 << 20))),
    (400, "bad_request", request("/healthz", "Content-Length: 1", "Content-Length: 2")),
    (400, "bad_request", b"nonsense\r\n\r\n"),
    (501, "not_implemented", request("/healthz", "Transfer-Encoding: xchunked")),
    (404, "not_found", request("/metrics")),
    (405, "method_not_allowed", request("/healthz", method="TRACE")),
]


@pytest.mark.parametrize(("status", "code", "data"), REFUSED, ids=lambda it: str(it)[:24])
def test_what_nginx_refuses_has_the_form_of_what_the_hosts_refuse(
    hosts, watched, status, code, data
) -> None:
    with Connection(hosts.front.url) as client:
        client.send(data)
        given, headers, body = client.answer()

    assert given == status
    assert headers["content-type"] == "application/json"
    answer = json.loads(body)
    if code:
        assert answer["code"] == code
        assert answer["request_id"] == headers["x-request-id"]
        assert answer["detail"]
    assert ("retry-after" in headers) == (status >= 500)


@pytest.mark.parametrize("how", SMUGGLING)
def test_s20_nginx_and_the_hosts_read_the_same_requests(hosts, watched, how) -> None:
    """Either nginx refuses it, or the hosts see as many requests as nginx passes on answers."""
    mark = f"hidden-{list(SMUGGLING).index(how)}"
    first = f"X-Request-Id: first-of-{mark}".encode()
    more = f"\r\nX-Request-Id: {mark}\r\nConnection: close\r\n\r\n".encode()
    with Connection(hosts.front.url) as client:
        client.send(line("/healthz") + first + b"\r\n" + SMUGGLING[how])
        client.send(HIDDEN.replace(b"\r\n\r\n", more))
        answered = statuses(client.rest())
    passed = [status for status in answered if status in (200, 401)]

    def seen() -> list[object]:
        log = lines(hosts.log(0) + hosts.log(1))
        return [it["request"] for it in log if str(it.get("request", "")).endswith(mark)]

    until(lambda: len(seen()) >= len(passed))
    assert answered in ([400], [501], [200, 401])
    assert len(seen()) == len(passed)
    assert len(set(seen())) == len(passed)


# --------------------------------------------------------------------- slow and many clients


def test_s16_slow_clients_are_closed_and_keep_nobody_waiting(hosts, watched) -> None:
    """200 that send a head byte by byte, and as many as one address may that send a body so."""
    with ExitStack() as held:

        def crowd(count: int, data: bytes) -> list[Connection]:
            clients = [
                held.enter_context(Connection(hosts.front.url, source=ELSEWHERE))
                for _ in range(count)
            ]
            for client in clients:
                client.send(data)
            return clients

        heads = crowd(200, b"GET /healthz HTTP/1.1\r\nX: ")
        part = request("/hooks/github", "Content-Length: 100", method="POST") + b"{"
        bodies = crowd(100, part)

        def all_closed() -> bool:
            assert watched.ask(MODELS).status == 200
            for client in heads:
                client.send(b"x")
            return all(client.is_closed() for client in (*heads, *bodies))

        def one_more() -> tuple[int, dict[str, str], bytes] | None:
            bodies.extend(crowd(1, part))  # another may have taken the place of one of them
            with Connection(hosts.front.url, source=ELSEWHERE) as client:
                client.send(request("/healthz"))
                answer = client.answer()
            return answer if answer[0] == 429 else None

        status, headers, body = until(one_more)
        until(all_closed)

    assert (status, json.loads(body)["code"]) == (429, "too_many_requests")
    assert int(headers["retry-after"]) > 0


# --------------------------------------------------------------------------- what is shared


def test_a_token_of_one_host_is_one_of_the_other_and_so_is_its_end(hosts, watched) -> None:
    first, second = (hosts.services[number] for number in range(2))
    created = json.loads(first.command("token", "create", "--name", "both", "--json"))
    token = created["token"]

    def asked(url: str) -> urllib3.BaseHTTPResponse:
        return get(f"{url}{ENDPOINT}?repo={FILES}&name=f", Authorization=f"token {token}")

    answers = [asked(first.url), asked(second.url)]
    assert [answer.status for answer in answers] == [200, 200]
    for header in ("X-Registry-Revision", "X-Registry-Tag", "X-Registry-Version"):
        assert answers[0].headers[header] == answers[1].headers[header]
    links = [answer.json()["model.bin"] for answer in answers]
    assert [get(link).data for link in links] == [DATA, DATA]

    second.command("token", "revoke", created["id"])
    until(lambda: [asked(url).status for url in (first.url, second.url)] == [401, 401])


def test_what_both_hosts_granted_is_one_audit_log(hosts, watched) -> None:
    database = json.loads(hosts.services[0].config.read_text())["database_url"]
    before = len(granted(database))
    for number in (0, 1, 0, 1):
        answer = get(
            f"{hosts.services[number].url}{ENDPOINT}?repo={MODELS}&name=m",
            Authorization=f"token {watched.token}",
        )
        assert answer.status == 200

    until(lambda: len(granted(database)) >= before + 4)
    rows = [hosts.services[number].command("audit", "show", "--json") for number in range(2)]
    assert rows[0] == rows[1]
    assert "is whole" in hosts.services[1].command("audit", "verify")


def granted(database: str) -> list[object]:
    with closing(AuditLog(database, [KEY], "off")) as log:
        return [*log.rows()]


# --------------------------------------------------------------------------- restarts


def test_a_restart_of_one_host_after_the_other_fails_no_request(hosts, watched) -> None:
    """The next one is stopped when the first answers through nginx again."""
    asked = question(watched)
    with Load(hosts.front.url, asked) as load:
        load.more()
        for number in range(2):
            hosts.stop(number)
            load.more()
            hosts.start(number)
            until(lambda number=number: "/get-download-uris" in hosts.log(number))
        load.more()

    assert load.failures == []
    assert list(load.answers) == [200]
    assert load.refused == 0


def test_a_host_that_hangs_fails_no_question(hosts, watched) -> None:
    """It still takes connections: its kernel does. Some are answered late, by the other host."""
    hung = [*descendants(hosts.services[0].pid)]
    with Load(hosts.front.url, question(watched), patience=30) as load:
        load.more()
        for pid in hung:
            os.kill(pid, signal.SIGSTOP)
        try:
            until(lambda: "upstream timed out" in hosts.front.log.read_text())
            load.more()
        finally:
            for pid in reversed(hung):
                os.kill(pid, signal.SIGCONT)

    assert load.failures == []
    assert list(load.answers) == [200]


def test_a_host_that_fails_fails_no_question_and_both_are_a_503(hosts, watched) -> None:
    with Load(hosts.front.url, question(watched)) as load:
        load.more()
        hosts.kill(0)
        load.more()
    hosts.kill(1)
    nobody = until(lambda: (it := watched.get("/healthz")).status >= 500 and it)
    for number in range(2):
        hosts.start(number)
    until(lambda: watched.get("/healthz").status == 200)

    assert load.failures == []
    assert list(load.answers) == [200]
    assert nobody.status == 502
    assert json.loads(nobody.body)["code"] == "unavailable"
