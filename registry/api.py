"""The Python API: what `import registry` offers, for scripts that hold no service.

Everything that can go wrong is a RegistryError (`registry.errors`), and says in one line what.
"""

import logging
import os
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

from registry.domain import Selector
from registry.inquiry import at, connections_of
from registry.receipt import Receipt
from registry.transfer import JOBS, Job
from registry.user import User

# A script that sets up no logging is told by exceptions, and not twice.
logging.getLogger("registry").addHandler(logging.NullHandler())


def artifacts_show(
    name: str, version: str | None = None, stage: str | None = None, repo: str | None = None
) -> dict[str, str]:
    """The path of an artifact and the Git revision that a version or a stage of it means.

    Both fit DVC's own API (`dvc.api.read(path, repo=..., rev=rev)`), as do those of
    `dvc.api.artifacts_show`. Neither DVC nor a service is needed.

    Args:
        name: The artifact of the `dvc.yaml` at the root of the repository; `path/to:name` or
            `path/to/dvc.yaml:name` for one of another. Always counted from the root.
        version: A registered version such as `v1.2.0`. Without it and a stage, the greatest one.
        stage: A stage, instead of a version.
        repo: A path in a clone, a bare repository, or a URL (https, ssh, `user@host:path`), which
            is mirrored in the user's cache and brought up to date. By default the repository that
            the current directory lies in.

    Returns:
        `{"path": ..., "rev": ...}`: relative to the root of the repository, and a full commit id.

    Raises:
        registry.errors.InvalidRequest: A name or a combination that makes no sense.
        registry.errors.NotFound: No such repository, artifact, version or stage.
        registry.errors.InvalidMetadata: A file of the repository that matters cannot be read.
        registry.errors.UnsafePath: The path leaves the repository.
        registry.errors.OriginUnavailable: The repository cannot be reached or read.
    """
    from registry.direct import Direct  # noqa: PLC0415 with Git and DVC's files behind it

    selector = Selector.parse(name, version or "", stage or "")
    with Direct(User.load(), repo) as direct:
        found = direct.resolve(selector)
        return {"path": direct.path(selector, found.revision) or ".", "rev": found.revision}


def get_download_uris(
    repo: str,
    name: str,
    version: str | None = None,
    stage: str | None = None,
    url: str | None = None,
    token: str | None = None,
) -> dict[str, str]:
    """Links to every file of an artifact, good for an hour, for whoever has them.

    From a service when there is one to ask (`url` and `token`, or the environment variables
    `REGISTRY_URL` or `DVC_STUDIO_URL`, and `REGISTRY_TOKEN` or `DVC_STUDIO_TOKEN`), and otherwise
    signed with your own keys of the store.

    Args:
        repo: The repository: a name or a URL that the service knows; a path or a URL without one.
        name: The artifact, as for `artifacts_show`.
        version: A registered version. Without it and a stage, the greatest one.
        stage: A stage, instead of a version.
        url: The URL of a service, in place of the environment's.
        token: A token for it, in place of the environment's.

    Returns:
        Path in the repository -> URL.

    Raises:
        registry.errors.InvalidRequest: A question that makes no sense.
        registry.errors.NotFound: No such repository, artifact, version or stage.
        registry.errors.Unauthenticated, registry.errors.Forbidden: The service wants another token.
        registry.errors.Unsignable: Found, but no link can be given for it.
        registry.errors.Unavailable: Git, the store or the service does not answer now.
    """
    user = _user(url, token)
    selector = Selector.parse(name, version or "", stage or "")
    with connections_of(user) as connections, at(user, repo, connections) as inquiry:
        return inquiry.links(selector)


def download(
    repo: str,
    name: str,
    version: str | None = None,
    stage: str | None = None,
    *,
    to: str | os.PathLike[str] = ".",
    url: str | None = None,
    token: str | None = None,
    receipt: Receipt | None = None,
    jobs: int = JOBS,
    force: bool = False,
    progress: bool | None = None,
) -> list[Path]:
    """Downloads an artifact: every file below `to`, under its path in the repository.

    A file is there whole and checked against its MD5, or not at all. What is there already is left
    alone; what broke off is gone on with by the next call. A stage that moves meanwhile changes
    nothing: fresh links are asked for by the receipt of the first answer.

    Args:
        repo: As for `get_download_uris`. Without a service the files are read from the store with
            your own keys.
        name: The artifact, as for `artifacts_show`.
        version: A registered version. Without it and a stage, the greatest one.
        stage: A stage, instead of a version.
        url: The URL of a service, in place of the environment's.
        token: A token for it, in place of the environment's.
        to: The directory to write to, made if need be. Nothing outside of it is ever written, not
            even through a symbolic link in it.
        receipt: Exactly what this receipt lists, instead of what `version` or `stage` mean now.
        jobs: Files that are downloaded at once.
        force: Whether to replace a file that is there and is another one.
        progress: Whether to draw a bar on stderr; by default when that is a terminal.

    Returns:
        The paths of the files, in the order of the receipt.

    Raises:
        registry.errors.RegistryError: What `get_download_uris` raises; and
        registry.errors.FileInTheWay: Another file is there, and `force` is not set.
        registry.errors.TargetUnusable: The target cannot be written, or is full.
        registry.errors.UnsafePath: A path that would leave the target.
        registry.errors.ObjectMissing: The store does not have what DVC's files promise.
        registry.errors.ObjectCorrupt: The store sends other bytes, twice.
        registry.errors.StorageUnavailable: The store does not answer, or breaks off too often.
    """
    user = _user(url, token)
    selector = Selector.parse(name, version or "", stage or "")
    with connections_of(user, jobs) as connections, at(user, repo, connections) as inquiry:
        found = inquiry.again(receipt) if receipt else inquiry.find(selector)
        total = found.receipt.total_size if found.receipt else None
        with progress_bar(total, progress) as advance:
            return Job(
                found.files,
                found.sources,
                Path(to),
                connections,
                jobs=jobs,
                force=force,
                advance=advance,
            ).run()


@contextmanager
def progress_bar(total: int | None, wanted: bool | None) -> Iterator[Callable[[int], object]]:
    """Draws how many of `total` bytes there are, if that is `wanted`, or anybody looks."""
    if wanted is False or (wanted is None and not sys.stderr.isatty()):
        yield lambda _: None
        return
    from tqdm import tqdm  # noqa: PLC0415 for whoever looks

    lock = threading.Lock()
    with tqdm(total=total, unit="B", unit_scale=True, unit_divisor=1024, file=sys.stderr) as bar:

        def advance(count: int) -> None:
            with lock:
                bar.update(count)

        yield advance


def _user(url: str | None, token: str | None) -> User:
    user = User.load()
    return replace(user, service=url or user.service, token=token or user.token)
