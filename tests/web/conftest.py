"""Registries over small repositories of one commit."""

import io
import logging
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack
from pathlib import Path

import pytest
from gitrepo import GitRepository
from service import S3_KEYS, Registry, Store

from registry import logs

Serve = Callable[..., Registry]

S3 = [{"url": "s3://bucket/dvc", "repositories": ["*"], **S3_KEYS}]


@pytest.fixture(autouse=True)
def patience(monkeypatch: pytest.MonkeyPatch) -> None:
    """A busy machine clones the source of an import in more than a second."""
    monkeypatch.setattr("registry.catalog.IMPORT_WAIT", 30.0)


@pytest.fixture
def store(tmp_path: Path) -> Store:
    """A DVC remote in a directory, which is granted to nobody yet."""
    return Store(tmp_path / "store")


@pytest.fixture
def serve(tmp_path: Path) -> Iterator[Serve]:
    """Starts registries: `serve({"team/models": origin}, storage)`, ended with the test."""
    with ExitStack() as running:

        def start(origins, storage=S3, directory="var", **more) -> Registry:
            registry = Registry(tmp_path / directory, origins, storage, **more)
            return running.enter_context(registry)

        yield start


@pytest.fixture
def publish(tmp_path: Path, serve: Serve) -> Serve:
    """Commits files, registers v1.0.0 of the artifacts that are named, `m` by default, and serves
    that: `publish({"dvc.yaml": "..."}, "m", storage=[...])`.
    """

    def start(files: Mapping[str, str], *names: str, **more) -> Registry:
        origin = GitRepository(tmp_path / "origin.git")
        origin.commit(files)
        for name in names or ("m",):
            origin.tag(f"{name}@v1.0.0")
        return serve({"team/models": origin}, **more)

    return start


@pytest.fixture
def log() -> Iterator[io.StringIO]:
    """What the service writes to its log."""
    stream = io.StringIO()
    handler = logging.StreamHandler(stream)
    handler.setFormatter(logs.JsonFormatter())
    logger = logging.getLogger("registry")
    logger.addHandler(handler)
    logger.setLevel(logging.INFO)
    yield stream
    logger.removeHandler(handler)
    logger.setLevel(logging.NOTSET)
