"""Downloads from a real S3 on this machine, through a service: ours, DVC's and curl's."""

import compileall
import hashlib
import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from benchmarks.world import ENDPOINT, Server, World, registry_server
from registry.dvc.manifest import object_key

ROOT = Path(__file__).parent.parent
sys.path.append(str(ROOT / "tests"))  # whose servers these are
from servers import seaweedfs  # noqa: E402 it must be found first

FILES, FILE, LARGE = 1000, 100_000, 1_000_000_000
"""Files of the directory, bytes of each of them, and bytes of the one large file."""

REPOSITORY = "https://git.example/bench/downloads.git"
_BUCKET = "bench"


class NoStore(Exception):
    """There is no store on this machine to download from."""


class Downloads:
    """What is downloaded, the service that gives links to it, and whoever downloads it."""

    def __init__(self, directory: Path, server: Server, token: str) -> None:
        self._directory = directory
        self._server = server
        self._token = token
        self._number = 0

    def ours(self, name: str, repository: str = REPOSITORY) -> float:
        """Seconds of `registry get`, through the service unless the repository is a path."""
        command = [sys.executable, "-m", "registry", "get", repository, name, "--quiet", "-o"]
        environ = {"REGISTRY_URL": self._url, "REGISTRY_TOKEN": self._token}
        return self._timed(command, environ)

    def dvc(self, name: str, repository: str = REPOSITORY) -> float | None:
        """Seconds of `dvc artifacts get`, likewise; None where DVC is not installed."""
        program = ROOT / ".venv-dvc" / "bin" / "dvc"
        if not program.exists():
            return None
        environ = {"DVC_NO_ANALYTICS": "1", "HOME": str(self._directory)}
        if repository == REPOSITORY:
            environ |= {"DVC_STUDIO_URL": self._url, "DVC_STUDIO_TOKEN": self._token}
        else:
            repository = f"file://{repository}"
        command = [str(program), "artifacts", "get", "--quiet", repository, name, "-o"]
        return self._timed(command, environ)

    @property
    def local(self) -> str:
        """The path of a repository whose objects are in a directory of this machine."""
        return str(self._directory.parent / "local.git")

    def curl(self, name: str) -> float:
        """Seconds of curl, which is given the link, and checks nothing."""
        return self._timed(["curl", "-fsS", "--create-dirs", self._link(name), "-o"], {}, "/file")

    def checked(self, name: str) -> float:
        """The same, and of md5sum after it."""
        lines = 'curl -fsS --create-dirs "$0" -o "$1" && md5sum "$1"'
        return self._timed(["sh", "-c", lines, self._link(name)], {}, "/file")

    def _link(self, name: str) -> str:
        query = f"?repo={REPOSITORY}&name={name}"
        (link,) = json.loads(self._server.get(f"{ENDPOINT}{query}", self._token)).values()
        return str(link)

    @property
    def _url(self) -> str:
        return f"http://127.0.0.1:{self._server.port}"

    def _timed(self, command: list[str], environ: Mapping[str, str], more: str = "") -> float:
        self._number += 1
        out = self._directory / f"out-{self._number}"
        begun = time.perf_counter()
        subprocess.run(
            [*command, f"{out}{more}"],
            check=True,
            stdout=subprocess.DEVNULL,
            env={**os.environ, **environ},
        )
        taken = time.perf_counter() - begun
        shutil.rmtree(out)
        return taken


@contextmanager
def downloads(world: World, files: int = FILES, large: int = LARGE) -> Iterator[Downloads]:
    """Publishes a directory of files and a large file, and serves links to them."""
    directory = world.directory / "downloads"
    (directory / "store").mkdir(parents=True)
    if not Path(sys.executable).with_name("weed").exists():
        raise NoStore("SeaweedFS is not installed")
    with seaweedfs.start(directory / "store") as store:
        store.create_bucket(_BUCKET)
        listed = []
        local = directory / "local"

        def put(data: bytes, md5: str) -> None:
            store.put(_BUCKET, object_key(md5, legacy=False), data)
            file = local / object_key(md5, legacy=False)
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_bytes(data)

        for number in range(files):
            data = hashlib.shake_128(b"%d" % number).digest(FILE)
            md5 = hashlib.md5(data, usedforsecurity=False).hexdigest()
            put(data, md5)
            listed.append({"md5": md5, "relpath": f"part-{number % 10}/{number:06}.bin"})
        manifest = json.dumps(listed).encode()
        digest = hashlib.md5(manifest, usedforsecurity=False).hexdigest() + ".dir"
        put(manifest, digest)
        world.make("local", {"thousand": digest}, str(local))
        world.make(
            "downloads",
            {"thousand": digest, "large": _put_large(store, directory, large)},
            f"s3://{_BUCKET}",
        )
        storage = {
            "url": f"s3://{_BUCKET}",
            "repositories": ["bench/*"],
            "endpoint_url": store.endpoint_url,
            "access_key_id": store.keys.access_key_id,
            "secret_access_key": store.keys.secret_access_key,
        }
        config = world.configure("downloads", storage=storage)
        with registry_server(config) as server:
            yield Downloads(directory, server, world.token)


def compile_all() -> None:
    """Compiles the program, as an installation does: that of DVC is compiled."""
    compileall.compile_dir(ROOT / "registry", quiet=1)


def startup() -> float:
    """Seconds of `registry --help`."""
    begun = time.perf_counter()
    program = Path(sys.executable).with_name("registry")
    subprocess.run([program, "--help"], check=True, stdout=subprocess.DEVNULL)
    return time.perf_counter() - begun


def _put_large(store: seaweedfs.SeaweedFS, directory: Path, size: int) -> str:
    file, digest = directory / "large", hashlib.md5(usedforsecurity=False)
    with open(file, "wb") as stream:
        block = hashlib.shake_128(b"large").digest(1 << 20)
        for number in range(0, size, len(block)):
            part = (b"%020d" % number + block)[: min(len(block), size - number)]
            stream.write(part)
            digest.update(part)
    store.client.upload_file(str(file), _BUCKET, object_key(digest.hexdigest(), legacy=False))
    file.unlink()
    return digest.hexdigest()
