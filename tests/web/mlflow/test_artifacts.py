"""Files of runs and of logged models, asked for as MLflow's clients ask."""

import hashlib
import json
from concurrent.futures import Future
from pathlib import Path
from urllib.parse import parse_qs, urlsplit

import pytest
from service import NOW, S3_KEYS, Registry

from registry.domain import RelPath, StorageUrl
from registry.errors import LocationNotGranted, SettingsError, StorageUnavailable
from registry.services import Services
from registry.settings import Settings
from registry.tracking.records import LoggedFile, Owner
from registry.web.mlflow import artifacts
from registry.web.mlflow.lists import PIECE

API = "/api/2.0/mlflow"
FILES = "/api/2.0/mlflow-artifacts"
DATA = b"0123456789"
MD5 = hashlib.md5(DATA).hexdigest()


class Logging:
    """A service with one run and one logged model, asked by somebody who may do everything."""

    def __init__(self, registry: Registry) -> None:
        self.registry = registry
        self.tracking = registry.services.tracking
        self.run = self.tracking.runs.create(0).id
        self.model = self.tracking.models.create(0, name="m").id
        self.root = f"0/{self.run}/artifacts"
        self.model_root = f"0/models/{self.model}/artifacts"
        token = registry.token(scopes=["tracking:read", "tracking:write"])
        self.headers = {"Authorization": f"Bearer {token}"}

    def ask(self, method: str, path: str, **headers: str):
        sent = {**self.headers, **{name.replace("_", "-"): it for name, it in headers.items()}}
        return self.registry.client.open(path, method=method, headers=sent, buffered=True)

    def put(self, path: str, data: bytes = DATA, place: str = ""):
        return self.registry.client.put(
            f"{place}{FILES}/artifacts/{path}", data=data, headers=self.headers
        )

    def get(self, path: str, **headers: str):
        return self.ask("GET", f"{FILES}/artifacts/{path}", **headers)

    def names(self, path: str) -> list[str]:
        answer = self.ask("GET", f"{FILES}/artifacts?path={path}").json
        return [it["path"] for it in answer.get("files", ())]

    def objects(self) -> list[Path]:
        return sorted((self.registry.settings.data_dir / "artifacts/files").glob("md5/*/*"))


@pytest.fixture
def logging(registry: Registry) -> Logging:
    return Logging(registry)


@pytest.mark.parametrize("place", ["", "/mlflow"])
def test_a_file_is_given_back_as_it_was_logged(logging: Logging, place: str) -> None:
    for root in (logging.root, logging.model_root):
        assert logging.put(f"{root}/d/a b.txt", place=place).json == {}
        answer = logging.ask("GET", f"{place}{FILES}/artifacts/{root}/d/a%20b.txt")

        assert (answer.status_code, answer.data) == (200, DATA)
        assert answer.headers["ETag"] == f'"{MD5}"'
        assert answer.headers["Content-Length"] == "10"
        name = answer.headers["Content-Disposition"]
        assert name == "attachment; filename*=UTF-8''a%20b.txt"
    assert logging.names(logging.root) == ["d"]
    assert logging.names(f"{logging.model_root}/d/") == ["a b.txt"]


def test_the_twins_lead_to_the_same(logging: Logging) -> None:
    logging.put(f"{logging.root}/a")

    for place in ("", "/mlflow"):
        for twin in ("api", "ajax-api"):
            url = f"{place}/{twin}/2.0/mlflow-artifacts/artifacts/{logging.root}/a"
            assert logging.ask("GET", url).data == DATA


def test_a_file_can_be_asked_about_without_its_bytes(logging: Logging) -> None:
    logging.put(f"{logging.root}/a")

    for path in (
        f"{FILES}/artifacts/{logging.root}/a",
        f"/get-artifact?run_id={logging.run}&path=a",
    ):
        answer = logging.ask("HEAD", path)
        assert (answer.status_code, answer.data) == (200, b"")
        assert answer.headers["Content-Length"] == str(len(DATA))
        assert answer.headers["ETag"] == f'"{MD5}"'


def test_a_part_of_a_file_and_a_file_that_is_known_are_answered_so(logging: Logging) -> None:
    path = f"{logging.root}/a"
    logging.put(path)

    part = logging.get(path, Range="bytes=2-4")
    assert (part.status_code, part.data) == (206, b"234")
    assert part.headers["Content-Range"] == "bytes 2-4/10"
    assert logging.get(path, Range="bytes=2-4", If_Range=f'"{MD5}"').status_code == 206
    assert logging.get(path, Range="bytes=2-4", If_Range='"other"').status_code == 200
    assert logging.get(path, Range="bytes=10-").status_code == 416
    known = logging.get(path, If_None_Match=f'"{MD5}"')
    assert (known.status_code, known.data) == (304, b"")


def test_the_same_path_again_replaces_and_the_same_bytes_are_stored_once(
    logging: Logging,
) -> None:
    for path in ("a", "b/c"):
        logging.put(f"{logging.root}/{path}")
    logging.put(f"{logging.model_root}/a")
    assert [it.read_bytes() for it in logging.objects()] == [DATA]

    logging.put(f"{logging.root}/a", b"other")
    assert logging.get(f"{logging.root}/a").data == b"other"
    assert logging.get(f"{logging.root}/b/c").data == DATA
    logging.put(f"{logging.root}/a", b"")
    assert logging.get(f"{logging.root}/a").data == b""


def test_what_cannot_be_a_file_stores_nothing(logging: Logging) -> None:
    logging.put(f"{logging.root}/a")
    deleted = logging.tracking.runs.create(0).id
    logging.tracking.runs.delete(deleted)
    before = logging.objects()

    for path, status, code in (
        (f"{logging.root}/a/b", 409, "RESOURCE_CONFLICT"),
        (logging.root, 400, "INVALID_PARAMETER_VALUE"),
        (f"0/{deleted}/artifacts/a", 400, "INVALID_PARAMETER_VALUE"),
        (f"0/{'0' * 32}/artifacts/a", 404, "RESOURCE_DOES_NOT_EXIST"),
        (f"1/{logging.run}/artifacts/a", 404, "RESOURCE_DOES_NOT_EXIST"),
        (f"0/models/m-{'0' * 32}/artifacts/a", 404, "RESOURCE_DOES_NOT_EXIST"),
        ("0/traces/tr-1/artifacts/traces.json", 404, "RESOURCE_DOES_NOT_EXIST"),
    ):
        answer = logging.put(path, b"nobody stores this")
        assert (answer.status_code, answer.json["error_code"]) == (status, code), path
    assert logging.objects() == before


def test_what_is_deleted_leaves_a_row_in_the_audit_log(logging: Logging) -> None:
    logging.registry.services.audit._mode = "required"
    for path in ("d/a", "d/b", "c"):
        logging.put(f"{logging.root}/{path}")
    logging.put(f"{logging.model_root}/a")

    assert logging.ask("DELETE", f"{FILES}/artifacts/{logging.root}/none").status_code == 404
    assert logging.ask("DELETE", f"{FILES}/artifacts/{logging.root}/d").json == {}
    assert logging.names(logging.root) == ["c"]
    logging.ask("DELETE", f"{FILES}/artifacts/{logging.root}/")
    logging.ask("DELETE", f"{FILES}/artifacts/{logging.model_root}/a")

    assert logging.names(logging.root) == logging.names(logging.model_root) == []
    records = [json.loads(row.record) for row in logging.registry.services.audit.rows()]
    assert [(it["decision"], it["selector"]) for it in records] == [
        ("deleted", f"files of run {logging.run}: d"),
        ("deleted", f"files of run {logging.run}: all"),
        ("deleted", f"files of logged model {logging.model}: a"),
    ]


def test_lists_by_id_have_pages(logging: Logging, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("registry.web.mlflow.artifacts.PAGE", 2)
    for owner in (Owner("run", logging.run, 0), Owner("model", logging.model, 0)):
        for name in ("a", "b/c", "d"):
            logging.tracking.files.put(owner, LoggedFile(RelPath(name), MD5, 10))
    lists = (
        f"{API}/artifacts/list?run_id={logging.run}",
        f"{API}/logged-models/{logging.model}/artifacts/directories?x=",
    )

    for url in lists:
        first = logging.ask("GET", url).json
        second = logging.ask("GET", f"{url}&page_token={first['next_page_token']}").json
        assert first["files"] == [
            {"path": "a", "is_dir": False, "file_size": 10},
            {"path": "b", "is_dir": True},
        ]
        assert second == {
            "root_uri": first["root_uri"],
            "files": [{"path": "d", "is_dir": False, "file_size": 10}],
        }


def test_a_directory_is_listed_whole_however_many_names_it_holds(logging: Logging) -> None:
    """It is read and sent a piece at a time: clients know no pages there."""
    names = [f"{number:04}" for number in range(2 * PIECE + 1)]
    owner = Owner("run", logging.run, 0)
    for name in names:
        logging.tracking.files.put(owner, LoggedFile(RelPath(f"d/{name}"), MD5, 10))

    answer = logging.ask("GET", f"{FILES}/artifacts?path={logging.root}/d")
    assert "Content-Length" not in answer.headers
    assert [it["path"] for it in answer.json["files"]] == names


def test_a_directory_may_be_asked_for_with_a_slash_at_its_end(logging: Logging) -> None:
    for root, below in (
        (logging.root, f"{API}/artifacts/list?run_id={logging.run}&path="),
        (
            logging.model_root,
            f"{API}/logged-models/{logging.model}/artifacts/directories?artifact_directory_path=",
        ),
        (logging.root, f"{FILES}/artifacts?path={logging.root}/"),
    ):
        logging.put(f"{root}/d/a")
        plain = logging.ask("GET", f"{below}d").json

        assert len(plain["files"]) == 1
        assert logging.ask("GET", f"{below}d/").json == plain
        assert logging.ask("GET", f"{below}d//").status_code == 400


def test_a_link_leads_to_the_gateway_and_is_noted(logging: Logging) -> None:
    logging.registry.services.audit._mode = "required"
    logging.put(f"{logging.root}/a")
    answer = logging.ask("GET", f"{FILES}/presigned/{logging.root}/a").json

    assert (answer["file_size"], answer["headers"]) == (10, {})
    assert logging.registry.download(answer["url"]).data == DATA
    assert logging.registry.download(answer["url"], Range="bytes=3-3").data == b"3"
    assert logging.ask("GET", f"{FILES}/presigned/{logging.root}/none").status_code == 404
    (given, *_) = [json.loads(row.record) for row in logging.registry.services.audit.rows()]
    assert (given["decision"], given["selector"]) == ("granted", f"run {logging.run}: a")
    logging.registry.clock.now += 3600
    assert logging.registry.download(answer["url"]).status_code == 403


def test_the_directories_of_a_run_that_finished_are_those_of_dvc(logging: Logging) -> None:
    for path in ("notes.txt", "data/train/a.csv", "data/b.csv", "plots/loss.png"):
        logging.put(f"{logging.root}/{path}")
    for status in ("RUNNING", "FINISHED"):
        assert not [it for it in logging.objects() if it.name.endswith(".dir")]
        message = {"run_id": logging.run, "status": status}
        answer = logging.registry.client.post(
            f"{API}/runs/update", json=message, headers=logging.headers
        )
        assert answer.status_code == 200

    written = [it.read_bytes() for it in logging.objects() if it.name.endswith(".dir")]
    assert sorted(json.loads(it)[0]["relpath"] for it in written) == ["b.csv", "loss.png"]
    owner = Owner("run", logging.run, 0)
    for directory in ("data", "plots"):
        assert logging.tracking.files.manifest(owner, RelPath(directory)) in written


def test_a_model_that_is_ready_is_a_directory_to_dvc(logging: Logging) -> None:
    for path in ("MLmodel", "data/model.pkl"):
        logging.put(f"{logging.model_root}/{path}")
    message = {"status": "LOGGED_MODEL_READY"}
    finished = logging.registry.client.patch(
        f"{API}/logged-models/{logging.model}", json=message, headers=logging.headers
    )

    assert finished.status_code == 200
    (manifest,) = [it for it in logging.objects() if it.name.endswith(".dir")]
    assert json.loads(manifest.read_bytes()) == [
        {"md5": MD5, "relpath": "MLmodel"},
        {"md5": MD5, "relpath": "data/model.pkl"},
    ]
    digest = hashlib.md5(manifest.read_bytes()).hexdigest()
    assert manifest.parent.name + manifest.name == f"{digest}.dir"


def test_parts_are_refused_in_the_words_that_clients_know(logging: Logging) -> None:
    for step in ("create", "complete", "abort"):
        answer = logging.registry.client.post(
            f"{FILES}/mpu/{step}/{logging.root}",
            json={"path": "a", "num_parts": 20_000, "upload_id": "u", "parts": []},
            headers=logging.headers,
        )
        assert (answer.status_code, answer.json["error_code"]) == (501, "NOT_IMPLEMENTED")
        assert answer.json["message"].startswith("Multipart upload is not supported for the")


def test_an_upload_of_as_many_parts_as_there_may_be_can_be_completed(logging: Logging) -> None:
    """The client sends all links back; with temporary credentials each has some 2 KB."""
    part = {"part_number": 9_999, "etag": '"x"', "url": "https://bucket.example/" + "x" * 2500}

    def completed(count: int) -> int:
        message = {"path": "a", "upload_id": "u", "parts": [part] * count}
        url = f"{FILES}/mpu/complete/{logging.root}"
        return logging.registry.client.post(url, json=message, headers=logging.headers).status_code

    assert completed(10_000) == 501  # read, and there is no store to send parts to
    assert completed(20_000) == 413


def test_whoever_asks_for_too_many_parts_is_told_how_there_are_fewer(
    tmp_path: Path, tables: Path
) -> None:
    (tmp_path / "registry.db").write_bytes(tables.read_bytes())
    tracking = {"storage": "s3://bucket/dvc/logged"}
    with Registry(tmp_path, {}, [BUCKET], tracking=tracking) as registry:
        logging = Logging(registry)
        for count in (0, 10_001):
            answer = registry.client.post(
                f"{FILES}/mpu/create/{logging.root}",
                json={"path": "a", "num_parts": count},
                headers=logging.headers,
            )
            assert (answer.status_code, answer.json["error_code"]) == (
                400,
                "INVALID_PARAMETER_VALUE",
            )
            assert "MLFLOW_MULTIPART_UPLOAD_CHUNK_SIZE" in answer.json["message"]


def test_whoever_waits_for_a_large_file_hears_something(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(artifacts, "PATIENCE", 0.001)
    done: Future[None] = Future()
    said = artifacts._patiently(done)

    assert [next(said), next(said)] == [b" ", b" "]
    done.set_result(None)
    assert json.loads(b"".join(said)) == {}
    failed: Future[None] = Future()
    failed.set_exception(StorageUnavailable("s3://bucket", "it answers 500"))
    with pytest.raises(StorageUnavailable):
        next(artifacts._patiently(failed))


def test_an_object_that_the_store_lost_is_told(logging: Logging) -> None:
    logging.put(f"{logging.root}/a")
    logging.objects()[0].unlink()

    assert logging.get(f"{logging.root}/a").status_code == 424


# Where objects lie

BUCKET = {"url": "s3://bucket/dvc", "repositories": ["*"], **S3_KEYS}


def services(directory: Path, **settings: object) -> Services:
    document = {
        "data_dir": str(directory),
        "secret_key": "a secret key for tests, long enough",
        **settings,
    }
    return Services.of(Settings.parse(document, {}), lambda: NOW)


def test_objects_lie_below_data_dir_where_no_repository_leads(tmp_path: Path) -> None:
    store = {"url": f"file://{tmp_path}", "repositories": ["*"]}
    made = services(tmp_path, storage=[store])
    url = StorageUrl.parse(f"file://{tmp_path}/artifacts")

    assert made.keeper.url == url
    assert made.grants.locate("any", StorageUrl.parse(f"file://{tmp_path}/x"))
    with pytest.raises(LocationNotGranted):
        made.grants.locate("any", url.below("files/md5/ab/cd"))


def test_objects_lie_in_a_location_that_is_configured_or_nowhere(tmp_path: Path) -> None:
    for url in ("s3://bucket/dvc", "s3://bucket/dvc/logged"):
        made = services(tmp_path, storage=[BUCKET], tracking={"storage": url})
        assert str(made.keeper.url) == url
        assert made.keeper.location is made.locations[0]
    for url in ("s3://bucket/other", "s3://bucket", "file:///srv/elsewhere"):
        with pytest.raises(SettingsError, match=r"tracking\.storage: must be one of"):
            services(tmp_path, storage=[BUCKET], tracking={"storage": url})
    for url in ("https://host/x", "azure://container/x", "nonsense"):
        with pytest.raises(SettingsError, match="tracking"):
            services(tmp_path, storage=[BUCKET], tracking={"storage": url})


def test_links_lead_past_the_service_where_that_is_announced(tmp_path: Path, tables: Path) -> None:
    (tmp_path / "registry.db").write_bytes(tables.read_bytes())
    tracking = {"storage": "s3://bucket/dvc/logged"}
    with Registry(tmp_path, {}, [BUCKET], tracking=tracking) as registry:
        logging = Logging(registry)
        owner = Owner("run", logging.run, 0)
        logging.tracking.files.put(owner, LoggedFile(RelPath("d/a"), MD5, 10))
        info = logging.ask("GET", "/api/3.0/mlflow/server-info").json
        link = urlsplit(logging.ask("GET", f"{FILES}/presigned/{logging.root}/d/a").json["url"])

    assert info["multipart_downloads_enabled"] is info["artifact_serving_enabled"] is True
    assert info["multipart_uploads_enabled"] is True
    assert link.path == f"/dvc/logged/files/md5/{MD5[:2]}/{MD5[2:]}"
    assert parse_qs(link.query)["X-Amz-Expires"] == ["3600"]


def test_links_are_not_announced_where_they_lead_through_the_service(logging: Logging) -> None:
    info = logging.ask("GET", "/api/3.0/mlflow/server-info").json

    assert info["artifact_serving_enabled"] is True
    assert info["multipart_downloads_enabled"] is info["multipart_uploads_enabled"] is False
