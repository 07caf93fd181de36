"""A service to be broken, and watched meanwhile."""

import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from itertools import count
from pathlib import Path

import pytest
from gitrepo import GitRepository
from servers import registry as server

from faults.observer import Observer
from faults.origins import BUCKET, LINKS

Serve = Callable[..., Observer]

_numbers = count(1)

STORE = {
    "url": BUCKET,
    "repositories": ["*"],
    "access_key_id": "AKIATEST",
    "secret_access_key": "canary-in-the-keys-of-the-store",
}


@contextmanager
def _serving(servers: Path) -> Iterator[Serve]:
    """Starts `registry serve`, and an Observer of it, both until the block ends.

        watched = serve({"team/models": origin}, refresh=1)

    `origins` says what each repository is: a GitRepository, with settings of its own in a tuple if
    need be. `repository` are settings of all repositories, `settings` others of the configuration;
    `granted` and `storage` say where objects are, `secrets` what must not be seen besides those
    that are put into every configuration. `service` goes to servers.registry.start. What is started
    twice finds the data_dir of the first time.
    """
    directory = servers / f"faults-{next(_numbers)}"
    directory.mkdir()
    with ExitStack() as running:

        def start(
            origins: Mapping[str, GitRepository | tuple[GitRepository, Mapping[str, object]]],
            *,
            repository: Mapping[str, object] | None = None,
            settings: Mapping[str, object] | None = None,
            storage: Sequence[Mapping[str, object]] = (STORE,),
            granted: Sequence[str] = (LINKS,),
            secrets: Sequence[str] = (),
            **service: object,
        ) -> Observer:
            followed, configured = {}, []
            for name, what in origins.items():
                followed[name], own = what if isinstance(what, tuple) else (what, {})
                canary = f"canary-in-the-webhook-of-{name}"
                item = {"name": name, "url": str(followed[name].path), "webhook_secret": canary}
                configured.append({**item, **(repository or {}), **own})
            key = "canary-in-the-key-that-signs-tokens-and-links"
            document = {"secret_key": key, "metrics": "public", **(settings or {})}
            hidden = [key, str(STORE["secret_access_key"]), *secrets]
            hidden += [
                str(item[field])
                for item in configured
                for field in ("webhook_secret", "password")
                if field in item
            ]
            started = running.enter_context(
                server.start(directory, configured, storage, **{**document, **service})
            )
            observer = Observer(started, followed, granted=granted, secrets=hidden)
            return running.enter_context(observer)

        yield start
    shutil.rmtree(directory)


@pytest.fixture
def serve(servers_directory: Path) -> Iterator[Serve]:
    """Starts a service for one test, as `_serving` describes."""
    with _serving(servers_directory) as start:
        yield start


@pytest.fixture(scope="module")
def serve_all(servers_directory: Path) -> Iterator[Serve]:
    """The same for all tests of a module, each of which has repositories of its own."""
    with _serving(servers_directory) as start:
        yield start
