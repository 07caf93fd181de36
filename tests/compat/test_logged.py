"""What was logged over MLflow's API is DVC's as it lies there: no byte is copied to register it."""

from pathlib import Path

import pytest
import urllib3
from servers import registry
from servers.dvc import Clients

pytestmark = pytest.mark.servers

FILES = {"data/train/a.csv": b"1,2\n", "data/b.csv": b"3\n", "notes.txt": b"beside it"}


def test_dvc_pulls_a_directory_that_a_run_logged(tmp_path: Path) -> None:
    clients = Clients(tmp_path)
    directory = tmp_path / "service"
    directory.mkdir()
    with (
        registry.start(directory, [], []) as service,
        urllib3.PoolManager(retries=False) as pool,
    ):
        token = service.token("--scope", "tracking:read", "--scope", "tracking:write")
        headers = {"Authorization": f"Bearer {token}"}

        def ask(method: str, path: str, **sent: object) -> urllib3.BaseHTTPResponse:
            answer = pool.request(method, f"{service.url}{path}", headers=headers, **sent)
            assert answer.status == 200, answer.data
            return answer

        api = "/api/2.0/mlflow/runs"
        run = ask("POST", f"{api}/create", json={"experiment_id": "0"}).json()["run"]
        run_id = run["info"]["run_id"]
        for path, data in FILES.items():
            place = f"/api/2.0/mlflow-artifacts/artifacts/0/{run_id}/artifacts/{path}"
            ask("PUT", place, body=data)
        ask("POST", f"{api}/update", json={"run_id": run_id, "status": "FINISHED"})
    store = directory / "data/artifacts"
    (manifest,) = store.glob("files/md5/*/*.dir")
    project = tmp_path / "project"
    project.mkdir()
    clients.run("git", "init", "--quiet", cwd=project)
    clients.run("dvc", "init", "--quiet", cwd=project)
    clients.run("dvc", "remote", "add", "--default", "store", str(store), cwd=project)
    (project / "data.dvc").write_text(
        f"outs:\n- md5: {manifest.parent.name}{manifest.name}\n  hash: md5\n  path: data\n"
    )
    clients.run("dvc", "pull", "data.dvc", cwd=project)

    pulled = {
        str(it.relative_to(project)): it.read_bytes()
        for it in (project / "data").rglob("*")
        if it.is_file()
    }
    assert pulled == {path: data for path, data in FILES.items() if path.startswith("data/")}
