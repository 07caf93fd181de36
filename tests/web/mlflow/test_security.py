"""The holes that were found in MLflow's own server, class by class: none of them is here.

Nearly all of them are one: something that a client says is taken for the name of a file or for a
URL, and followed by the server. Here a path is compared with what was logged. Each payload goes to
every route that takes a path, and what it would lead to is there to be found.
"""

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from urllib.parse import quote

import pytest
from service import Registry, WebServer

from registry.domain import RelPath
from registry.tracking.records import LoggedFile, Owner

SECRET = b"canary-in-a-file-that-nobody-logged"
API = "/api/2.0/mlflow"
FILES = "/api/2.0/mlflow-artifacts"

# As they stand in the line of the request. {secret} is the absolute path of a file that is there,
# {up} leads from the objects to it, {url} is a web server within reach.
PATHS = {
    # CVE-2023-1177, 2023-2780, 2023-6018, 2023-6909, 2024-1483, 2024-2928, 2025-11201: ../
    "dots": "../{up}",
    "dots below a directory": "d/../../{up}",
    "dots encoded": "%2e%2e/{up}",
    "dots with encoded slashes": "..%2f..%2f..%2f{up}",
    # CVE-2023-6831, 2024-1560: checked, and decoded once more
    "dots encoded twice": "%252e%252e%252f{up}",
    "dots encoded three times": "%25252e%25252e%25252f{up}",
    "a slash encoded twice": "d%252f..%252f..%252f{up}",
    # CVE-2023-2356, 2023-1176, 2023-3765, 2023-6975: as Windows spells it
    "backslashes": "..%5c..%5c{up}",
    "backslashes encoded twice": "..%255c{up}",
    "a drive": "C:/windows/win.ini",
    "a share": "%5c%5chost%5cshare",
    # CVE-2023-6977, 2024-0520, 2024-8859: absolute
    "absolute": "{secret}",
    "absolute after a slash": "/{secret}",
    "absolute encoded": "%2f{secret}",
    "absolute encoded twice": "%252f{secret}",
    # CVE-2024-3573, 2026-2614: a URL of a file, with as many slashes as it takes
    "a URL of a file": "file://{secret}",
    "a URL of a file with one slash": "file:{secret}",
    "a URL of a file below": "d/file://{secret}",
    "a URL of a file encoded": "file%3a%2f%2f{secret}",
    # CVE-2024-1593, 2024-1594, 2024-3848: parameters, a fragment, a query
    "a fragment": "d%23/../../{up}",
    "a fragment alone": "d%23{up}",
    "a fragment encoded twice": "d%2523/{up}",
    "a query": "d%3f/../../{up}",
    "a query alone": "d%3f{up}",
    "parameters": "d;/../../{up}",
    # CVE-2023-6974, 2026-2393: something to ask for
    "a URL": "{url}/secret",
    "a URL encoded": "{url}%2fsecret",
    "a bucket": "s3://bucket/secret",
    # Names that systems read in two ways
    "a NUL": "one.txt%00.png",
    "a line feed": "one.txt%0a",
    "a dot": "./one.txt",
    "an empty part": "d//one.txt",
    "a directory of Git": ".git/config",
    "too long": "x" * 5000,
}

# CVE-2023-6753, 2023-6976, 2023-6015: the same for what is written, and for where it is said to be.
LOCATIONS = {
    "dots": "s3://bucket/../{up}",
    "a file with a fragment": "file://{secret}#x",
    "a file with a query": "file://{secret}?x",
    "a file without slashes": "file:{secret}",
    "a bucket with a fragment": "s3://bucket/x#/../../{up}",
    "a bucket with parameters and dots": "s3://bucket/x;/../../{up}",
    "a share": "//host/share",
    "backslashes": "/srv\\..\\{up}",
    "a place of our own": "mlflow-artifacts:/0",
    "a host of its own": "mlflow-artifacts://host/0",
    "a model": "models:/m/1",
    "a run": "runs:/x/y",
    "a script": "javascript:alert(1)",
}


class Attack:
    """A service with one run and one logged model that have a file, and what is to be stolen."""

    def __init__(self, registry: Registry, directory: Path, store: WebServer) -> None:
        self.registry = registry
        self.directory = directory
        self.store = store
        self.secret = directory / "secret.txt"
        self.secret.write_bytes(SECRET)
        (registry.settings.data_dir / "secret.txt").write_bytes(SECRET)
        tracking = registry.services.tracking
        self.run = Owner("run", tracking.runs.create(0).id, 0)
        self.model = Owner("model", tracking.models.create(0, name="m").id, 0)
        kept = registry.services.keeper.put([b"one"])
        for owner in (self.run, self.model):
            tracking.files.put(owner, LoggedFile(RelPath("d/one.txt"), *kept))
        self.roots = [f"0/{self.run.id}/artifacts", f"0/models/{self.model.id}/artifacts"]
        token = registry.token(scopes=["tracking:read", "tracking:write"])
        self.headers = {"Authorization": f"Bearer {token}"}
        self.before = self.state()

    def filled(self, payload: str) -> str:
        return payload.format(secret=self.secret, up="../../../../secret.txt", url=self.store.url)

    def ask(self, method: str, url: str, **more: object):
        return self.registry.client.open(
            url, method=method, headers=self.headers, buffered=True, **more
        )

    def state(self) -> tuple[object, ...]:
        """All that could have been changed or asked for."""
        files = self.registry.services.tracking.files
        listed = [files.list(owner, RelPath("d")).found for owner in (self.run, self.model)]
        there = sorted(
            (str(it), it.read_bytes())
            for it in self.directory.rglob("*")
            if it.is_file() and "registry.db" not in it.name
        )
        return (listed, there, self.store.requests[:])


@pytest.fixture
def attack(registry: Registry, tmp_path: Path) -> Iterator[Attack]:
    with WebServer({"/secret": SECRET}) as store:
        yield Attack(registry, tmp_path, store)


def by_path(method: str, place: str, **more: object) -> Callable[[Attack, str, str], object]:
    return lambda attack, root, path: attack.ask(method, f"{place}/{root}/{path}", **more)


def by_query(url: str, field: str, below: bool = False) -> Callable[[Attack, str, str], object]:
    """The same payload, decoded once less: a query is no path."""

    def ask(attack: Attack, root: str, path: str):
        value = quote(f"{root}/" if below else "") + path
        address = url.format(run=attack.run.id, model=attack.model.id)
        return attack.ask("GET", f"{address}{'&' if '?' in address else '?'}{field}={value}")

    return ask


PART = {"path": "x", "num_parts": 1, "upload_id": "u", "parts": []}
ROUTES = {
    "read": by_path("GET", f"{FILES}/artifacts"),
    "write": by_path("PUT", f"{FILES}/artifacts", data=b"overwritten"),
    "delete": by_path("DELETE", f"{FILES}/artifacts"),
    "presigned": by_path("GET", f"{FILES}/presigned"),
    # CVE-2026-2651: the routes of parts, which were forgotten
    "create parts": by_path("POST", f"{FILES}/mpu/create", json=PART),
    "complete parts": by_path("POST", f"{FILES}/mpu/complete", json=PART),
    "abort parts": by_path("POST", f"{FILES}/mpu/abort", json=PART),
    "list": by_query(f"{FILES}/artifacts", "path", below=True),
    "list of a run": by_query(API + "/artifacts/list?run_id={run}", "path"),
    "list of a model": by_query(
        API + "/logged-models/{model}/artifacts/directories", "artifact_directory_path"
    ),
    "read of a run": by_query("/get-artifact?run_id={run}", "path"),
    "read of a model": by_query(
        API + "/logged-models/{model}/artifacts/files", "artifact_file_path"
    ),
}


@pytest.mark.parametrize("route", ROUTES)
@pytest.mark.parametrize("name", PATHS)
def test_a_path_leads_to_nothing_that_was_not_logged(attack: Attack, name: str, route: str) -> None:
    for root in attack.roots:
        answer = ROUTES[route](attack, root, attack.filled(PATHS[name]))

        assert 400 <= answer.status_code < 500, answer.text
        assert answer.json["error_code"] in (
            "INVALID_PARAMETER_VALUE",
            "RESOURCE_DOES_NOT_EXIST",
            "ENDPOINT_NOT_FOUND",
        )
        assert SECRET not in answer.data
    assert attack.state() == attack.before


@pytest.mark.parametrize("route", [it for it in ROUTES if " of a " not in it])
def test_only_roots_that_were_made_here_are_looked_at(attack: Attack, route: str) -> None:
    run, model = attack.run.id, attack.model.id
    roots = (
        *(f"1/{run}/artifacts", f"0/{model}/artifacts", f"0/models/{run}/artifacts"),
        *(f"00/../0/{run}/artifacts", f"0/{run}", f"0/{run}/other", f"{run}/artifacts", "0", "."),
        *(f"0/{run.upper()}x/artifacts", f"0/{run}/artifacts%20", "traces/tr-1/artifacts"),
        *(f"0/{run}%2fartifacts", f"0/%2e%2e/0/{run}/artifacts", "mlflow-artifacts:/0"),
    )
    for root in roots:
        answer = ROUTES[route](attack, root, "d/one.txt")
        if root.endswith("%2fartifacts"):
            continue  # decoded once, this is the very path
        assert 400 <= answer.status_code < 500, (root, answer.text)
    assert route in ("write", "delete") or attack.state() == attack.before


@pytest.mark.parametrize("name", LOCATIONS)
def test_a_location_is_none_of_ours_and_none_that_could_be_misread(
    attack: Attack, name: str
) -> None:
    location = attack.filled(LOCATIONS[name])
    answer = attack.ask(
        "POST", f"{API}/experiments/create", json={"name": "x", "artifact_location": location}
    )

    assert (answer.status_code, answer.json["error_code"]) == (400, "INVALID_PARAMETER_VALUE")


def test_a_location_of_the_clients_own_is_never_followed(attack: Attack) -> None:
    """CVE-2023-1177, 2023-6974, 2024-37052 to 37061: nothing there is read, listed or loaded."""
    for number, location in enumerate(
        (str(attack.directory), f"file://{attack.directory}", attack.store.url), 1
    ):
        created = attack.ask(
            "POST",
            f"{API}/experiments/create",
            json={"name": f"x{number}", "artifact_location": location},
        )
        experiment = created.json["experiment_id"]
        run = attack.ask("POST", f"{API}/runs/create", json={"experiment_id": experiment})
        run_id = run.json["run"]["info"]["run_id"]
        root = f"{experiment}/{run_id}/artifacts"
        listed = attack.ask("GET", f"{API}/artifacts/list?run_id={run_id}").json
        assert set(listed) == {"root_uri"}
        for url in (
            f"{FILES}/artifacts/{root}/secret.txt",
            f"{FILES}/artifacts?path={root}",
            f"{FILES}/presigned/{root}/secret.txt",
            f"/get-artifact?run_id={run_id}&path=secret.txt",
        ):
            assert attack.ask("GET", url).status_code == 404
        written = attack.ask("PUT", f"{FILES}/artifacts/{root}/x", data=b"x")
        assert written.status_code == 404
    assert attack.state()[1:] == attack.before[1:]


@pytest.mark.parametrize("field", ["source", "run_link", "uri"])
def test_a_source_is_not_taken(attack: Attack, field: str) -> None:
    """CVE-2023-2356, 2023-6909, 2024-1558, 2024-3573: a version made of a path, and then read."""
    for path in ("registered-models/create", "model-versions/create", "model-versions/get"):
        answer = attack.ask(
            "POST", f"{API}/{path}", json={"name": "m", field: f"file://{attack.secret}"}
        )
        assert answer.status_code == 501
    for path in ("/model-versions/get-artifact?name=m&version=1&path=../../secret.txt",):
        assert attack.ask("GET", path).status_code == 404
    assert attack.state() == attack.before


@pytest.mark.parametrize("route", ROUTES)
def test_no_route_answers_without_a_token_or_for_a_token_of_something_else(
    attack: Attack, route: str
) -> None:
    """CVE-2023-6014, 2024-4263, 2025-11200, 2026-2635, 2026-2651; and CVE-2025-1474: nobody has a
    password that could be a weak one.
    """
    headers, reading = attack.headers, ("list", "presigned", "read")
    for token, status in (
        (None, 401),
        (attack.registry.token(scopes=["models:read"]), 403),
        (attack.registry.token(scopes=["tracking:write"]), 403 if route.startswith(reading) else 0),
        (attack.registry.token(scopes=["tracking:read"]), 0 if route.startswith(reading) else 403),
    ):
        attack.headers = {"Authorization": f"Bearer {token}"} if token else {}
        answer = ROUTES[route](attack, attack.roots[0], "d/one.txt")
        if status:
            assert answer.status_code == status
            assert b"one" not in answer.data.replace(b"one.txt", b"").replace(b"none", b"")
    attack.headers = headers
    if route.startswith(reading):
        assert attack.state() == attack.before


@pytest.mark.parametrize("prefix", ["/api/2.0/mlflow", "/api/2.0/preview/mlflow"])
@pytest.mark.parametrize(
    "kind", ["text/plain", "application/x-www-form-urlencoded", "multipart/form-data", None]
)
def test_a_page_elsewhere_changes_nothing_for_whoever_looks_at_it(
    attack: Attack, prefix: str, kind: str | None
) -> None:
    """CVE-2025-1473: a form whose text is JSON, sent with what the browser remembers."""
    attack.headers["Origin"] = "https://evil.example"
    for path, message in (
        ("runs/delete", {"run_id": attack.run.id}),
        ("experiments/create", {"name": "theirs"}),
        ("runs/set-tag", {"run_id": attack.run.id, "key": "a", "value": "b"}),
    ):
        body = json.dumps(message)
        answer = attack.ask("POST", f"{prefix}/{path}", data=body, content_type=kind)
        assert (answer.status_code, answer.json["error_code"]) == (400, "INVALID_PARAMETER_VALUE")
        assert "Access-Control-Allow-Origin" not in answer.headers

    run = attack.registry.services.tracking.runs.get(attack.run.id)
    assert (run.deleted, dict(run.tags)) == (False, {})


def test_a_name_that_leads_here_opens_nothing_that_needs_a_token(attack: Attack) -> None:
    """CVE-2025-14279: a page whose own name was made to lead to this service."""
    attack.headers = {"Host": "evil.example", "Origin": "http://evil.example"}
    for path in (
        "/experiments/list",
        "/runs/search?experiment_ids=0",
        f"/runs/get?run_id={attack.run.id}",
    ):
        assert attack.ask("GET", API + path).status_code == 401


def test_there_is_no_language_of_queries_that_could_ask_for_too_much(attack: Attack) -> None:
    """CVE-2025-0453: GraphQL in which one query asks for the same thing a thousand times."""
    for path in ("/graphql", "/mlflow/graphql", f"{API}/graphql"):
        assert attack.ask("POST", path, json={"query": "{a}"}).status_code == 404


def test_what_was_logged_is_never_a_page(attack: Attack) -> None:
    """CVE-2023-6568, 2024-27132, 2024-27133: a file that runs in the browser of who looks at it."""
    page = b"<script>alert(1)</script>"
    attack.ask("PUT", f"{FILES}/artifacts/{attack.roots[0]}/page.html", data=page)
    for url in (
        f"{FILES}/artifacts/{attack.roots[0]}/page.html",
        f"/get-artifact?run_id={attack.run.id}&path=page.html",
        f"/mlflow/get-artifact?run_uuid={attack.run.id}&path=page.html",
    ):
        answer = attack.ask("GET", url)

        assert answer.data == page
        assert answer.headers["Content-Type"] == "application/octet-stream"
        assert answer.headers["Content-Disposition"].startswith("attachment")
        assert answer.headers["X-Content-Type-Options"] == "nosniff"


@pytest.mark.parametrize("text", ["{{7*7}}", "${7*7}", "<script>alert(1)</script>"])
def test_what_a_client_says_is_told_back_as_it_is_and_as_no_page(attack: Attack, text: str) -> None:
    """CVE-2023-6709: taken for a template. CVE-2023-6568: quoted in a refusal that is a page."""
    url = f"{API}/experiments/create"
    made = attack.ask("POST", url, json={"name": text})
    found = attack.ask(
        "GET", f"{API}/experiments/get-by-name", query_string={"experiment_name": text}
    )
    assert found.json["experiment"]["name"] == text
    answers = [
        attack.ask("POST", url, json={"name": text}),
        attack.ask("POST", url, data="{}", content_type=text),
        attack.ask("GET", f"{API}/runs/get", query_string={"run_id": text}),
        attack.ask("GET", f"{API}/{text}"),
        attack.ask("GET", f"{FILES}/artifacts/{quote(text)}"),
    ]

    assert all(answer.status_code >= 400 for answer in answers)
    for answer in (made, found, *answers):
        assert "49" not in answer.json.get("message", "").replace(text, "")
        assert answer.mimetype == "application/json"
        assert answer.headers["X-Content-Type-Options"] == "nosniff"


def test_names_that_look_alike_are_not_one(attack: Attack) -> None:
    """CVE-2024-3099: a name and the same name encoded."""
    for name in ("a%20b", "a%2520b", "A%20b"):
        attack.ask("PUT", f"{FILES}/artifacts/{attack.roots[0]}/n/{name}", data=name.encode())

    for name in ("a%20b", "a%2520b", "A%20b"):
        answer = attack.ask("GET", f"{FILES}/artifacts/{attack.roots[0]}/n/{name}")
        assert answer.data == name.encode()
