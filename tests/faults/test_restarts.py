"""Stopping, reloading and killing the processes of one server, while it is asked."""

import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path

import pytest
from servers.process import HOST, free_ports, running

from faults.load import Load
from faults.observer import ENDPOINT, Observer, until
from faults.origins import model
from faults.processes import alive, needs_linux, workers
from faults.wire import Connection, request

pytestmark = [pytest.mark.servers, needs_linux]
NAME = "team/models"
QUESTION = f"{ENDPOINT}?repo={NAME}&name=m&stage=prod"


def question(watched: Observer, path: str = QUESTION) -> bytes:
    return request(path, f"Authorization: token {watched.token}")


@pytest.fixture
def watched(serve, tmp_path) -> Observer:
    """A service whose workers are all up."""
    watched = serve(
        {NAME: model(tmp_path / "models.git")},
        environ={"PROMETHEUS_MULTIPROC_DIR": str(tmp_path / "metrics")},
    )
    until(lambda: watched.get("/healthz") and len(answering(tmp_path)) == 2)
    return watched


ALIVE = request("/healthz")


def answering(directory: Path) -> set[str]:
    """The workers that have answered something: they have begun to count."""
    return {file.stem for file in (directory / "metrics").glob("counter_*.db")}


def log(watched: Observer) -> str:
    return watched.service.log.read_text()


def test_on_sigterm_whoever_was_let_in_is_answered_and_the_next_one_is_refused(watched) -> None:
    with Load(watched.service.url, question(watched)) as load:
        load.more()
        os.kill(watched.service.pid, signal.SIGTERM)
        until(lambda: load.refused >= 20)
        until(lambda: not alive(watched.service.pid))

    assert load.failures == []
    assert list(load.answers) == [200]
    rows = watched.service.command("audit", "show", "--json").splitlines()
    assert len(rows) == load.answers[200]  # what waited to be written was written


def test_a_connection_that_is_kept_takes_no_answer_from_others_on_sigterm(watched) -> None:
    head = request("/hooks/github", "Content-Length: 2", method="POST")
    with ExitStack() as held:
        idle, late = (
            [held.enter_context(Connection(watched.service.url)) for _ in range(8)] for _ in "12"
        )
        for client in idle:
            client.send(ALIVE)
            assert client.answer()[0] == 200
        for client in late:
            client.send(head)
        os.kill(watched.service.pid, signal.SIGTERM)
        for client in idle:
            until(client.is_closed)
        for client in late:
            client.send(b"{}")
        assert {client.answer()[0] for client in late} == {401}
        until(lambda: not alive(watched.service.pid))

    assert "Traceback" not in log(watched)
    assert "Exception in worker" not in log(watched)


def test_a_client_that_does_not_read_holds_up_no_restart(serve, tmp_path) -> None:
    """`--graceful-timeout 7` leaves it 2 s."""
    watched = serve(
        {NAME: model(tmp_path / "models.git")},
        environ={"GUNICORN_CMD_ARGS": "--graceful-timeout 7"},
    )
    with Connection(watched.service.url) as slow:
        slow.send(request("/hooks/github", "Content-Length: 100", method="POST"))
        with Connection(watched.service.url) as other:
            other.send(question(watched))
            assert other.answer()[0] == 200
        os.kill(watched.service.pid, signal.SIGTERM)
        until(lambda: not alive(watched.service.pid), deadline=30)

    assert "SIGKILL" not in log(watched)
    assert len(watched.service.command("audit", "show", "--json").splitlines()) == 1


def test_sighup_reads_the_configuration_again_and_fails_no_request(watched) -> None:
    config = watched.service.config
    before, document = workers(watched.service.pid), json.loads(config.read_text())
    more = {**document["repositories"][0], "name": "team/more"}
    with Load(watched.service.url, question(watched)) as load:
        load.more()
        assert watched.ask("team/more").status == 404
        config.write_text(
            json.dumps({**document, "repositories": [*document["repositories"], more]})
        )
        os.kill(watched.service.pid, signal.SIGHUP)
        until(lambda: workers(watched.service.pid).isdisjoint(before))
        load.more()
        assert watched.ask("team/more").status == 200

    assert load.failures == []
    assert list(load.answers) == [200]
    assert load.refused == 0
    assert len(workers(watched.service.pid)) == 2


@pytest.mark.parametrize(
    ("broken", "says"),
    [
        ({"refresh": 30}, "unknown key"),
        ({"repositories": [{"url": "ext::sh -c id", "name": "a"}]}, "repositories[0].url"),
    ],
)
def test_sighup_changes_nothing_while_the_configuration_does_not_hold(
    watched, broken, says
) -> None:
    config = watched.service.config
    before, text = workers(watched.service.pid), config.read_text()
    config.write_text(json.dumps({**json.loads(text), **broken}))

    os.kill(watched.service.pid, signal.SIGHUP)

    until(lambda: "it does not hold" in log(watched))
    assert says in log(watched)
    until(lambda: workers(watched.service.pid) == before)  # but for who tried it
    assert watched.ask(NAME).status == 200
    config.write_text(text)
    os.kill(watched.service.pid, signal.SIGHUP)
    until(lambda: workers(watched.service.pid).isdisjoint(before))
    assert watched.ask(NAME).status == 200


def test_a_worker_that_is_killed_is_replaced_and_only_its_own_clients_notice(
    watched, tmp_path
) -> None:
    master = watched.service.pid
    with Load(watched.service.url, question(watched), clients=8) as load:
        load.more()
        before = workers(master)
        victim = min(before)
        kept = tmp_path / f"metrics/gauge_livesum_{victim}.db"
        until(kept.exists)
        counted = answered(watched)
        os.kill(victim, signal.SIGKILL)
        until(lambda: len(workers(master) - before) == 1)
        load.more()
        until(lambda: not kept.exists())

        assert answered(watched) > counted
    assert len(load.failures) <= 8, load.failures  # those whom it was answering
    assert list(load.answers) == [200]
    assert load.refused == 0
    assert workers(master) > before - {victim}


def test_a_worker_that_cannot_be_replaced_now_leaves_the_others_at_work(watched) -> None:
    config = watched.service.config
    before, text = workers(watched.service.pid), config.read_text()
    config.write_text(json.dumps({**json.loads(text), "refresh": 30}))

    os.kill(min(before), signal.SIGKILL)

    until(lambda: "could not start" in log(watched))
    assert watched.ask(NAME).status == 200
    assert max(before) in workers(watched.service.pid)
    config.write_text(text)
    until(lambda: len(workers(watched.service.pid)) == 2)
    assert watched.ask(NAME).status == 200


def answered(watched: Observer) -> float:
    text = watched.get("/metrics").body.decode()
    (count,) = re.findall(r'registry_requests_total{dialect="studio",outcome="ok"} (\S+)', text)
    return float(count)


def test_gunicorn_started_by_hand_is_the_same_server_and_outlives_its_workers(
    serve, tmp_path
) -> None:
    """Without `registry serve` there is no directory in which workers add up their metrics."""
    watched = serve({NAME: model(tmp_path / "models.git")})
    (port,) = free_ports(1)
    url = f"http://{HOST}:{port}"
    command = [sys.executable, "-m", "gunicorn", "--config", "python:registry.server"]
    command += ["--bind", f"{HOST}:{port}", "registry.wsgi:app"]
    asks: Callable[[], int] = lambda: ask(url, question(watched))  # noqa: E731 asked for twice
    with running(
        command,
        asks,
        log=tmp_path / "by-hand.log",
        environ={"REGISTRY_CONFIG": str(watched.service.config)},
    ) as process:
        before = workers(process.pid)
        assert len(before) == 2
        os.kill(min(before), signal.SIGKILL)
        until(lambda: len(workers(process.pid) - before) == 1)

        assert asks() == 200
        assert (tmp_path / "by-hand.log").read_text().count("Traceback") == 0
        process.send_signal(signal.SIGTERM)
        assert process.wait(30) == 0


def test_a_server_that_another_one_took_over_from_leaves_the_metrics_to_it(serve, tmp_path) -> None:
    """SIGUSR2 starts the new one, over the same sockets and in the same environment."""
    watched = serve({NAME: model(tmp_path / "models.git")})
    (port,) = free_ports(1)
    url, pid, shared = f"http://{HOST}:{port}", tmp_path / "pid", tmp_path / "metrics"
    shared.mkdir()
    # As `python -m gunicorn` it would find its own modules before those of Python.
    command = [str(Path(sys.executable).with_name("gunicorn"))]
    command += ["--config", "python:registry.server"]
    command += ["--bind", f"{HOST}:{port}", "--pid", str(pid), "registry.wsgi:app"]
    environ = {
        "REGISTRY_CONFIG": str(watched.service.config),
        "PROMETHEUS_MULTIPROC_DIR": str(shared),
    }
    asks: Callable[[], int] = lambda: ask(url, question(watched))  # noqa: E731 asked for again
    with running(command, asks, log=tmp_path / "by-hand.log", environ=environ) as process:
        process.send_signal(signal.SIGUSR2)
        until(lambda: pid.with_name("pid.2").exists())
        successor = int(pid.with_name("pid.2").read_text())
        try:
            until(lambda: len(workers(successor)) == 2)
            process.send_signal(signal.SIGTERM)
            assert process.wait(40) == 0

            assert asks() == 200
            assert shared.is_dir()
            assert ask(url, request("/metrics")) == 200
        finally:
            os.kill(successor, signal.SIGTERM)
            until(lambda: not alive(successor), deadline=40)
    assert not shared.exists()


def ask(url: str, data: bytes) -> int:
    with Connection(url) as connection:
        connection.send(data)
        return connection.answer()[0]


def test_the_settings_of_the_server_can_be_overridden(tmp_path) -> None:
    command = [sys.executable, "-m", "gunicorn", "--config", "python:registry.server"]
    command += ["--print-config", "registry.wsgi:app"]
    environ = {**os.environ, "GUNICORN_CMD_ARGS": "--threads 3 --timeout 99"}
    done = subprocess.run(command, env=environ, capture_output=True, text=True, check=False)
    shown = dict(re.findall(r"^(\w+)\s+= (.*)$", done.stdout, re.MULTILINE))

    assert (shown["threads"], shown["timeout"]) == ("3", "99")
    assert shown["worker_class"] == "registry.worker.Worker"
    assert shown["control_socket_disable"] == "True"
    assert shown["accesslog"] == "None"
