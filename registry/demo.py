"""A small but real registry to try the service on, made by the program itself.

    DIRECTORY/
      origin.git      a Git repository: dvc.yaml, .dvc files, GTO tags; clone it, push tags to it
      store/          a DVC remote in the layout of DVC 3; `dvc pull` works on it
      registry.yaml   the configuration of the service
      token           the demo's token, kept so that the printed commands work every time
      var/            mirrors, caches and the database

What is there is kept: a second start finds the tags and files that were added meanwhile.
"""

import hashlib
import json
import os
import secrets
import subprocess
from collections.abc import Mapping
from datetime import datetime, timedelta, timezone
from pathlib import Path

from registry.access import SCOPES, Access
from registry.dvc.manifest import object_key
from registry.errors import SettingsError, Unauthenticated
from registry.settings import Settings

REPOSITORY = "demo/models"
ARTIFACT = "text-classifier"

_DVC_YAML = """\
artifacts:
  text-classifier:
    path: model.pkl
    type: model
    desc: Tells questions from answers
    labels: [demo, nlp]
  tokenizer:
    path: tokenizer
    type: model
"""

_SETTINGS = """\
# The embedded demo. config/registry.yaml in the project explains every key.
data_dir: {directory}/var
public_url: {public_url}
secret_key: {secret_key}
repositories:
- url: {directory}/origin.git
  name: {repository}
  aliases: ["https://git.example/{repository}.git"]
  refresh: 2
storage:
- url: file://{directory}/store
  repositories: ["{repository}"]
"""


def create(directory: Path, public_url: str) -> Settings:
    """Makes the demo in `directory`, or finds the one that is there. Raises SettingsError."""
    directory = directory.absolute()
    config = directory / "registry.yaml"
    if not config.exists():
        directory.mkdir(parents=True, exist_ok=True)
        _create_origin(directory / "origin.git", directory / "store")
        text = _SETTINGS.format(
            directory=directory,
            public_url=public_url,
            repository=REPOSITORY,
            secret_key=secrets.token_urlsafe(48),
        )
        _write_private(config, text)
    return Settings.load(config)


def token(directory: Path, access: Access) -> str:
    """The demo's token: made on the first start, and the same on every later one while it holds.

    Raises DatabaseUnavailable.
    """
    file = directory / "token"
    if file.exists():
        text = file.read_text().strip()
        try:
            access.principal(text)
        except Unauthenticated:  # its year is over, or the database was deleted
            file.unlink()
        else:
            return text
    expires = datetime.now(timezone.utc) + timedelta(days=365)
    _, text = access.create("demo", list(SCOPES), [REPOSITORY], expires)
    _write_private(file, text + "\n")
    return text


def _create_origin(origin: Path, store: Path) -> None:
    remote = f"[core]\n    remote = store\n['remote \"store\"']\n    url = {store}\n"
    first = {
        "dvc.yaml": _DVC_YAML,
        ".dvc/config": remote,
        ".dvc/.gitignore": "/config.local\n/tmp\n/cache\n",
        ".gitignore": "/model.pkl\n/tokenizer\n",
        "model.pkl.dvc": _file(store, "model.pkl", _weights(1)),
        "tokenizer.dvc": _directory(
            store, "tokenizer", {"vocab.txt": b"how\nwhat\nwhy\n", "merges/en.txt": b"w h\nh o\n"}
        ),
    }
    second = {"model.pkl.dvc": _file(store, "model.pkl", _weights(2))}
    stream = (
        _commit(1, "Train the first model", first)
        + _commit(2, "Train with more data", second)
        + _tag("text-classifier@v1.0.0", 1)
        + _tag("tokenizer@v1.0.0", 1)
        + _tag("text-classifier@v1.1.0", 2)
        + _tag("text-classifier#prod#1", 1)
    )
    try:
        subprocess.run(["git", "init", "--quiet", "--bare", "-b", "main", str(origin)], check=True)
        command = ["git", f"--git-dir={origin}", "fast-import", "--quiet"]
        subprocess.run(command, input=stream, check=True)
    except (OSError, subprocess.CalledProcessError) as error:
        raise SettingsError(str(origin), f"git cannot make it: {error}") from None


def _weights(version: int) -> bytes:
    """Bytes that look like a model: 64 KiB, the same on every machine."""
    return hashlib.shake_128(f"weights {version}".encode()).digest(1 << 16)


def _file(store: Path, path: str, data: bytes) -> str:
    md5 = _put(store, data)
    return f"outs:\n- md5: {md5}\n  size: {len(data)}\n  hash: md5\n  path: {path}\n"


def _directory(store: Path, path: str, files: Mapping[str, bytes]) -> str:
    listed = [{"md5": _put(store, data), "relpath": name} for name, data in sorted(files.items())]
    md5 = _put(store, json.dumps(listed, sort_keys=True).encode(), ".dir")
    size = sum(map(len, files.values()))
    return (
        f"outs:\n- md5: {md5}\n  size: {size}\n  nfiles: {len(files)}\n  hash: md5\n"
        f"  path: {path}\n"
    )


def _put(store: Path, data: bytes, suffix: str = "") -> str:
    md5 = hashlib.md5(data, usedforsecurity=False).hexdigest() + suffix
    file = store / object_key(md5, legacy=False)
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_bytes(data)
    return md5


def _commit(number: int, message: str, files: Mapping[str, str]) -> bytes:
    changes = b"".join(
        b"M 100644 inline %b\n%b" % (path.encode(), _data(text)) for path, text in files.items()
    )
    head = f"commit refs/heads/main\nmark :{number}\ncommitter {_who(number)}\n".encode()
    return head + _data(message) + changes + b"\n"


def _tag(name: str, commit: int) -> bytes:
    head = f"tag {name}\nfrom :{commit}\ntagger {_who(commit + 2)}\n".encode()
    return head + _data(f"{name}, made by the demo")


def _who(day: int) -> str:
    return f"Demo <demo@example.com> {1_767_225_600 + day * 86_400} +0000"


def _data(text: str) -> bytes:
    return b"data %d\n%b\n" % (len(text.encode()), text.encode())


def _write_private(file: Path, text: str) -> None:
    with open(os.open(file, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as stream:
        stream.write(text)
