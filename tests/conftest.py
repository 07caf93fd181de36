"""Fixtures of real servers, the order of the tests, and `--no-skips`."""

import signal
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings
from servers import azurite as azurite_server
from servers import juicefs as juicefs_server
from servers import nginx as nginx_server
from servers import postgresql as postgresql_server
from servers import s3
from servers import seaweedfs as seaweedfs_server
from servers.process import tail

_HERE = Path(__file__).parent
_LOGS = pytest.StashKey[Path]()


def pytest_addoption(parser: pytest.Parser) -> None:
    """Adds `--no-skips`."""
    parser.addoption(
        "--no-skips", action="store_true", help="fail when a test was skipped, and say why"
    )


def pytest_configure(config: pytest.Config) -> None:
    """Registers the marker by which tests of real servers are known.

    In the background of a shell that is no terminal's, Ctrl-C is ignored by everything that is
    started, unless whoever starts it does not ignore it.
    """
    if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    # How long an example takes says more about what else the machine does than about the example.
    unhurried = settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])
    settings.register_profile("unhurried", unhurried)
    settings.load_profile("unhurried")
    config.addinivalue_line("markers", "servers: needs a real server, which takes seconds to start")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """What is fast comes first, real servers after it, faults then, and real clients last."""

    def slowness(item: pytest.Item) -> int:
        if item.path.is_relative_to(_HERE / "compat"):
            return 3
        if item.path.is_relative_to(_HERE / "faults"):
            return 2
        return 1 if item.get_closest_marker("servers") else 0

    items.sort(key=slowness)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Iterator[None]:
    """Shows the logs of the servers beside a failure."""
    report = yield
    logs = item.config.stash.get(_LOGS, None)
    if report.failed and logs and item.get_closest_marker("servers"):
        for log in sorted(logs.glob("*/*.log")):
            report.sections.append((f"the end of {log.name}", tail(log)))
    return report


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """With `--no-skips`, says why the run fails; the reasons stand above, by `-ra`."""
    if _too_many_skips(terminalreporter.config):
        terminalreporter.section("--no-skips", red=True)
        for report in terminalreporter.stats["skipped"]:
            terminalreporter.line(f"{report.nodeid}: {report.longrepr[2]}")


@pytest.hookimpl(trylast=True)
def pytest_sessionfinish(session: pytest.Session, exitstatus: int) -> None:
    """With `--no-skips`, a run that would have passed fails when a test was skipped."""
    if exitstatus == pytest.ExitCode.OK and _too_many_skips(session.config):
        session.exitstatus = pytest.ExitCode.TESTS_FAILED


def _too_many_skips(config: pytest.Config) -> bool:
    reporter = config.pluginmanager.get_plugin("terminalreporter")
    return bool(config.option.no_skips and reporter and reporter.stats.get("skipped"))


@pytest.fixture(scope="session")
def servers_directory(tmp_path_factory: pytest.TempPathFactory, request) -> Path:
    """Where servers keep their files and logs, one directory each."""
    directory: Path = tmp_path_factory.mktemp("servers")
    request.config.stash[_LOGS] = directory
    return directory


def _own(directory: Path, name: str) -> Path:
    own = directory / name
    own.mkdir()
    return own


@pytest.fixture(scope="session")
def seaweedfs(servers_directory: Path) -> Iterator[seaweedfs_server.SeaweedFS]:
    """S3, with versions and session tokens."""
    with seaweedfs_server.start(_own(servers_directory, "seaweedfs")) as server:
        yield server


@pytest.fixture(scope="session")
def juicefs(servers_directory: Path) -> Iterator[s3.Server]:
    """S3, with the strictest look at signatures."""
    with juicefs_server.start(_own(servers_directory, "juicefs")) as server:
        yield server


@pytest.fixture(scope="session")
def azurite(servers_directory: Path) -> Iterator[azurite_server.Azurite]:
    """Azure Blob Storage over plain HTTP."""
    with azurite_server.start(_own(servers_directory, "azurite")) as server:
        yield server


@pytest.fixture(scope="session")
def azurite_https(servers_directory: Path) -> Iterator[azurite_server.Azurite]:
    """Azure Blob Storage over HTTPS, which takes identities."""
    with azurite_server.start(_own(servers_directory, "azurite-https"), https=True) as server:
        yield server


@pytest.fixture(scope="session")
def nginx(servers_directory: Path) -> Iterator[nginx_server.Nginx]:
    """A web server with files: open, behind a password, and behind signed links."""
    with nginx_server.start(_own(servers_directory, "nginx")) as server:
        yield server


@pytest.fixture(scope="session")
def postgresql(servers_directory: Path) -> Iterator[postgresql_server.PostgreSQL]:
    """PostgreSQL, for databases that several hosts share."""
    with postgresql_server.start(_own(servers_directory, "postgresql")) as server:
        yield server


@pytest.fixture(params=["sqlite", pytest.param("postgresql", marks=pytest.mark.servers)])
def database(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """The URL of an empty database."""
    if request.param == "postgresql":
        url: str = request.getfixturevalue("postgresql").create_database()
        return url
    return f"sqlite:///{tmp_path / 'registry.db'}"
