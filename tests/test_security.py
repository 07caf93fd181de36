"""Misuse, from outside and through what repositories hold: the corpora of docs/security.md.

One real service, as `registry serve` starts it, takes it all; at the end it must still be the same
processes, and no larger than before.
"""

import json
import re
import socket
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlencode, urlsplit

import pytest
import urllib3
from gitrepo import GitRepository
from servers import registry as server
from servers.dvc import Clients
from servers.process import ROOT
from service import ENDPOINT, S3_KEYS, Registry, Store, WebServer, artifacts, output, remote
from smuggling import HIDDEN, SMUGGLING, line

from fuzz.__main__ import attempt, corpus
from fuzz.targets import TARGETS
from registry.domain import RelPath
from registry.errors import UnsafePath
from registry.repository.origin import Origin

NAME = "team/models"
URL = f"https://git.invalid/{NAME}.git"
MD5 = "d41d8cd98f00b204e9800998ecf8427e"

# S2: what must not be the path of a file that a client writes.
PATHS = [
    "", ".", "..", "/", "//", "../x", "../../x", "a/..", "a/../x", "a/../../x", "./x", "a/./b",
    "a/.", "a/", "a//b", "/etc/passwd", "//host/share", "///x", "\\x", "..\\x", "a\\..\\x",
    "\\\\host\\share\\x", "\\\\?\\C:\\x", "C:\\x", "C:/x", "C:x", "c:", "z:/..", "a\0b", "x\0",
    "\0", "a\nb", "a\rb", "a\r\nb", "a\tb", "\x1b[2Jx", "\x7f", "\x01", "..\0", "../\0x", "..\n/x",
    "a/\n/b", "/..", "/../x", "/./x", "./../x", "../.", "../..", "x/../..", "x/..//y",
    "a/b/../../../c",
    "\ud800", "a/\udfff", "x" * 256, "é" * 128, "d/" + "x" * 256, "a/" * 2048 + "a", "x/" * 3000,
    "..//..//x", ".//x", "a/b/..", "/proc/self/environ", "/dev/null",
]  # fmt: skip

# S2: what looks like it and is just a name; a client that decodes once more is not ours.
NAMES = ["%2e%2e/x", "..%2fx", "%2e%2e%2fx", "....//".rstrip("/"), "..;", "~root", "-rf", "$HOME"]

# S3 to S6: what must never be taken for a repository, or reach Git.
URLS = [
    "--upload-pack=touch x", "-u./x", "-oProxyCommand=x", "--", "ext::sh -c id", "EXT::sh -c id",
    "fd::17/x", "http::https://h/x", "file:///etc", "FILE:///etc", "file://host/etc", "/etc",
    "//etc",
    "./x", "../x", ".", "~", "~root/x", "\\\\host\\x", "C:\\x", "ssh://-oProxyCommand=id/x",
    "ssh://-oProxyCommand=id@h/x", "ssh://u@-oProxyCommand=id/x", "git@-oProxyCommand=id:x", "-h:x",
    "h:-oX", "git@h:../x", "git://h/x", "ftp://h/x", "gopher://h/x", "dict://h/x",
    "ldap://h/x",
    "https://h/x\r\nHost: evil", "https://h\r\n/x", "https://h/x\nprotocol=file", "https://h/x\0",
    "https://u:p@h/x", "https://github.com@127.0.0.1/x", "https://h/x?y", "https://h/x#y",
    "https://h/../x", "https://h/%2e%2e/x", "https://h:0x50/x", "https://h:99999/x", "https://[::1",
    "https://[::ffff:127.0.0.1%25eth0]/x", "ssh://[::1%25-oX]/x", "https://[1:2]/x", "https://[]/x",
    "https://h/$CANARY", "https://h/${CANARY}", "https://h/`id`", "https://h/$(id)",
    "https://h/;id",
    "https://h/|id", "https:///x", "https://", "https://h", "h ttps://h/x", "\thttps://h/x",
    "https://h\uff0fx/y",
]  # fmt: skip


def fold(levels: int, merge: bool) -> str:
    """Each line stands for nine of the line before it."""
    lines = ["a0: &a0 {k: v}"]
    for level in range(1, levels):
        parts = ", ".join([f"*a{level - 1}"] * 9)
        lines.append(f"a{level}: &a{level} " + (f"{{<<: [{parts}]}}" if merge else f"[{parts}]"))
    return "\n".join(lines)


LOOPS = "stages:\n" + "".join(
    f"  s{n}:\n    matrix: {{a: {[*range(50)]}, b: {[*range(50)]}}}\n    outs: ['${{item.a}}']\n"
    for n in range(60)
)
# S9: each is the dvc.yaml of a directory of its own.
YAML_BOMBS = {
    "laughs": fold(12, merge=False),
    "merges": fold(12, merge=True),
    "deep": "[" * 200_000,
    "blocks": "- " * 200_000 + "x",
    "digits": "a: " + "9" * 900_000,
    "large": "#" * (2 << 20),
    "wide": "[" + "1," * 300_000 + "1]",
    "keys": "{" + "? {" * 100_000,
    "loops": f"artifacts: {{m: {{path: x}}}}\n{LOOPS}",
    "templates": "vars: [{a: " + "x" * 4000 + "}]\nartifacts: {m: {path: '" + "${a}" * 900 + "'}}",
}
# S9: each is the manifest of a directory.
JSON_BOMBS = {
    "nested": "[" * 8_000_000,
    "objects": '{"a":' * 1_000_000,
    "number": "[" + "9" * 4_000_000 + "]",
    "exponent": '[{"md5": 1e999999999, "relpath": "a"}]',
    "prefixes": json.dumps([{"md5": MD5, "relpath": "a/" * n + "a"} for n in range(1, 1500)]),
    "empty": "[" + "{}," * 500_000 + "{}]",
}


@dataclass(frozen=True)
class Victim:
    """The running service, and a token that sees everything."""

    service: server.Service
    token: str

    def ask(self, name: str, **headers: str) -> urllib3.BaseHTTPResponse:
        """What it answers about an artifact."""
        query = urlencode({"repo": NAME, "name": name})
        with urllib3.PoolManager(retries=False, timeout=60) as pool:
            return pool.request(
                "GET",
                f"{self.service.url}{ENDPOINT}?{query}",
                headers={"Authorization": f"token {self.token}", **headers},
            )

    def processes(self) -> dict[int, int]:
        """The ids of its processes, and how many bytes each ever held in memory."""
        port, found = str(urlsplit(self.service.url).port), {}
        for directory in Path("/proc").glob("[0-9]*"):
            try:
                arguments = (directory / "cmdline").read_bytes().decode(errors="replace")
                status = (directory / "status").read_text()
            except OSError:
                continue
            peak = re.search(r"VmHWM:\s*(\d+) kB", status)
            if peak and f":{port}\0" in arguments and "gunicorn" in arguments:
                found[int(directory.name)] = int(peak[1]) << 10
        return found

    def say(self, data: bytes) -> bytes:
        """All that it answers to these bytes on one connection, until it or we have had enough."""
        url = urlsplit(self.service.url)
        with socket.create_connection((url.hostname, url.port), timeout=20) as connection:
            received = b""
            try:
                connection.sendall(data)
                connection.shutdown(socket.SHUT_WR)
                while piece := connection.recv(65536):
                    received += piece
            except OSError:
                pass  # it hung up while we were still talking
            return received


@pytest.fixture(scope="module")
def victim(tmp_path_factory) -> Iterator[Victim]:
    directory = tmp_path_factory.mktemp("victim")
    store, files, names = Store(directory / "store"), {}, []

    def tracked(directory: str, manifest: str) -> Mapping[str, str]:
        md5 = store.put(manifest.encode(errors="surrogatepass"), ".dir")
        return {
            f"{directory}/dvc.yaml": artifacts(m="data"),
            f"{directory}/data.dvc": output("data", md5),
        }

    files |= {"dvc.yaml": artifacts(m="model.pkl"), "model.pkl.dvc": output("model.pkl", MD5)}
    store.put(b"")
    for number, path in enumerate(PATHS):
        files |= tracked(f"path{number}", json.dumps([{"md5": MD5, "relpath": path}]))
        names.append(f"path{number}=m")
    for name, content in YAML_BOMBS.items():
        files[f"{name}/dvc.yaml"] = content
        names.append(f"{name}=m")
    for name, content in JSON_BOMBS.items():
        files |= tracked(name, content)
        names.append(f"{name}=m")
    origin = GitRepository(directory / "origin.git")
    origin.commit({**files, ".dvc/config": remote(store.url)})
    for name in ("m", *names):
        origin.tag(f"{name}@v1.0.0")
    repository = {"url": str(origin.path), "name": NAME, "aliases": [URL]}
    storage = [{"url": store.url, "repositories": ["*"]}]
    with server.start(directory, [repository], storage) as service:
        yield Victim(service, service.token())


def lives(victim: Victim, before: Mapping[int, int]) -> bool:
    """Whether the same processes still serve what is good."""
    return victim.ask("m").status == 200 and victim.processes().keys() == before.keys()


@pytest.mark.servers
@pytest.mark.parametrize("number", range(len(PATHS)), ids=lambda number: repr(PATHS[number])[:30])
def test_s2_a_manifest_with_a_hostile_path_is_refused(victim, number) -> None:
    answer = victim.ask(f"path{number}:m")

    assert answer.status == 422
    assert answer.json()["detail"].startswith("Unsafe path")


@pytest.mark.parametrize("path", PATHS, ids=lambda path: repr(path)[:30])
def test_s2_a_hostile_path_is_no_path(path) -> None:
    with pytest.raises(UnsafePath):
        RelPath.parse(path)


@pytest.mark.parametrize("path", NAMES)
def test_s2_a_path_is_never_decoded_or_expanded(path) -> None:
    assert RelPath.parse(path) == path


@pytest.mark.servers
@pytest.mark.parametrize("path", ["../x", "/proc/self/environ"])
def test_s2_dvc_itself_writes_nothing_outside_of_its_target(victim, tmp_path, path) -> None:
    environ = {"DVC_STUDIO_URL": victim.service.url, "DVC_STUDIO_TOKEN": victim.token}
    client = Clients(tmp_path / "home", environ)
    work = tmp_path / "deep/er/work"
    work.mkdir(parents=True)
    command = ["dvc", "artifacts", "get", URL, f"path{PATHS.index(path)}:m", "--rev", "v1.0.0"]

    log = victim.service.config.with_name("registry.log")
    before = log.read_text().count("Unsafe path")

    done = client.attempt(*command, "-o", "out", cwd=work)

    assert done.returncode != 0
    assert log.read_text().count("Unsafe path") > before  # it was asked, and said no
    assert [file for file in (tmp_path / "deep").rglob("*") if file.is_file()] == []


@pytest.mark.parametrize("url", URLS)
def test_s3_what_is_no_url_of_a_known_form_is_no_origin(url) -> None:
    if url in ("/etc", "file:///etc"):  # the operator may mirror a local path
        assert Origin.parse(url) == Origin("/etc", "file")
        return
    with pytest.raises(ValueError, match=r".+"):
        Origin.parse(url)


def test_s3_s4_s5_s6_no_question_makes_git_run_or_anything_be_contacted(
    tmp_path, monkeypatch
) -> None:
    """Git is recorded by a program of its name; a web server stands for whatever could be hit."""
    origin = GitRepository(tmp_path / "origin.git")
    origin.commit({"dvc.yaml": artifacts(m="x")})
    log = tmp_path / "git.log"
    shim = tmp_path / "bin/git"
    shim.parent.mkdir()
    shim.write_text(f'#!/bin/sh\necho "$@" >> {log}\nexit 1\n')
    shim.chmod(0o755)
    storage = [{"url": "s3://bucket/dvc", "repositories": ["*"], **S3_KEYS}]
    with (
        WebServer() as trap,
        Registry(tmp_path / "var", {NAME: origin}, storage) as registry,
    ):
        monkeypatch.setenv("PATH", f"{shim.parent}:/usr/bin:/bin")
        monkeypatch.setenv("CANARY", "canary")
        host = trap.url.removeprefix("http://")
        more = [f"{scheme}://{host}/$CANARY" for scheme in ("http", "https", "ssh", "git+ssh")]
        more += [f"http://[::ffff:{host.partition(':')[0]}]:{host.partition(':')[2]}/x", trap.url]
        more += [
            f"http://git.example@{host}/x",
            f"http://{host}\\@git.example/{NAME}",
            str(tmp_path),
        ]
        for url in [*URLS, *more]:
            answer = registry.ask("m", repo=url)

            assert answer.status_code in (400, 404), url
            assert "canary" not in answer.text
        assert trap.requests == []
    assert not log.exists()


@pytest.mark.servers
@pytest.mark.parametrize("name", [*YAML_BOMBS, *JSON_BOMBS])
def test_s9_s16_a_bomb_is_refused_and_the_workers_stay_as_they_are(victim, name) -> None:
    before = victim.processes()
    assert len(before) == 3  # gunicorn, and two workers

    answer = victim.ask(f"{name}:m")

    assert answer.status in (404, 422), answer.data
    assert len(answer.data) < 512
    assert lives(victim, before)
    assert max(victim.processes().values()) < 400 << 20


@pytest.mark.parametrize("target", TARGETS)
def test_s9_s16_what_fuzzing_found_and_began_with_is_taken_in_time(target) -> None:
    inputs = corpus(target)

    assert inputs
    for data in inputs:
        attempt(TARGETS[target][0], data)


@pytest.mark.servers
@pytest.mark.parametrize("how", SMUGGLING)
def test_s20_a_request_with_two_ends_is_refused_and_the_rest_is_not_read(victim, how) -> None:
    before = victim.processes()

    said = victim.say(line("/healthz") + SMUGGLING[how] + HIDDEN)

    assert re.match(rb"HTTP/1.1 (400|501) ", said), said[:200]
    assert said.count(b"HTTP/1.1 ") == 1
    assert lives(victim, before)


@pytest.mark.servers
@pytest.mark.parametrize(
    "data",
    [
        line("/" + "x" * 65_536) + b"\r\n",
        line("/healthz?" + "x" * 10_000_000) + b"\r\n",
        line("/healthz") + b"X: " + b"x" * 65_536 + b"\r\n\r\n",
        line("/healthz") + b"X" * 65_536 + b": x\r\n\r\n",
        line("/healthz") + b"X: y\r\n" * 5000 + b"\r\n",
        line("/healthz") + b"X: " + b"x" * 10_000_000,
        b"G" * 1_000_000,
        b"GET /healthz HTTP/9.9\r\n\r\n",
        b"GET /healthz SMTP\r\n\r\n",
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
    ],
    ids=lambda data: f"{bytes(data[:24])!r}..{len(data)}",
)
def test_s16_s20_what_is_too_large_or_no_http_is_refused(victim, data) -> None:
    before = victim.processes()

    said = victim.say(data)

    assert not said or re.match(rb"HTTP/1.1 (400|414|431|505) ", said), said[:200]
    assert lives(victim, before)


@pytest.mark.servers
def test_s20_a_long_name_of_a_repository_is_no_long_line(victim) -> None:
    """4,094 bytes, gunicorn's default, are few for a URL and a path that are escaped."""
    query = urlencode({"repo": "https://h/" + "é" * 500, "name": "m"})

    said = victim.say(
        f"GET {ENDPOINT}?{query} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n"
        f"Authorization: token {victim.token}\r\n\r\n".encode()
    )

    assert said.startswith(b"HTTP/1.1 404 ")


@pytest.mark.servers
def test_s20_no_other_site_is_let_in_and_no_browser_is_left_to_guess(victim) -> None:
    answers = [victim.ask(name, Origin="https://evil.example") for name in ("m", "unknown", "?")]
    with urllib3.PoolManager(retries=False) as pool:
        answers += [
            pool.request(
                "OPTIONS",
                f"{victim.service.url}{path}",
                headers={
                    "Origin": "https://evil.example",
                    "Access-Control-Request-Method": "GET",
                    "Access-Control-Request-Headers": "authorization",
                },
            )
            for path in (ENDPOINT, "/healthz", "/objects/x", "/api/openapi.json", "/nowhere")
        ]

    for answer in answers:
        assert not [name for name in answer.headers if name.lower().startswith("access-control-")]
        assert answer.headers["X-Content-Type-Options"] == "nosniff"
        assert answer.headers["Referrer-Policy"] == "no-referrer"
        assert "Set-Cookie" not in answer.headers


def test_every_threat_has_tests_that_exist_or_a_reason_why_not() -> None:
    page = (ROOT / "docs/security.md").read_text()
    rows = dict(re.findall(r"^\| (S\d+) \|(.*)\|$", page, re.MULTILINE))
    wanted = {f"S{number}" for number in (*range(1, 17), 20, 21)}

    assert wanted <= rows.keys()
    for threat, row in rows.items():
        named = re.findall(r"`(tests/[\w/]+\.py)::(\w+)`", row)
        assert named or "does not apply" in row, threat
        for file, name in named:
            assert f"def {name}(" in (ROOT / file).read_text(), f"{threat}: {file}::{name}"
