"""The `registry` command: its verbs, what they print, and how they end."""

import json
import os
import re
import shutil
import signal
import sqlite3
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import click
import pytest
import yaml
from click.testing import CliRunner, Result
from gitrepo import GitRepository
from servers.issuer import KEYS, Issuer
from servers.process import free_ports
from service import ENDPOINT, Store, artifacts, digest, output, remote

import registry
from registry import __version__
from registry.audit import AuditLog, Event
from registry.cli import VERBS, cli
from registry.errors import SettingsError
from registry.settings import Settings

PATIENCE = 30.0
POLL = 0.05


@pytest.fixture
def origin(tmp_path: Path) -> GitRepository:
    """A repository with one model, which lies in the directory `store`."""
    md5 = Store(tmp_path / "store").put("the model")
    origin = GitRepository(tmp_path / "origin.git")
    origin.commit(
        {
            ".dvc/config": remote(f"file://{tmp_path}/store"),
            "dvc.yaml": artifacts(m="model.pkl"),
            "model.pkl.dvc": output("model.pkl", md5),
        }
    )
    origin.tag("m@v1.0.0")
    return origin


@pytest.fixture
def config(tmp_path: Path, origin: GitRepository) -> Path:
    """A configuration that serves it."""
    return write(
        tmp_path / "registry.yaml",
        data_dir=str(tmp_path / "var"),
        secret_key="k" * 40,
        repositories=[{"url": str(origin.path), "name": "team/models"}],
        storage=[{"url": f"file://{tmp_path}/store", "repositories": ["team/*"]}],
    )


def write(file: Path, **values: object) -> Path:
    file.write_text(yaml.safe_dump(values))
    return file


def run(config: Path, *arguments: str) -> Result:
    return CliRunner().invoke(cli, [*arguments, "--config", str(config)])


def verbs(group: click.Group = cli, *path: str) -> Iterator[tuple[str, ...]]:
    yield path
    context = click.Context(group)
    for name in group.list_commands(context):
        command = group.get_command(context, name)
        if isinstance(command, click.Group):
            yield from verbs(command, *path, name)
        else:
            yield (*path, name)


@pytest.mark.parametrize("verb", [*verbs()], ids=" ".join)
def test_every_verb_explains_itself(verb) -> None:
    done = CliRunner().invoke(cli, [*verb, "--help"])

    assert done.exit_code == 0
    assert done.output.startswith("Usage: ")
    assert CliRunner().invoke(cli, [*verb, "-h"]).output == done.output


@pytest.mark.parametrize("verb", VERBS)
def test_the_list_of_verbs_says_what_the_verb_says_itself(verb) -> None:
    command = cli.get_command(click.Context(cli), verb)

    assert command
    assert command.name == verb
    assert VERBS[verb][1] == " ".join(command.help.split("\n\n")[0].split())


def test_help_is_given_without_what_only_verbs_need() -> None:
    """A library counts by its name: half of the time to start would be for SQLAlchemy alone."""
    shown = "import sys; from registry.cli import cli; cli(['--help'], standalone_mode=False)"
    listed = f"{shown}; print(*sys.modules, file=sys.stderr)"

    done = subprocess.run(
        [sys.executable, "-c", listed], capture_output=True, text=True, check=True
    )

    assert done.stdout.startswith("Usage: ")
    heavy = {"sqlalchemy", "pydantic", "urllib3", "git", "flask", "boto3", "yaml", "tqdm"}
    assert heavy.isdisjoint(done.stderr.split())


def test_to_import_the_package_loads_nothing_until_it_is_used() -> None:
    """PEP 562; and who asks a service needs neither Git nor the files of DVC."""
    lines = "import sys, registry; print(*sys.modules); registry.download; print(*sys.modules)"

    done = subprocess.run([sys.executable, "-c", lines], capture_output=True, text=True, check=True)

    imported, used = (line.split() for line in done.stdout.splitlines())
    assert [name for name in imported if name.startswith("registry.")] == []
    assert "registry.transfer" in used
    assert {"git", "yaml", "sqlalchemy", "flask", "boto3", "tqdm"}.isdisjoint(used)
    assert {"artifacts_show", "download", "get_download_uris"} <= set(dir(registry))


def test_a_verb_that_does_not_exist_is_a_usage_error() -> None:
    assert CliRunner().invoke(cli, ["serv"]).exit_code == 2


def test_it_tells_its_version() -> None:
    assert __version__ in CliRunner().invoke(cli, ["--version"]).output


# ------------------------------------------------------------------------------- tokens


def test_a_new_token_alone_goes_to_standard_output(config) -> None:
    done = run(config, "token", "create", "--name", "ci", "--repository", "team/*")

    assert done.exit_code == 0
    assert re.fullmatch(r"reg_[\w-]{43}\.[\w-]+\n", done.stdout)
    assert "team/*" in done.stderr
    assert done.stdout.strip() not in done.stderr


def test_a_token_is_created_listed_and_revoked(config) -> None:
    created = json.loads(run(config, "token", "create", "--name", "ci", "--json").output)
    (listed,) = json.loads(run(config, "token", "list", "--json").output)
    table = run(config, "token", "list").output
    revoked = run(config, "token", "revoke", created["id"])
    again = json.loads(run(config, "token", "revoke", created["id"], "--json").output)
    (after,) = json.loads(run(config, "token", "list", "--json").output)

    assert {**listed, "token": created["token"]} == created
    assert listed["repositories"] == ["*"]
    assert listed["scopes"] == ["models:read"]
    assert listed["revoked"] is None
    assert table.splitlines()[0].split() == [
        "ID",
        "NAME",
        "SCOPES",
        "REPOSITORIES",
        "EXPIRES",
        "STATE",
    ]
    assert table.splitlines()[1].split()[-1] == "active"
    assert created["token"] not in table
    assert (revoked.exit_code, created["id"] in revoked.output) == (0, True)
    assert after["revoked"]
    assert again["id"] == created["id"]
    assert "revoked" in run(config, "token", "list").output


def test_a_token_that_does_not_exist_cannot_be_revoked(config) -> None:
    done = python("token", "revoke", "nobody", "--config", str(config))

    assert (done.returncode, done.stdout) == (3, "")
    assert done.stderr == "Error: No token has the id 'nobody'.\n"


@pytest.mark.parametrize("span", ["90", "d", "-1d", "0d", "1y", "1.5h", "9999999d", ""])
def test_the_life_of_a_token_is_a_number_and_a_unit(config, span) -> None:
    done = run(config, "token", "create", "--name", "ci", "--expires", span)

    assert done.exit_code == 2
    assert "such as 90d" in done.output


@pytest.mark.parametrize(
    ("span", "code"), [("5200w", 0), ("36500d", 0), ("5300w", 2), ("999999w", 2)]
)
def test_no_token_lives_longer_than_a_hundred_years(config, span, code) -> None:
    done = run(config, "token", "create", "--name", "ci", "--expires", span)

    assert done.exit_code == code, done.output


def test_a_scope_that_does_not_exist_is_a_usage_error(config) -> None:
    assert run(config, "token", "create", "--name", "ci", "--scope", "admin").exit_code == 2


# ------------------------------------------------------------------------- configuration


def test_the_database_has_every_table_after_an_upgrade_and_a_second_one_is_harmless(config) -> None:
    first, second = (run(config, "database", "upgrade") for _ in range(2))
    with closing(sqlite3.connect(Settings.load(config).data_dir / "registry.db")) as database:
        tables = {name for (name,) in database.execute("select name from sqlite_master")}

    assert (first.exit_code, second.exit_code) == (0, 0), first.output + second.output
    assert {"tokens", "audit", "audit_head", "receipts"} <= tables


@pytest.mark.parametrize(
    "verb", [("serve",), ("check",), ("token", "list"), ("token", "create", "--name", "x")]
)
def test_a_wrong_configuration_is_one_line_that_names_the_key(tmp_path, verb) -> None:
    wrong = write(tmp_path / "wrong.yaml", secret_key="k" * 40, repositorys=[])

    done = python(*verb, "--config", str(wrong))

    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == "Error: repositorys: unknown key; did you mean repositories?\n"


@pytest.mark.parametrize("verb", [("serve",), ("check",), ("token", "list")])
@pytest.mark.parametrize(
    "url", ["nonsense", "mysql://u:canary@h/d", "postgresql+psycopg://u:canary@h:port/d"]
)
def test_a_database_that_cannot_be_spoken_to_is_one_line_without_its_password(
    config, verb, url
) -> None:
    write(config, **yaml.safe_load(config.read_text()), database_url=url)

    done = run(config, *verb)

    assert isinstance(done.exception, SettingsError)
    assert done.exception.key == "database_url"
    assert "sqlite:///" in done.exception.problem
    assert "canary" not in str(done.exception)


@pytest.mark.parametrize("verb", [("serve",), ("check",), ("tags", "--changed"), ("token", "list")])
@pytest.mark.parametrize("place", ["file", "file/below", "/proc/nowhere"])
def test_a_data_dir_that_cannot_be_made_is_one_line(config, tmp_path, verb, place) -> None:
    (tmp_path / "file").touch()
    write(config, **{**yaml.safe_load(config.read_text()), "data_dir": str(tmp_path / place)})

    done = run(config, *verb)

    assert isinstance(done.exception, SettingsError)
    assert done.exception.key == "data_dir"
    assert "must be a directory" in done.exception.problem


def test_a_configuration_that_is_not_there_is_one_line(tmp_path) -> None:
    done = python("check", "--config", str(tmp_path / "nowhere.yaml"))

    assert done.returncode == 2
    assert (
        done.stderr
        == f"Error: {tmp_path}/nowhere.yaml: cannot be read: No such file or directory\n"
    )


def test_the_configuration_may_be_named_by_the_environment(config) -> None:
    done = python("token", "list", "--json", environ={"REGISTRY_CONFIG": str(config)})

    assert (done.returncode, done.stdout) == (0, "[]\n")


def python(*arguments: str, environ: dict[str, str] | None = None):
    """`python -m registry` with these arguments, to its end."""
    return subprocess.run(
        [sys.executable, "-m", "registry", *arguments],
        capture_output=True,
        text=True,
        check=False,
        timeout=PATIENCE,
        env={**clean(), **(environ or {})},
    )


def clean() -> dict[str, str]:
    return {key: value for key, value in os.environ.items() if not key.startswith("REGISTRY_")}


# --------------------------------------------------------------------------------- check


def test_check_says_of_everything_that_it_is_well(config, tmp_path) -> None:
    done = run(config, "check", "--json")
    table = run(config, "check").output

    assert done.exit_code == 0
    assert json.loads(done.output) == [
        {"ok": True, "kind": "database", "name": "tokens, audit", "result": "answers"},
        {"ok": True, "kind": "repository", "name": "team/models", "result": "1 artifacts"},
        {
            "ok": True,
            "kind": "storage",
            "name": f"file://{tmp_path}/store",
            "result": f"signed and read 1 byte of {str(tmp_path)[1:]}/store/files/md5/"
            f"{digest('the model')[:2]}/{digest('the model')[2:]}",
        },
    ]
    assert [line.split()[0] for line in table.splitlines()] == ["KIND", "ok", "ok", "ok"]


def test_check_goes_on_after_a_failure_and_says_so_in_its_exit_code(config, tmp_path) -> None:
    settings = yaml.safe_load(config.read_text())
    settings["repositories"].insert(0, {"url": str(tmp_path / "gone.git"), "name": "gone/gone"})
    settings["storage"].append({"url": "http://127.0.0.1:9/x", "repositories": ["*"]})
    settings["storage"].append({"url": f"file://{tmp_path}/empty", "repositories": ["*"]})
    write(config, **settings)

    done = run(config, "check", "--json")

    rows = {row["name"].removeprefix("file://"): row for row in json.loads(done.output)}
    assert done.exit_code == 1
    assert [row["ok"] for row in rows.values()] == [True, False, True, True, False, True]
    assert "cannot be fetched" in rows["gone/gone"]["result"]
    assert "cannot be reached" in rows["http://127.0.0.1:9/x"]["result"]
    assert "no artifact's latest version lies here" in rows[f"{tmp_path}/empty"]["result"]
    assert "FAIL" in run(config, "check").output


def test_check_says_of_every_issuer_whether_its_keys_can_be_had(config) -> None:
    settings = yaml.safe_load(config.read_text())
    rules = [{"claims": {"sub": "job"}, "repositories": ["*"]}]
    with Issuer() as well, Issuer() as ill:
        ill.answers[KEYS] = b"[]"
        settings["issuers"] = [{"url": issuer.url, "rules": rules} for issuer in (well, ill)]
        write(config, **settings)

        done = run(config, "check", "--json")

    rows = {row["name"]: row for row in json.loads(done.output) if row["kind"] == "issuer"}
    assert done.exit_code == 1
    assert (rows[well.url]["ok"], rows[well.url]["result"]) == (True, "1 keys")
    assert (rows[ill.url]["ok"], rows[ill.url]["result"]) == (
        False,
        "the issuer answers what is no object of JSON",
    )


def test_check_finds_an_object_that_was_never_pushed(config, tmp_path) -> None:
    shutil.rmtree(tmp_path / "store")

    done = run(config, "check", "--json")

    assert done.exit_code == 1
    assert "run `dvc push`" in json.loads(done.output)[2]["result"]


# --------------------------------------------------------------------------------- serve


@contextmanager
def running(
    *arguments: str, directory: Path, environ: dict[str, str] | None = None
) -> Iterator[subprocess.Popen[str]]:
    """`python -m registry` with these arguments, stopped by SIGTERM in the end."""
    with open(directory / "log", "w+") as log:
        process = subprocess.Popen(
            [sys.executable, "-m", "registry", *arguments],
            stdout=log,
            stderr=subprocess.STDOUT,
            text=True,
            cwd=directory,
            env={**clean(), "PYTHONUNBUFFERED": "1", **(environ or {})},
        )
        try:
            yield process
        finally:
            process.send_signal(signal.SIGTERM)
            try:
                process.wait(PATIENCE)
            finally:
                process.kill()


def wait_until(process, ready, log: Path):
    """What `ready` returns once that is something. It may fail with an OSError until then."""
    deadline = time.monotonic() + PATIENCE
    while time.monotonic() < deadline:
        assert process.poll() is None, log.read_text()
        try:
            if found := ready():
                return found
        except OSError:
            pass
        time.sleep(POLL)
    raise AssertionError(f"not ready in time:\n{log.read_text()}")


def get(url: str, **headers: str) -> bytes:
    request = urllib.request.Request(url, headers=headers)
    with urllib.request.urlopen(request, timeout=PATIENCE) as response:
        body: bytes = response.read()
        return body


def test_serve_answers_until_it_is_told_to_stop(config, tmp_path) -> None:
    (port,) = free_ports(1)
    url = f"http://127.0.0.1:{port}"
    write(config, **yaml.safe_load(config.read_text()), public_url=url)
    token = run(config, "token", "create", "--name", "ci").stdout.strip()

    with running(
        "serve", "--config", str(config), "--port", str(port), directory=tmp_path
    ) as process:
        log = tmp_path / "log"
        wait_until(process, lambda: get(f"{url}/healthz"), log)
        answer = json.loads(
            get(f"{url}{ENDPOINT}?repo=team/models&name=m", Authorization=f"token {token}")
        )
        data = get(answer["model.pkl"])

    assert data == b"the model"
    assert process.returncode == 0
    assert token not in log.read_text()
    assert answer["model.pkl"].partition("/objects/")[2] not in log.read_text()


# ---------------------------------------------------------------------------------- demo


def test_the_workers_add_up_their_metrics_and_audit_what_they_answered_before_they_end(
    config, tmp_path
) -> None:
    (port,) = free_ports(1)
    url, shared = f"http://127.0.0.1:{port}", tmp_path / "shared"
    write(config, **yaml.safe_load(config.read_text()), public_url=url, metrics="public")
    token = run(config, "token", "create", "--name", "ci").stdout.strip()
    environ = {"PROMETHEUS_MULTIPROC_DIR": str(shared)}

    with running(
        "serve", "--config", str(config), "--port", str(port), directory=tmp_path, environ=environ
    ) as process:
        wait_until(process, lambda: get(f"{url}/readyz"), tmp_path / "log")
        for _ in range(20):  # each over a connection of its own, so that both workers get some
            get(f"{url}{ENDPOINT}?repo=team/models&name=m", Authorization=f"token {token}")

        def all_are_counted() -> bool:  # a worker counts what it answered a moment later
            counted = 'registry_requests_total{dialect="studio",outcome="ok"} 20.0'
            return counted in get(f"{url}/metrics").decode()

        wait_until(process, all_are_counted, tmp_path / "log")

    assert process.returncode == 0
    assert not shared.exists()
    assert "is whole" in run(config, "audit", "verify").stdout
    shown = run(config, "audit", "show", "--json").stdout.splitlines()
    assert [json.loads(line)["decision"] for line in shown] == ["granted"] * 20
    lines = [json.loads(line) for line in (tmp_path / "log").read_text().splitlines()]
    logged = {line["request"] for line in lines if line.get("dialect") == "studio"}
    assert logged == {json.loads(line)["request"] for line in shown}


def test_a_row_that_was_changed_is_named_and_is_the_exit_code(config, tmp_path) -> None:
    settings = Settings.load(config)
    settings.data_dir.mkdir()
    with closing(AuditLog(settings.database, settings.secret_keys, "required")) as log:
        log.create_tables()
        log.write(Event("request", "address", "token", "team/models", "m", "granted", files=1))
    with closing(sqlite3.connect(settings.database.removeprefix("sqlite:///"))) as database:
        database.execute("UPDATE audit SET record = replace(record, 'granted', 'refused')")
        database.commit()

    result = run(config, "audit", "verify")

    (problem,) = json.loads(run(config, "audit", "verify", "--json").stdout)["problems"]
    assert "row 1 was changed" in problem
    assert result.exit_code == 1
    assert "row 1 was changed" in result.stdout
    assert "refused" in run(config, "audit", "show").stdout
    assert run(config, "audit", "verify", "--day", "yesterday").exit_code == 2


def commands(guide: str) -> list[str]:
    """The shell commands that the demo prints: lines indented by two, joined at backslashes."""
    joined = guide.replace("\\\n", " ")
    starts = ("  curl ", "  REGISTRY_URL=")
    return [line.strip() for line in joined.splitlines() if line.startswith(starts)]


@pytest.mark.skipif(not shutil.which("curl"), reason="curl is not installed")
def test_the_commands_that_the_demo_prints_work_as_they_are(tmp_path) -> None:
    (port,) = free_ports(1)
    log, told = tmp_path / "log", []
    here = str(Path(sys.executable).parent)
    environ = {**clean(), "PATH": os.pathsep.join([here, os.environ["PATH"]])}
    for _ in range(2):
        with running(
            "demo", "--directory", "demo", "--port", str(port), directory=tmp_path
        ) as process:
            guide = wait_until(
                process, lambda: "Ctrl-C" in log.read_text() and log.read_text(), log
            )
            done = [
                subprocess.run(
                    ["sh", "-c", command],
                    cwd=tmp_path,
                    capture_output=True,
                    text=True,
                    check=False,
                    env=environ,
                )
                for command in commands(guide)
            ]
        told.append(commands(guide))

        assert [one.returncode for one in done] == [0, 0, 0], done
        assert list(json.loads(done[0].stdout)) == ["model.pkl"]
        assert done[1].stdout == "model.pkl: OK\n"
        assert done[2].stdout == "models/model.pkl\n"
        assert process.returncode == 0
    assert told[0][0] == told[1][0]  # the same token, and the same question
