"""The download without Python, as the documentation shows it: real curl, aria2c and md5sum."""

import json
import os
import re
import shutil
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from gitrepo import GitRepository
from servers import registry
from service import Store, artifacts, digest, output, remote

pytestmark = pytest.mark.servers

PAGE = Path(__file__).parent.parent.parent / "docs/dialects/registry.md"
TOKEN_FILE, TWO_LINES, ARIA2 = re.findall(r"^```sh\n(.*?)^```", PAGE.read_text(), re.M | re.S)
CURL_VERSION = (7, 84)

NAMES = [
    "plain.bin",
    "deep/er/file",
    "-",
    "-o",
    "--config",
    " leading",
    'quo"te',
    "sin'gle",
    "#1",
    "# comment",
    "[1-3]",
    "{a,b}",
    "$(touch evil)`touch evil`",
    "%2e%2e%2fup",
    "a?b&c=d",
    "ünïcödé 😀",
    "\u202egnp.exe",
    "url = x",
    "out=x",
    "*",
    "~",
    "x;y|z",
]


@dataclass(frozen=True)
class Published:
    """A running service, and where its store keeps its objects."""

    service: registry.Service
    store: Store
    origin: GitRepository
    token: str

    def run(self, script: str, directory: Path) -> subprocess.CompletedProcess[str]:
        """Runs a script of the documentation as a person would."""
        environ = {
            "PATH": os.environ["PATH"],
            "REGISTRY_URL": self.service.url,
            "REGISTRY_TOKEN": self.token,
        }
        return subprocess.run(
            ["sh", "-c", script], cwd=directory, env=environ, capture_output=True, text=True,
            check=False, timeout=120,
        )  # fmt: skip


@pytest.fixture(scope="module")
def published(tmp_path_factory) -> Iterator[Published]:
    """An artifact `classifier` in `prod`: a directory of files with names that mean something."""
    directory = tmp_path_factory.mktemp("shell")
    store = Store(directory / "store")
    listed = [{"md5": store.put(f"bytes of {name}"), "relpath": name} for name in NAMES]
    origin = GitRepository(directory / "origin.git")
    origin.commit(
        {
            ".dvc/config": remote(store.url),
            "dvc.yaml": artifacts(classifier="data"),
            "data.dvc": output("data", store.put(json.dumps(listed), ".dir")),
        }
    )
    origin.tag("classifier@v1.0.0")
    origin.tag("classifier#prod#1")
    repositories = [{"name": "team/models", "url": str(origin.path)}]
    storage = [{"url": store.url, "repositories": ["*"]}]
    with registry.start(directory, repositories, storage) as service:
        yield Published(service, store, origin, service.token())


def need(*programs: str) -> None:
    for program in programs:
        if not shutil.which(program):
            pytest.skip(f"{program} is not installed")
    said = subprocess.run(["curl", "--version"], capture_output=True, text=True, check=True).stdout
    major, minor = map(int, said.split()[1].split(".")[:2])
    if (major, minor) < CURL_VERSION:
        pytest.skip("this curl cannot print a header")


def downloaded(directory: Path) -> dict[str, str]:
    return {
        str(file.relative_to(directory)): file.read_text()
        for file in directory.rglob("*")
        if file.is_file()
    }


EXPECTED = {f"data/{name}": f"bytes of {name}" for name in NAMES}


def test_the_two_lines_of_the_documentation_download_a_model_and_check_it(
    published, tmp_path
) -> None:
    need("curl", "md5sum")
    assert len(TWO_LINES.splitlines()) == 2

    done = published.run(TOKEN_FILE + TWO_LINES, tmp_path)

    assert (done.returncode, done.stderr) == (0, "")
    assert (tmp_path / "auth").stat().st_mode & 0o777 == 0o600
    (tmp_path / "auth").unlink()
    receipt = json.loads((tmp_path / "receipt.json").read_text())
    (tmp_path / "receipt.json").unlink()
    assert receipt["selector"] == {"stage": "prod"}
    assert downloaded(tmp_path) == EXPECTED


def test_aria2_downloads_and_checks_the_same(published, tmp_path) -> None:
    need("curl", "aria2c")
    first_line = TWO_LINES.splitlines(keepends=True)[0]

    done = published.run(TOKEN_FILE + first_line + ARIA2, tmp_path)

    assert done.returncode == 0, done.stdout + done.stderr
    for name in ("auth", "receipt.json"):
        (tmp_path / name).unlink()
    assert downloaded(tmp_path) == EXPECTED


@pytest.mark.parametrize("second", ["curl", "aria2"])
def test_other_bytes_than_those_of_the_receipt_are_noticed(published, tmp_path, second) -> None:
    need("curl", "md5sum", "aria2c")
    first_line = TWO_LINES.splitlines(keepends=True)[0]
    name = digest(f"bytes of {NAMES[0]}")
    file = published.store.directory / "files/md5" / name[:2] / name[2:]
    sound = file.read_bytes()
    file.write_bytes(b"other".ljust(len(sound)))
    try:
        script = TWO_LINES if second == "curl" else first_line + ARIA2
        done = published.run(TOKEN_FILE + script, tmp_path)
    finally:
        file.write_bytes(sound)

    assert done.returncode != 0


def test_a_file_that_is_missing_is_noticed_although_all_others_come(published, tmp_path) -> None:
    need("curl", "md5sum")
    name = digest(f"bytes of {NAMES[1]}")
    file = published.store.directory / "files/md5" / name[:2] / name[2:]
    aside = file.rename(file.with_suffix(".aside"))
    try:
        done = published.run(TOKEN_FILE + TWO_LINES, tmp_path)
    finally:
        aside.rename(file)

    assert done.returncode != 0


@pytest.mark.parametrize("script", [TWO_LINES, TWO_LINES.replace("prod", "never")])
def test_whoever_is_refused_is_left_with_a_failure_and_no_file(published, tmp_path, script) -> None:
    need("curl", "md5sum")
    token = "REGISTRY_TOKEN=wrong\n" if script is TWO_LINES else ""

    done = published.run(token + TOKEN_FILE + script, tmp_path)

    assert done.returncode != 0
    assert not (tmp_path / "data").exists()


def test_aria2_is_not_given_a_name_that_it_would_cut(published, tmp_path) -> None:
    need("curl", "aria2c")
    listed = [{"md5": published.store.put("x"), "relpath": "trailing "}]
    published.origin.commit(
        {"data.dvc": output("data", published.store.put(json.dumps(listed), ".dir"))}
    )
    published.origin.tag("classifier@v2.0.0")
    script = TOKEN_FILE + TWO_LINES.replace("stage=prod", "version=v2.0.0&max_age=0")
    done = published.run(script, tmp_path)
    assert (done.returncode, done.stderr) == (0, "")
    assert (tmp_path / "data/trailing ").read_text() == "x"

    first_line = script.splitlines(keepends=True)[:2]
    refused = published.run("".join(first_line) + ARIA2, tmp_path)

    assert "422" in refused.stderr
