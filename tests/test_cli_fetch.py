"""`registry get` and its kin without a service: straight from Git and the store."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from click.testing import CliRunner, Result
from gitrepo import GitRepository
from gitserver import serve_http
from rangeserver import RangeServer
from service import Store, artifacts, digest, key, output, remote

from registry.cli import cli, failures
from registry.errors import RegistryError, VersionNotFound

MODEL = {"v1.0.0": b"one " * 1000, "v2.0.0": b"two " * 1000}
TOKENS = {"vocab.txt": b"a\nb\n", "deep/é +%.bin": b"odd", "empty": b""}
PATIENCE = 30.0


@pytest.fixture(autouse=True)
def nobody(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing of whoever runs the tests."""
    for name in list(os.environ):
        if name.startswith(("REGISTRY_", "DVC_", "AWS_", "AZURE_")):
            monkeypatch.delenv(name)
    monkeypatch.setenv("REGISTRY_CACHE_DIR", str(tmp_path / "cache"))
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setenv("DVC_GLOBAL_CONFIG_DIR", str(tmp_path / "home"))
    monkeypatch.setenv("DVC_SYSTEM_CONFIG_DIR", str(tmp_path / "home"))


def publish(origin: GitRepository, store: Store, url: str) -> None:
    """Two versions of a file, the first in `prod`, and a directory."""
    listed = [{"md5": store.put(data), "relpath": path} for path, data in sorted(TOKENS.items())]
    tokens = store.put(json.dumps(listed, sort_keys=True), ".dir")
    for version, data in MODEL.items():
        origin.commit(
            {
                ".dvc/config": remote(url),
                "dvc.yaml": artifacts(m="models/m.pkl", tokens="tokens"),
                "models/m.pkl.dvc": output("m.pkl", store.put(data)).replace(
                    "size: 1", f"size: {len(data)}"
                ),
                "tokens.dvc": output("tokens", tokens),
            }
        )
        origin.tag(f"m@{version}")
    origin.tag("tokens@v1.0.0")
    origin.tag("m#prod#1", origin.git("rev-parse", "main^"))


@pytest.fixture
def origin(tmp_path: Path) -> GitRepository:
    origin, store = GitRepository(tmp_path / "origin.git"), Store(tmp_path / "store")
    publish(origin, store, str(store.directory))
    return origin


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)

    def invoke(*arguments: str) -> Result:
        return CliRunner().invoke(cli, list(map(str, arguments)))

    return invoke


def tree(directory: Path) -> dict[str, bytes]:
    files = [path for path in directory.rglob("*") if path.is_file()]
    return {path.relative_to(directory).as_posix(): path.read_bytes() for path in files}


# ------------------------------------------------------------------------------------------- get


@pytest.mark.parametrize(
    ("asked", "version"),
    [((), "v2.0.0"), (("--rev", "v1.0.0"), "v1.0.0"), (("--stage", "prod"), "v1.0.0")],
)
def test_get_downloads_what_is_asked_for(run, origin, tmp_path, asked, version) -> None:
    done = run("get", origin.path, "m", *asked, "-o", "out")

    assert done.exit_code == 0, done.output
    assert done.stdout == "out/models/m.pkl\n"
    assert tree(tmp_path / "out") == {"models/m.pkl": MODEL[version]}


def test_get_takes_a_full_commit_id(run, origin, tmp_path) -> None:
    run("get", origin.path, "m", "--rev", origin.git("rev-parse", "main^"), "-o", "out")

    assert tree(tmp_path / "out") == {"models/m.pkl": MODEL["v1.0.0"]}


def test_get_downloads_a_directory(run, origin, tmp_path) -> None:
    done = run("get", origin.path, "tokens", "-o", "out", "--json")

    told = json.loads(done.stdout)
    assert tree(tmp_path / "out") == {f"tokens/{path}": data for path, data in TOKENS.items()}
    assert {Path(path) for path in told["files"]} == {Path("out/tokens", path) for path in TOKENS}
    assert told["receipts"][0]["name"] == "tokens"


def test_get_again_changes_nothing_and_another_file_needs_force(run, origin, tmp_path) -> None:
    run("get", origin.path, "m", "-o", "out")
    before = (tmp_path / "out/models/m.pkl").stat().st_mtime_ns

    assert run("get", origin.path, "m", "-o", "out").exit_code == 0
    assert (tmp_path / "out/models/m.pkl").stat().st_mtime_ns == before
    refused = run("get", origin.path, "m", "--stage", "prod", "-o", "out")
    assert "--force" in str(refused.exception)
    assert run("get", origin.path, "m", "--stage", "prod", "-o", "out", "-f").exit_code == 0
    assert tree(tmp_path / "out") == {"models/m.pkl": MODEL["v1.0.0"]}


def test_a_web_server_may_send_the_reader_on(run, origin, tmp_path) -> None:
    """As public remotes do, also for the object that lists a directory."""
    store = tmp_path / "store"
    objects = [path for path in store.rglob("*") if path.is_file()]
    files = {f"/{path.relative_to(store)}": path.read_bytes() for path in objects}
    with RangeServer(files) as there, RangeServer({}) as here:
        here.redirects = {path: f"{there.url}{path}" for path in files}
        origin.commit({".dvc/config": remote(here.url)})
        origin.tag("tokens@v2.0.0")

        done = run("get", origin.path, "tokens", "-o", "out")

    assert done.exit_code == 0, done.exception
    assert tree(tmp_path / "out") == {f"tokens/{path}": data for path, data in TOKENS.items()}


@pytest.mark.parametrize(
    "arguments",
    [
        ("get",),
        ("get", "x"),
        ("get", "x", "m", "n"),
        ("get", "--locked", "--stage", "prod"),
        ("lock", "x"),
        ("get", "x", "m", "-j", "0"),
        ("verify", "nowhere", "--receipt", "x"),
    ],
)
def test_what_makes_no_sense_is_a_usage_error(run, arguments) -> None:
    assert run(*arguments).exit_code == 2


# ---------------------------------------------------------------------------------- what there is


def test_show_prints_the_receipt_for_people_and_for_programs(run, origin) -> None:
    shown = run("show", origin.path, "m", "--stage", "prod").stdout
    receipt = json.loads(run("show", origin.path, "m", "--stage", "prod", "--json").stdout)

    assert receipt["version"] == "v1.0.0"
    assert receipt["files"] == [
        {"md5": digest(MODEL["v1.0.0"]), "path": "models/m.pkl", "size": 4000}
    ]
    for fact in ("v1.0.0", receipt["revision"], receipt["digest"], "4,000 bytes"):
        assert fact in shown


def test_ls_lists_artifacts_and_finds_them(run, origin) -> None:
    rows = json.loads(run("ls", origin.path, "--json").stdout)
    found = json.loads(run("ls", origin.path, "--stage", "prod", "--json").stdout)

    assert [row["name"] for row in rows] == ["m", "tokens"]
    assert rows[0]["latest"]["version"] == "v2.0.0"
    assert rows[0]["stages"]["prod"]["version"] == "v1.0.0"
    assert [row["name"] for row in found] == ["m"]
    assert "prod=v1.0.0" in run("ls", origin.path).stdout


def test_versions_history_and_explain_say_the_same_as_the_tags(run, origin) -> None:
    versions = json.loads(run("versions", origin.path, "m", "--json").stdout)
    events = json.loads(run("history", origin.path, "m", "--json").stdout)
    why = json.loads(run("explain", origin.path, "m", "--stage", "prod", "--json").stdout)

    assert [row["version"] for row in versions] == ["v2.0.0", "v1.0.0"]
    assert {row["tag"] for row in events} == {"m@v1.0.0", "m@v2.0.0", "m#prod#1"}
    assert events[0]["who"] == "Ada <ada@example.com>"
    assert why["answer"]["tag"] == "m#prod#1"
    assert [row["won"] for row in why["considered"]] == [True]
    assert "won" in run("explain", origin.path, "m").stdout


def test_a_long_list_is_told_whole(run, origin) -> None:
    for number in range(120):
        origin.tag(f"m@v3.{number}.0")

    versions = json.loads(run("versions", origin.path, "m", "--json").stdout)

    assert len(versions) == 122


def test_what_people_wrote_is_not_obeyed_by_the_terminal(run, origin) -> None:
    origin.git("tag", "-a", "m@v3.0.0", "-m", "\x1b[31mred", origin.head())

    assert "\x1b" not in run("history", origin.path, "m").stdout


# -------------------------------------------------------------------------------- lock and verify


def test_what_is_locked_is_downloaded_whatever_the_stage_means_by_then(
    run, origin, tmp_path
) -> None:
    assert run("lock", origin.path, "m#prod", "tokens").exit_code == 0
    origin.tag("m#prod#2", origin.head())

    assert run("get", origin.path, "m", "--stage", "prod", "-o", "now").exit_code == 0
    assert run("get", "--locked", "-o", "out").exit_code == 0

    assert tree(tmp_path / "now") == {"models/m.pkl": MODEL["v2.0.0"]}
    assert tree(tmp_path / "out") == {
        "models/m.pkl": MODEL["v1.0.0"],
        **{f"tokens/{path}": data for path, data in TOKENS.items()},
    }


def test_one_of_the_locked_is_chosen_by_its_name(run, origin, tmp_path) -> None:
    run("lock", origin.path, "m#prod", "tokens")

    run("get", "--locked", "tokens", "-o", "out")

    assert "models/m.pkl" not in tree(tmp_path / "out")
    assert "does not list" in str(run("get", "--locked", "nothing").exception)


def test_to_lock_again_replaces_the_answer_to_that_question_alone(run, origin, tmp_path) -> None:
    run("lock", origin.path, "m#prod", "tokens", "m@v2.0.0")
    before = (tmp_path / "registry.lock").read_bytes()
    run("lock", origin.path, "m#prod")
    same = (tmp_path / "registry.lock").read_bytes()
    origin.tag("m#prod#2", origin.head())
    run("lock", origin.path, "m#prod")

    locked = json.loads((tmp_path / "registry.lock").read_text())["artifacts"]
    assert same == before
    assert [(it["receipt"]["name"], it["receipt"]["version"]) for it in locked] == [
        ("m", "v2.0.0"), ("m", "v2.0.0"), ("tokens", "v1.0.0"),
    ]  # fmt: skip


def test_a_lock_file_keeps_no_password(run, origin, tmp_path) -> None:
    """It is to be committed."""
    origin.commit({".dvc/config": remote("https://store.example")})
    origin.tag("m@v3.0.0")
    with serve_http(origin.path.parent, "ada", "canary") as server:
        url = f"http://ada:canary@127.0.0.1:{server.port}/{origin.path.name}"

        done = run("lock", url, "m")

    assert done.exit_code == 0, done.exception
    assert "canary" not in (tmp_path / "registry.lock").read_text()
    assert "canary" not in done.output


def test_with_the_origin_down_what_is_locked_comes_from_the_cache(run, origin, tmp_path) -> None:
    store = tmp_path / "store"
    with RangeServer(
        {f"/{p.relative_to(store)}": p.read_bytes() for p in store.rglob("*") if p.is_file()}
    ) as web:
        origin.commit({".dvc/config": remote(web.url)})
        origin.tag("m@v9.0.0")
        origin.tag("tokens@v9.0.0")
        with serve_http(origin.path.parent) as server:
            locked = run("lock", f"{server.url}/origin.git", "m", "tokens")
            assert locked.exit_code == 0, locked.exception

        down = run("get", f"{server.url}/origin.git", "m", "-o", "now")
        done = run("get", "--locked", "-o", "out")

    assert isinstance(down.exception, RegistryError)
    assert done.exit_code == 0, done.exception
    assert tree(tmp_path / "out")["models/m.pkl"] == MODEL["v2.0.0"]


@pytest.mark.parametrize(
    "change",
    [
        lambda lock: lock.update(version=2),
        lambda lock: lock["artifacts"][0].pop("repo"),
        lambda lock: lock["artifacts"][0]["receipt"].update(version="v7.0.0"),
        lambda lock: lock["artifacts"][0]["receipt"]["files"][0].update(path="../../evil"),
        lambda lock: lock.update(artifacts="none"),
    ],
)
def test_a_lock_file_that_was_changed_downloads_nothing(run, origin, tmp_path, change) -> None:
    run("lock", origin.path, "m")
    file = tmp_path / "registry.lock"
    document = json.loads(file.read_text())
    change(document)
    file.write_text(json.dumps(document))

    done = run("get", "--locked", "-o", "out")

    assert isinstance(done.exception, RegistryError)
    assert tree(tmp_path / "out") == {}


def test_verify_names_what_is_missing_and_what_was_changed(run, origin, tmp_path) -> None:
    run("get", origin.path, "tokens", "-o", "out", "--receipt", "receipt.json")
    assert run("verify", "out", "--receipt", "receipt.json").exit_code == 0
    (tmp_path / "out/tokens/vocab.txt").write_text("other")
    (tmp_path / "out/tokens/empty").unlink()
    (tmp_path / "out/tokens/empty").symlink_to("/dev/null")

    done = run("verify", "out", "--receipt", "receipt.json", "--json")

    assert done.exit_code == 1
    assert {row["path"]: row["problem"] for row in json.loads(done.stdout)["problems"]} == {
        "tokens/vocab.txt": "changed",
        "tokens/empty": "missing",
    }


def test_verify_takes_a_lock_file_as_well(run, origin) -> None:
    run("lock", origin.path, "m#prod", "tokens")
    run("get", "--locked", "-o", "out")

    assert "4 files" in run("verify", "out", "--receipt", "registry.lock").stdout


# -------------------------------------------------------------------------------------- failures


def python(*arguments: object, **environ: str) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(
        [sys.executable, "-m", "registry", *map(str, arguments)],
        capture_output=True,
        text=True,
        check=False,
        timeout=PATIENCE,
        env={**os.environ, **environ},
    )


@pytest.mark.parametrize(
    ("arguments", "code", "says"),
    [
        (("m", "--rev", "v9.9.9"), 3, "registry explain"),
        (("nothing",), 3, "registry ls"),
        (("bad name",), 2, "not a valid artifact name"),
    ],
)
def test_a_failure_is_one_line_that_says_what_to_do(origin, arguments, code, says) -> None:
    done = python("get", origin.path, *arguments)

    assert (done.returncode, done.stdout) == (code, "")
    assert done.stderr.startswith("Error: ")
    assert done.stderr.count("\n") == 1
    assert says in done.stderr


def test_with_json_a_failure_is_json(origin) -> None:
    done = python("show", origin.path, "nothing", "--json")

    said = json.loads(done.stderr)
    assert (said["exit_code"], done.returncode, done.stdout) == (3, 3, "")
    assert "registry ls" in said["error"]


def test_a_receipt_that_cannot_be_written_is_a_failure_of_one_line(origin, tmp_path) -> None:
    out, receipt = tmp_path / "out", tmp_path / "nowhere/receipt.json"

    done = python("get", origin.path, "m", "-o", out, "--receipt", receipt)

    assert (done.returncode, done.stderr.count("\n")) == (6, 1)
    assert str(receipt) in done.stderr


def test_a_repository_that_cannot_be_a_path_is_not_found() -> None:
    assert python("show", "/" + "x" * 5000, "m").returncode == 3


def test_colours_are_for_terminals_alone(origin) -> None:
    assert "\x1b" not in python("get", origin.path, "nothing", TERM="xterm-256color").stderr


def test_a_store_that_lost_the_object_is_a_failure_of_its_own(origin, tmp_path) -> None:
    (tmp_path / "store" / key(MODEL["v2.0.0"])).unlink()

    done = python("get", origin.path, "m", "-o", tmp_path / "out")

    assert done.returncode == 6
    assert "dvc push" in done.stderr


def test_links_cannot_be_given_to_what_only_this_machine_has(origin) -> None:
    done = python("urls", origin.path, "m")

    assert done.returncode == 6
    assert "no link" in done.stderr


@pytest.mark.parametrize("kind", [kind for kind, _ in failures._NEXT])
def test_no_hint_is_hidden_by_one_before_it(kind) -> None:
    kinds = [known for known, _ in failures._NEXT]

    assert next(known for known in kinds if issubclass(kind, known)) is kind


def test_an_error_is_known_by_its_nearest_kind() -> None:
    assert failures.code_of(VersionNotFound("m", "v1", "none")) == 3


# ---------------------------------------------------------------------------------------- Ctrl-C


def test_ctrl_c_leaves_a_part_and_no_file_and_the_next_run_goes_on(tmp_path, origin) -> None:
    store = Store(tmp_path / "web")
    large = os.urandom(4 << 20)
    md5 = store.put(large)
    with RangeServer({f"/{key(large)}": large}) as web:
        recorded = output("big", md5).replace("size: 1", f"size: {len(large)}")
        files = {"dvc.yaml": artifacts(big="big"), "big.dvc": recorded}
        origin.commit({".dvc/config": remote(web.url), **files})
        origin.tag("big@v1.0.0")
        web.hang = True
        command = [sys.executable, "-m", "registry", "get", str(origin.path), "big", "-o", "out"]
        process = subprocess.Popen(
            command, cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )
        assert web.hung.wait(PATIENCE)
        until(lambda: sum(part.stat().st_size for part in (tmp_path / "out").glob(".*")) > 1 << 20)

        process.send_signal(signal.SIGINT)
        _, errors = process.communicate(timeout=PATIENCE)

        assert process.returncode == 130
        assert "goes on where it stopped" in errors
        assert "Traceback" not in errors
        assert not (tmp_path / "out/big").exists()
        web.hang = False
        web.requests.clear()
        assert python("get", origin.path, "big", "-o", tmp_path / "out").returncode == 0
        assert web.requests[0][1] > 1 << 20
    assert tree(tmp_path / "out") == {"big": large}


def test_ctrl_c_does_not_wait_for_a_store_that_has_not_answered(tmp_path, origin) -> None:
    with RangeServer({}) as web:
        origin.commit({".dvc/config": remote(web.url)})
        origin.tag("m@v9.0.0")
        web.mute = True
        command = [sys.executable, "-m", "registry", "get", str(origin.path), "m", "-o", "out"]
        process = subprocess.Popen(command, cwd=tmp_path, stderr=subprocess.PIPE, text=True)
        assert web.hung.wait(PATIENCE)

        process.send_signal(signal.SIGINT)
        _, errors = process.communicate(timeout=PATIENCE)

    assert (process.returncode, "Traceback" in errors) == (130, False)


def test_ctrl_c_says_so_whatever_the_command(tmp_path) -> None:
    with RangeServer({}) as web:
        web.mute = True
        command = [sys.executable, "-m", "registry", "ls", f"{web.url}/team/models"]
        process = subprocess.Popen(command, cwd=tmp_path, stderr=subprocess.PIPE, text=True)
        assert web.hung.wait(PATIENCE)

        process.send_signal(signal.SIGINT)
        _, errors = process.communicate(timeout=PATIENCE)

    assert (process.returncode, errors) == (130, "Interrupted.\n")


def until(ready) -> None:
    deadline = time.monotonic() + PATIENCE
    while not ready():
        assert time.monotonic() < deadline
        time.sleep(0.02)
