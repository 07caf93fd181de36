"""What MLflow calls artifacts: the files of runs and of logged models.

A client gives a path, `<experiment>/<run>/artifacts/...` or `<experiment>/models/<model>/artifacts/
...`, which is compared with what was logged, and nothing else: no part of it ever becomes the name
of a file or a URL here. Each function answers one row of `routes`.
"""

import re
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, wait
from contextlib import suppress
from datetime import datetime, timezone
from threading import Thread
from typing import Literal
from urllib.parse import unquote

from flask import Response, request

from registry.audit import Event
from registry.domain import Principal, RelPath
from registry.errors import InvalidRequest, LoggedFileNotFound, NotServed, UnsafePath
from registry.services import Services
from registry.storage.bucket import MOST
from registry.storage.keeping import located
from registry.storage.parts import Parts
from registry.tracking.records import Listed, LoggedFile, Owner
from registry.web.mlflow import lists, wire
from registry.web.mlflow.wire import Json, Message
from registry.web.objects import deliver
from registry.web.observe import trace

PAGE = 1000
"""Names in one answer of those that have pages."""
DIRECTORIES = 100
"""Names in a run that are looked at for directories."""
LIFETIME = 3600
"""Seconds that a presigned link lives."""
LARGEST_LIST = 32 << 20
"""Bytes of what is said of an upload that is complete: a client sends every link back, and those of
temporary credentials are long.
"""
PATIENCE = 20
"""Seconds after which a client that waits for a file hears that it has to wait on."""

_NO_PARTS = "Multipart upload is not supported for the current artifact repository"
"""The text by which MLflow's clients know that they are to send a file in one piece."""
_FEWER = ": with a larger MLFLOW_MULTIPART_UPLOAD_CHUNK_SIZE there are fewer"
_CHUNK = 1 << 20
_ROOT = re.compile(
    r"([0-9]{1,18})/(?:models/(?P<model>m-[0-9a-f]{32})|(?P<run>[0-9a-f]{32}))/artifacts"
    r"(?:/(?P<path>.+))?"
)
_SCHEME = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*:/|file:", re.IGNORECASE)


# By the whole path


def upload(services: Services, _: Principal, message: Message) -> Json:
    """PUT mlflow-artifacts/artifacts/{path}"""
    owner, path = _place(message)
    if not path:
        raise InvalidRequest("path", "names no file")
    services.tracking.files.check(owner, path)  # before anything is sent for nothing
    kept = services.keeper.put(_received())
    services.tracking.files.put(owner, LoggedFile(path, kept.md5, kept.size))
    return {}


def download(services: Services, _: Principal, message: Message) -> Response:
    """GET mlflow-artifacts/artifacts/{path}"""
    owner, path = _place(message)
    return _deliver(services, owner, path)


def list_below(services: Services, _: Principal, message: Message) -> Json | Response:
    """GET mlflow-artifacts/artifacts: names without the directory, which the client knows."""
    owner, path = _place(message)

    def read(limit: int, page: str) -> tuple[Sequence[Json], str]:
        found = services.tracking.files.list(owner, path, limit, page)
        infos = _infos(found.found, message)
        return [{**it, "path": RelPath(it["path"]).name} for it in infos], found.next

    return lists.answer("files", read, sys.maxsize, pages=False)


def delete(services: Services, _: Principal, message: Message) -> Json:
    """DELETE mlflow-artifacts/artifacts/{path}"""
    services.tracking.files.delete(*_place(message))
    return {}


def named(message: Message) -> str:
    """What the audit log says was deleted."""
    owner, path = _place(message)
    kind = "run" if owner.kind == "run" else "logged model"
    return f"files of {kind} {owner.id}: {path or 'all'}"


def presigned(services: Services, principal: Principal, message: Message) -> Json:
    """GET mlflow-artifacts/presigned/{path}: a link straight to the store, or to the gateway."""
    owner, path = _place(message)
    file = services.tracking.files.get(owner, path)
    url, entry = located(services.keeper, file.path, file.md5)
    links = services.keeper.location.signer.links(_now(services), LIFETIME)
    link = links.sign(url.path, entry)
    _granted(services, principal, owner, path)
    return {"url": link, "headers": {}, "file_size": file.size}


def _granted(services: Services, principal: Principal, owner: Owner, path: RelPath) -> None:
    services.audit.write(
        Event(
            request=trace().request_id,
            address=request.remote_addr or "",
            token=principal.id,
            repository="",
            selector=f"{owner.kind} {owner.id}: {path}"[:255],
            decision="granted",
            files=1,
        )
    )


def create_parts(services: Services, principal: Principal, message: Message) -> Json:
    """POST mlflow-artifacts/mpu/create/{directory}: links by which a client sends a file itself."""
    owner, path = _sent(message)
    services.tracking.files.check(owner, path)
    parts = _parts(services)  # where there are none, it does not matter how many
    count = message.limit("num_parts", 1, MOST, _FEWER)
    begun = parts.begin(_about(owner, path), count)
    _granted(services, principal, owner, path)
    return {
        "upload_id": begun.id,
        "credentials": [
            {"url": link, "part_number": number, "headers": {}}
            for number, link in enumerate(begun.links, 1)
        ],
    }


def complete_parts(services: Services, _: Principal, message: Message) -> "Json | Response":
    """POST mlflow-artifacts/mpu/complete/{directory}: the file is there when this is answered.

    To read a large one takes longer than clients wait for a word: they get one now and then.
    """
    owner, path = _sent(message)
    services.tracking.files.check(owner, path)
    upload, parts = message.needed("upload_id"), _parts(services)
    sent = [(it.integer("part_number") or 0, it.needed("etag")) for it in message.messages("parts")]

    def finish() -> None:
        kept = parts.finish(_about(owner, path), upload, sent)
        services.tracking.files.put(owner, LoggedFile(path, kept.md5, kept.size))

    done: Future[None] = Future()
    Thread(target=_fulfil, args=(done, finish), name="parts", daemon=True).start()
    if not wait([done], PATIENCE).done:
        return Response(_patiently(done), mimetype="application/json")
    done.result()
    return {}


def abort_parts(services: Services, _: Principal, message: Message) -> Json:
    """POST mlflow-artifacts/mpu/abort/{directory}"""
    owner, path = _sent(message)
    services.tracking.files.check(owner, path)
    _parts(services).abandon(_about(owner, path), message.needed("upload_id"))
    return {}


def _parts(services: Services) -> Parts:
    """Raises NotServed where there is no store that a client could send to."""
    if services.keeper.parts is None:
        raise NotServed("multipart uploads", _NO_PARTS)
    return services.keeper.parts


def _sent(message: Message) -> tuple[Owner, RelPath]:
    """Whose file is sent, and its path: of what the client calls it, only the name counts."""
    owner, directory = _place(message, "directory")
    name = re.split(r"[/\\]", message.needed("path"))[-1]
    if not name:
        raise InvalidRequest("path", "names no file")
    return owner, _relative(f"{directory}/{name}" if directory else name, "path")


def _about(owner: Owner, path: RelPath) -> str:
    return f"{owner.kind} {owner.id} {path}"


def _fulfil(done: "Future[None]", finish: Callable[[], None]) -> None:
    try:
        finish()
    except Exception as error:
        done.set_exception(error)  # for whoever asks for the result
    else:
        done.set_result(None)


def _patiently(done: "Future[None]") -> Iterator[bytes]:
    """An empty message, before which there is a blank every now and then, as S3 does it. What goes
    wrong breaks off the answer.
    """
    while not wait([done], PATIENCE).done:
        yield b" "
    done.result()
    yield b"{}"


def keep_directories(services: Services, run: Owner) -> None:
    """Writes the `.dir` manifest of each directory of a run, of which the first hundred count: what
    was logged as a whole is a directory to DVC, too.
    """
    for it in services.tracking.files.list(run, RelPath.ROOT, DIRECTORIES).found:
        if it.size is None:
            keep_directory(services, run, it.path)


def keep_directory(services: Services, owner: Owner, directory: RelPath = RelPath.ROOT) -> None:
    """Writes the `.dir` manifest of a directory, if there is anything in it."""
    with suppress(LoggedFileNotFound):
        services.keeper.put([services.tracking.files.manifest(owner, directory)], ".dir")


# By the id of a run or of a logged model


def list_run(services: Services, _: Principal, message: Message) -> Json:
    """artifacts/list"""
    run = services.tracking.runs.get(message.run_id())
    if run.artifact_location is not None:
        return {"root_uri": wire.run_root(run)}
    owner = Owner("run", run.id, run.experiment)
    return _listing(services, owner, wire.run_root(run), message, "path")


def list_model(services: Services, _: Principal, message: Message) -> Json:
    """GET logged-models/{model_id}/artifacts/directories"""
    model = services.tracking.models.get(message.needed("model_id"))
    if model.artifact_location is not None:
        return {"root_uri": wire.model_root(model)}
    owner = Owner("model", model.id, model.experiment)
    root = wire.model_root(model)
    return _listing(services, owner, root, message, "artifact_directory_path")


def download_of_run(services: Services, _: Principal, message: Message) -> Response:
    """GET /get-artifact"""
    path = _relative(message.needed("path"), "path")
    run = services.tracking.runs.get(message.run_id())
    return _deliver(services, Owner("run", run.id, run.experiment), path)


def download_of_model(services: Services, _: Principal, message: Message) -> Response:
    """GET logged-models/{model_id}/artifacts/files"""
    path = _relative(message.needed("artifact_file_path"), "artifact_file_path")
    model = services.tracking.models.get(message.needed("model_id"))
    return _deliver(services, Owner("model", model.id, model.experiment), path)


def _listing(services: Services, owner: Owner, root: str, message: Message, field: str) -> Json:
    directory = message.text(field).removesuffix("/")
    page = services.tracking.files.list(
        owner,
        _relative(directory, field) if directory else RelPath.ROOT,
        PAGE,
        message.text("page_token"),
    )
    found: Json = {"root_uri": root}
    if page.found:
        found["files"] = list(_infos(page.found, message))
    if page.next:
        found["next_page_token"] = page.next
    return found


def _infos(found: Iterable[Listed], message: Message) -> Iterator[Json]:
    """MLflow's FileInfo."""
    for it in found:
        if it.size is None:
            yield {"path": it.path, "is_dir": True}
        else:
            yield {"path": it.path, "is_dir": False, "file_size": message.flavour.int64(it.size)}


def _deliver(services: Services, owner: Owner, path: RelPath) -> Response:
    file = services.tracking.files.get(owner, path)
    url, entry = located(services.keeper, file.path, file.md5)
    return deliver(services, services.keeper.location, url, entry, _now(services))


def _now(services: Services) -> datetime:
    return datetime.fromtimestamp(services.clock(), timezone.utc)


def _received() -> Iterator[bytes]:
    """What is sent. Raises InvalidRequest when it breaks off."""
    size, announced = 0, request.content_length
    while True:
        try:
            chunk = request.stream.read(_CHUNK)
        except OSError:  # in the middle of a chunk
            raise InvalidRequest("body", "broke off") from None
        if not chunk:
            break
        size += len(chunk)
        yield chunk
    # A server may take the end of a connection for the end of a body.
    if announced is not None and size != announced:
        raise InvalidRequest("body", f"broke off after {size} of {announced} bytes")


def _place(message: Message, field: str = "path") -> tuple[Owner, RelPath]:
    """Whose files a path names, and which. Raises InvalidRequest or LoggedFileNotFound."""
    given = message.needed(field).removesuffix("/")
    _relative(given, field)
    match = _ROOT.fullmatch(given)
    if match is None:
        raise LoggedFileNotFound(given, "any run or logged model")
    kind: Literal["run", "model"] = "run" if match["run"] else "model"
    # Once more by itself: what begins it counts for more than what stands within.
    path = _relative(match["path"], field) if match["path"] else RelPath.ROOT
    return Owner(kind, match[kind], int(match[1])), path


def _relative(given: str, field: str) -> RelPath:
    """A path as a client gives it. Raises InvalidRequest for one that could be taken for another.

    It was decoded once, and is not again; one that would then lead elsewhere is refused all the
    same, for whoever decodes once more behind us.
    """
    try:
        path = RelPath.parse(given)
    except UnsafePath as error:
        raise InvalidRequest(field, f"invalid path: {error.problem}") from None
    if "#" in given or "?" in given or _SCHEME.match(given):
        raise InvalidRequest(field, "invalid path: it could be taken for a URL")
    decoded, before = unquote(given), given
    while decoded != before:
        if (
            ".." in decoded.split("/")
            or decoded.startswith("/")
            or any(letter in decoded for letter in "\\\0#?")
        ):
            raise InvalidRequest(field, "invalid path: it is encoded twice")
        decoded, before = unquote(decoded), decoded
    return path
