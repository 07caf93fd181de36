"""The verbs of whoever needs a model: get, show, urls, lock and verify."""

import json
import logging
import os
import stat
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path
from typing import NoReturn

import click

from registry import lockfile
from registry.api import progress_bar
from registry.cli.terminal import json_option, print_json, printable
from registry.connections import Connections
from registry.domain import RelPath, Selector, reject_conflicts, without_credentials
from registry.errors import InvalidReceipt, InvalidRequest, TargetUnusable
from registry.inquiry import Found, Inquiry, at, connections_of
from registry.lockfile import Locked
from registry.receipt import Receipt
from registry.transfer import JOBS, Job, has_md5
from registry.user import User

LOCK_FILE = Path("registry.lock")

repo_argument = click.argument("repo")
name_argument = click.argument("name")
version_option = click.option(
    "--rev",
    "--version",
    "version",
    metavar="V",
    help="A registered version, such as v1.2.0, or a full commit id.",
)
stage_option = click.option("--stage", metavar="S", help="What is in this stage, such as prod.")
_receipt_option = click.option(
    "--receipt",
    "receipt_file",
    type=click.Path(dir_okay=False, path_type=Path),
    help="Write the receipt there, for `registry verify`.",
)


@contextmanager
def asking(repo: str | None, jobs: int = JOBS) -> Iterator[tuple[Inquiry, Connections]]:
    """Whom to ask about a repository, as the environment says."""
    # A failure is one line on stderr: what is logged on the way there is for services.
    logging.getLogger("registry").addHandler(logging.NullHandler())
    user = User.load()
    with connections_of(user, jobs) as connections, at(user, repo, connections) as inquiry:
        yield inquiry, connections


def selector_of(name: str, version: str | None, stage: str | None) -> Selector:
    """The selector that the options name; a full commit id is a revision. Raises InvalidRequest."""
    if version and len(version) in (40, 64) and set(version) <= set("0123456789abcdef"):
        if stage:
            raise InvalidRequest("stage", "give either --rev or --stage")
        return Selector.parse(name, rev=version)
    return Selector.parse(name, version or "", stage or "")


@click.command()
@click.argument("repo", required=False)
@click.argument("names", metavar="[NAME]...", nargs=-1)
@version_option
@stage_option
@click.option(
    "-o",
    "--out",
    type=click.Path(file_okay=False, path_type=Path),
    default=Path("."),
    show_default=True,
    help="Where to; made if need be.",
)
@click.option("--locked", is_flag=True, help="Exactly what the lock file lists, or NAMEs of it.")
@click.option(
    "--lock-file",
    type=click.Path(dir_okay=False, path_type=Path),
    default=LOCK_FILE,
    show_default=True,
    help="The lock file of --locked.",
)
@_receipt_option
@click.option("-f", "--force", is_flag=True, help="Replace files that are there and are others.")
@click.option(
    "-j",
    "--jobs",
    type=click.IntRange(1, 64),
    default=JOBS,
    show_default=True,
    help="Files that are downloaded at once.",
)
@click.option("-q", "--quiet", is_flag=True, help="No progress bar, also on a terminal.")
@json_option
def get(
    *,
    repo: str | None,
    names: tuple[str, ...],
    version: str | None,
    stage: str | None,
    out: Path,
    locked: bool,
    lock_file: Path,
    receipt_file: Path | None,
    force: bool,
    jobs: int,
    quiet: bool,
    as_json: bool,
) -> None:
    """Download an artifact: every file below --out, under its path in the repository.

    From the service that REGISTRY_URL and REGISTRY_TOKEN name (or DVC_STUDIO_URL and
    DVC_STUDIO_TOKEN), and otherwise straight from Git and the store, with your own access to both.
    REPO is what the service calls the repository, or a path or a URL. Files that are there already
    are left alone, and a download that broke off is gone on with.
    """
    with ExitStack() as stack:
        stack.enter_context(_resumable())
        if locked:
            if version or stage or receipt_file:
                raise click.UsageError("--locked goes without --rev, --stage and --receipt.")
            found = [
                _ask(stack, entry.repo, jobs, partial(_again, entry.receipt))
                for entry in _chosen(lock_file, [repo, *names] if repo else [])
            ]
        else:
            if not repo or len(names) != 1:
                raise click.UsageError("Name a repository and an artifact, or use --locked.")
            selector = selector_of(names[0], version, stage)
            found = [_ask(stack, repo, jobs, lambda it: it.find(selector))]
        reject_conflicts(file.path for what, _ in found for file in what.files)
        paths = []
        for what, connections in found:
            paths += _download(what, connections, out, jobs, force=force, quiet=quiet)
        if receipt_file:
            _write_receipt(receipt_file, found[0][0])
    if as_json:
        receipts = [what.receipt.as_json() if what.receipt else None for what, _ in found]
        print_json({"files": [str(path) for path in paths], "receipts": receipts})
        return
    click.echo("\n".join(str(path) for path in paths))


@click.command()
@repo_argument
@name_argument
@version_option
@stage_option
@json_option
def show(repo: str, name: str, version: str | None, stage: str | None, as_json: bool) -> None:
    """Show what a version, a stage or the latest version means: its receipt."""
    with asking(repo) as (inquiry, _):
        found = inquiry.find(selector_of(name, version, stage))
    receipt = found.receipt
    if as_json and receipt:
        click.echo(bytes(receipt).decode())
        return
    if receipt is None:  # of a service that knows none
        files = [{"md5": it.md5, "path": it.path, "size": it.size} for it in found.files]
        print_json({"files": files, "name": name, "revision": found.revision or None})
        return
    for name_of, fact in receipt.facts():
        click.echo(f"{name_of:<12}{printable(fact)}")


@click.command()
@repo_argument
@name_argument
@version_option
@stage_option
@json_option
def urls(repo: str, name: str, version: str | None, stage: str | None, as_json: bool) -> None:
    """Print a link for each file, good for an hour for whoever has it."""
    with asking(repo) as (inquiry, _):
        links = inquiry.links(selector_of(name, version, stage))
    if as_json:
        print_json(links)
        return
    for link in links.values():
        click.echo(link)


@click.command()
@repo_argument
@click.argument("selectors", metavar="SELECTOR...", nargs=-1, required=True)
@click.option(
    "--lock-file",
    type=click.Path(dir_okay=False, path_type=Path),
    default=LOCK_FILE,
    show_default=True,
    help="The file to write. What it lists of other selectors stays.",
)
@json_option
def lock(repo: str, selectors: tuple[str, ...], lock_file: Path, as_json: bool) -> None:
    """Write down what selectors mean now, for `registry get --locked`.

    A SELECTOR is spelled as in tags: `classifier` (the latest version), `classifier@v1.2.0` or
    `classifier#prod`.
    """
    known = lockfile.read(lock_file) if lock_file.exists() else []
    new = []
    with asking(repo) as (inquiry, _):
        for spelled in selectors:
            found = inquiry.find(_selector(spelled))
            if found.receipt is None:
                raise InvalidRequest("REGISTRY_URL", "this service gives no receipts to lock")
            new.append(Locked(without_credentials(repo), found.receipt))
    lockfile.write(lock_file, [*known, *new])
    if as_json:
        print_json([{"repo": one.repo, "receipt": one.receipt.as_json()} for one in new])
        return
    for one in new:
        receipt = one.receipt
        click.echo(f"{receipt.name} {receipt.version or '-'} {receipt.revision} {receipt.digest}")


@click.command()
@click.argument("directory", type=click.Path(exists=True, file_okay=False, path_type=Path))
@click.option(
    "--receipt",
    "receipt_file",
    required=True,
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    help="A receipt, or a lock file.",
)
@json_option
def verify(directory: Path, receipt_file: Path, as_json: bool) -> None:
    """Check the files of a directory against a receipt. Exit code 1 if one is not as it should be.

    Asks nobody: a receipt holds the MD5 of each file.
    """
    problems = []
    count = 0
    for receipt in _receipts(receipt_file):
        known = {file.path: file.md5 for file in receipt.files}
        count += len(known)
        problems += [
            (str(path), problem)
            for path, problem in receipt.verify(lambda path: _md5_of(directory, path, known[path]))  # noqa: B023 used at once
        ]
    if as_json:
        listed = [{"path": path, "problem": problem} for path, problem in problems]
        print_json({"files": count, "problems": listed})
    else:
        for path, problem in problems:
            click.echo(f"{path}: {problem}")
        if not problems:
            files = "1 file is as it" if count == 1 else f"{count} files are as they"
            click.echo(f"{files} should be.")
    if problems:
        sys.exit(1)


def _again(receipt: Receipt, inquiry: Inquiry) -> Found:
    return inquiry.again(receipt)


def _ask(
    stack: ExitStack, repo: str, jobs: int, question: Callable[[Inquiry], Found]
) -> tuple[Found, Connections]:
    inquiry, connections = stack.enter_context(asking(repo, jobs))
    return question(inquiry), connections


def _download(
    found: Found, connections: Connections, out: Path, jobs: int, *, force: bool, quiet: bool
) -> list[Path]:
    total = found.receipt.total_size if found.receipt else None
    with progress_bar(total, False if quiet else None) as advance:
        job = Job(
            found.files, found.sources, out, connections, jobs=jobs, force=force, advance=advance
        )
        return job.run()


@contextmanager
def _resumable() -> Iterator[None]:
    try:
        yield
    except KeyboardInterrupt:
        _interrupted()


def _interrupted() -> NoReturn:
    click.echo("Interrupted. Run the command again: it goes on where it stopped.", err=True)
    sys.stdout.flush()
    os._exit(130)  # without waiting for a thread that waits for a store


def _chosen(file: Path, names: Sequence[str]) -> list[Locked]:
    """The artifacts of a lock file that have one of the names; all of them without any."""
    locked = lockfile.read(file)
    chosen = [one for one in locked if not names or one.receipt.name in names]
    missing = set(names) - {one.receipt.name for one in chosen}
    if missing or not chosen:
        wanted = ", ".join(sorted(missing)) or "anything"
        raise InvalidReceipt(f"file {file} does not list {wanted}: run `registry lock` first")
    return chosen


def _selector(spelled: str) -> Selector:
    """`name`, `name@v1.2.0` or `name#prod`, as in tags. Raises InvalidRequest."""
    name, found, version = spelled.partition("@")
    if found:
        return selector_of(name, version or "?", None)
    name, found, stage = spelled.partition("#")
    return selector_of(name, None, stage or "?" if found else None)


def _write_receipt(file: Path, found: Found) -> None:
    if found.receipt is None:
        raise InvalidRequest("--receipt", "this service gives no receipts")
    try:
        file.write_bytes(bytes(found.receipt) + b"\n")
    except OSError as error:
        raise TargetUnusable(str(file), error.strerror or "I/O error") from None


def _receipts(file: Path) -> list[Receipt]:
    data = file.read_bytes()
    try:
        is_lock = "artifacts" in json.loads(data)
    except (ValueError, TypeError, RecursionError):
        is_lock = False
    return [one.receipt for one in lockfile.read(file)] if is_lock else [Receipt.parse(data)]


def _md5_of(directory: Path, path: RelPath, expected: str | None) -> str | None:
    """The MD5 of a file of the directory; None when there is no regular one, or it lies behind a
    symbolic link.
    """
    place = directory
    for part in path.split("/"):
        place = place / part
        if place.is_symlink():
            return None
    try:
        flags = os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC | os.O_NOFOLLOW
        opened = os.fdopen(os.open(place, flags), "rb", buffering=0)
    except OSError:
        return None
    with opened:
        if not stat.S_ISREG(os.fstat(opened.fileno()).st_mode):
            return None
        if expected is None:
            return ""
        return expected if has_md5(opened, expected, threading.Event()) else "another"
