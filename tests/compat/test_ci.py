"""What CI jobs do: action.yml, ci/gitlab.yml and docs/ci.md, run as the runners run them."""

import json
import os
import re
import stat
import subprocess
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import pytest
import urllib3
import yaml
from gitrepo import GitRepository
from servers import registry
from servers.issuer import ACTIONS, Issuer
from servers.process import executable
from service import Store, artifacts, digest, output, remote

from registry.settings import Settings
from registry.web.exchange import GRANT_TYPE, ROUTE

pytestmark = pytest.mark.servers

ROOT = Path(__file__).parent.parent.parent
SCRIPT = ROOT / "ci/download.sh"
ACTION = yaml.safe_load((ROOT / "action.yml").read_text())
GITLAB = yaml.safe_load((ROOT / "ci/gitlab.yml").read_text())[".registry-model"]
PAGE = (ROOT / "docs/ci.md").read_text()
SNIPPETS = [yaml.safe_load(text) for text in re.findall(r"^```yaml\n(.*?)^```", PAGE, re.M | re.S)]
WORKFLOW, PIPELINE, STEPS, POD, RULES = SNIPPETS

MODEL = {"models/net/weights.bin": "weights", "models/net/deep/vocab of it.txt": "how\nwhy\n"}
NAME, VERSION, PATH = "classifier", "v1.2.3", "models/net"
POD_CLAIMS = {"kubernetes.io": {"namespace": "inference", "serviceaccount": {"name": "loader"}}}


@dataclass(frozen=True)
class World:
    """A service over one model, and two issuers: of jobs with an ID token for each time, and of
    pods that have one for long.
    """

    service: registry.Service
    jobs: Issuer
    pods: Issuer
    store: Store
    token: str
    revision: str


@pytest.fixture(scope="module")
def world(tmp_path_factory) -> Iterator[World]:
    directory = tmp_path_factory.mktemp("ci")
    store = Store(directory / "store")
    listed = [
        {"md5": store.put(text), "relpath": path.removeprefix(f"{PATH}/")}
        for path, text in MODEL.items()
    ]
    origin = GitRepository(directory / "origin.git")
    origin.commit(
        {
            ".dvc/config": remote(store.url),
            "dvc.yaml": artifacts(classifier=PATH, broken="broken.pkl"),
            "models/net.dvc": output("net", store.put(json.dumps(listed), ".dir")),
            "broken.pkl.dvc": output("broken.pkl", digest("broken")),
        }
    )
    for tag in (f"{NAME}@{VERSION}", f"{NAME}#prod#1", "broken@v1.0.0"):
        origin.tag(tag)
    with Issuer() as jobs, Issuer() as pods:
        jobs.job = {"repository": "team/app", "ref": "refs/heads/main"}
        rules = [{"claims": {"repository": "team/app"}, "repositories": ["team/*"]}]
        spaces = [
            {"claims": {"kubernetes.io/namespace": "inference"}, "repositories": ["team/models"]}
        ]
        issuers = [
            {"url": jobs.url, "rules": rules},
            {"url": pods.url, "rules": spaces, "single_use": False},
        ]
        with registry.start(
            directory,
            [{"name": "team/models", "url": str(origin.path)}],
            [{"url": store.url, "repositories": ["*"]}],
            issuers=issuers,
        ) as service:
            yield World(service, jobs, pods, store, service.token(), origin.head())


def run(
    command: list[str], directory: Path, environ: Mapping[str, str], given: str = ""
) -> subprocess.CompletedProcess[str]:
    """Runs a job's command with nothing in its environment that the job was not given."""
    directory.mkdir(exist_ok=True)
    path = {"PATH": os.environ["PATH"], "HOME": str(directory), "TMPDIR": str(directory.parent)}
    return subprocess.run(
        command, cwd=directory, env={**path, **environ}, input=given, capture_output=True,
        text=True, check=False, timeout=120,
    )  # fmt: skip


def arrived(directory: Path) -> dict[str, str]:
    """Path -> content of the files below a directory."""
    return {
        str(file.relative_to(directory)): file.read_text()
        for file in directory.rglob("*")
        if file.is_file()
    }


# GitHub Actions


@dataclass(frozen=True)
class Step:
    """What became of a step: its exit code, what it printed, and what it handed on."""

    code: int
    log: str
    outputs: Mapping[str, str]


def expression(text: str, values: Mapping[str, str]) -> str:
    """A text of a workflow, with the values for its expressions."""
    return re.sub(r"\$\{\{ *([\w.-]+) *\}\}", lambda found: values[found[1]], text)


def use_action(workspace: Path, environ: Mapping[str, str], **inputs: str) -> Step:
    """Uses the action as GitHub's runner does, with these inputs."""
    assert {name for name, it in ACTION["inputs"].items() if it.get("required")} <= set(inputs)
    assert set(inputs) <= set(ACTION["inputs"])
    given = {
        f"inputs.{name}": inputs.get(name, it.get("default", ""))
        for name, it in ACTION["inputs"].items()
    }
    (step,) = ACTION["runs"]["steps"]
    said = workspace.parent / "github-output"
    said.touch()
    script = workspace.parent / "step.sh"
    script.write_text(expression(step["run"], {}))
    runner = {
        **{name: expression(text, given) for name, text in step["env"].items()},
        "GITHUB_ACTIONS": "true",
        "GITHUB_ACTION_PATH": str(ROOT),
        "GITHUB_OUTPUT": str(said),
        **environ,
    }
    shell = {"bash": ["bash", "--noprofile", "--norc", "-eo", "pipefail"]}[step["shell"]]
    done = run([*shell, str(script)], workspace, runner)
    pairs = dict(line.split("=", 1) for line in said.read_text().splitlines())
    handed = {f"steps.{step['id']}.outputs.{name}": text for name, text in pairs.items()}
    outputs = {
        name: expression(it["value"], handed) if handed else ""
        for name, it in ACTION["outputs"].items()
    }
    return Step(done.returncode, done.stdout + done.stderr, outputs)


def permitted(world: World) -> dict[str, str]:
    """What the runner gives a job with `id-token: write`."""
    return {
        "ACTIONS_ID_TOKEN_REQUEST_URL": world.jobs.url + ACTIONS,
        "ACTIONS_ID_TOKEN_REQUEST_TOKEN": world.jobs.runner_token,
    }


def model(world: World, **more: str) -> dict[str, str]:
    return {"url": world.service.url, "repository": "team/models", "name": NAME, **more}


def test_the_action_downloads_a_model_with_the_jobs_id_token(world, tmp_path) -> None:
    workspace = tmp_path / "work"

    step = use_action(workspace, permitted(world), **model(world, stage="prod", output="in/here"))

    assert step.code == 0, step.log
    said = [line for line in step.log.splitlines() if not line.startswith("::add-mask::")]
    assert len(said) == 1
    assert said[0].startswith(f"registry: {NAME} {VERSION} of revision {world.revision} is in")
    assert arrived(workspace / "in/here") == MODEL
    assert step.outputs == {
        "revision": world.revision,
        "version": VERSION,
        "path": f"in/here/{PATH}",
    }
    assert (workspace / step.outputs["path"]).is_dir()


def test_the_action_downloads_a_model_with_a_token(world, tmp_path) -> None:
    asked = len(world.jobs.given)

    step = use_action(
        tmp_path / "work", permitted(world), **model(world, version=VERSION, token=world.token)
    )

    assert step.code == 0, step.log
    assert arrived(tmp_path / "work") == MODEL
    assert step.outputs["path"] == f"./{PATH}"
    assert len(world.jobs.given) == asked


def test_no_secret_is_in_the_log_but_where_the_runner_is_told_to_hide_it(world, tmp_path) -> None:
    step = use_action(tmp_path / "work", permitted(world), **model(world))

    masks = [line for line in step.log.splitlines() if line.startswith("::add-mask::")]
    rest = step.log.replace("\n".join(masks), "")
    assert f"::add-mask::{world.jobs.given[-1]}" in masks
    assert [line for line in masks if line.startswith("::add-mask::reg_")]
    assert "reg_" not in rest
    assert "eyJ" not in rest
    assert world.jobs.runner_token not in step.log


def test_files_that_are_there_are_not_downloaded_again_and_changed_ones_are(
    world, tmp_path
) -> None:
    inputs = model(world, token=world.token)
    use_action(tmp_path / "work", {}, **inputs)
    away = world.store.directory.rename(tmp_path / "away")
    try:
        again = use_action(tmp_path / "work", {}, **inputs)
    finally:
        away.rename(world.store.directory)
    (tmp_path / "work" / PATH / "weights.bin").write_text("other")

    mended = use_action(tmp_path / "work", {}, **inputs)

    assert again.code == mended.code == 0
    assert "there already" in again.log
    assert "there already" not in mended.log
    assert arrived(tmp_path / "work") == MODEL


@pytest.mark.parametrize(
    ("inputs", "environ", "word"),
    [
        ({"name": "nothing"}, True, "nothing"),
        ({"version": "v9.9.9"}, True, "v9.9.9"),
        ({"version": VERSION, "stage": "prod"}, True, "HTTP 400"),
        ({"repository": "other/models"}, True, "HTTP 404"),
        ({"token": "reg_x.y"}, True, "HTTP 401"),
        ({"token": 'x"\nurl = "file:///etc/passwd'}, True, "REGISTRY_TOKEN"),
        ({"audience": "https://elsewhere.example"}, True, "audience"),
        ({"url": "registry.example"}, True, "REGISTRY_URL"),
        ({"url": "http://127.0.0.1:1"}, True, "curl failed"),
        ({}, False, "id-token: write"),
    ],
)
def test_a_step_that_fails_says_why_in_one_line(world, tmp_path, inputs, environ, word) -> None:
    given = permitted(world) if environ else {}

    step = use_action(tmp_path / "work", given, **{**model(world), **inputs})

    lines = [line for line in step.log.splitlines() if line.startswith("registry: ")]
    assert step.code != 0
    assert len(lines) == 1
    assert word in lines[0]
    assert arrived(tmp_path / "work") == {}
    assert step.outputs["revision"] == ""


@pytest.mark.parametrize("value", [
    "$(touch evil)", "`touch evil`", "; touch evil", "x\ntouch evil", "'\"; touch evil; '",
    "--help", "-o evil", "@/etc/passwd", "%0Atouch evil", "a&token=x",
])  # fmt: skip
@pytest.mark.parametrize("name", ["repository", "name", "version", "stage", "audience", "url"])
def test_an_input_is_data_and_never_code(world, tmp_path, name, value) -> None:
    step = use_action(tmp_path / "work", permitted(world), **{**model(world), name: value})

    assert step.code != 0
    assert "root:" not in step.log
    assert arrived(tmp_path / "work") == {}


@pytest.mark.parametrize("place", ["-x", "a b/$(touch evil)", "'q\"", "über"])
def test_a_directory_may_have_any_name(world, tmp_path, place) -> None:
    step = use_action(tmp_path / "work", {}, **model(world, token=world.token, output=place))

    assert step.code == 0, step.log
    assert arrived(tmp_path / "work" / place) == MODEL
    assert step.outputs["path"] == f"{place}/{PATH}"


def test_the_action_puts_no_input_into_a_script() -> None:
    for step in ACTION["runs"]["steps"]:
        assert "${{" not in step["run"]
        assert {text.strip() for text in step["env"].values()} == {
            f"${{{{ inputs.{name} }}}}" for name in ACTION["inputs"]
        }


def test_a_file_that_is_not_what_it_should_be_fails_the_step(world, tmp_path) -> None:
    file = next(
        file
        for file in world.store.directory.rglob("*")
        if file.is_file() and file.read_bytes() == b"weights"
    )
    file.write_bytes(b"WEIGHTS")
    try:
        step = use_action(tmp_path / "work", {}, **model(world, token=world.token))
    finally:
        file.write_bytes(b"weights")

    assert step.code != 0
    assert "models/net/weights.bin" in step.log.splitlines()[-1]
    assert step.outputs["path"] == ""


def test_a_file_that_is_missing_fails_the_step(world, tmp_path) -> None:
    step = use_action(tmp_path / "work", {}, **model(world, name="broken", token=world.token))

    assert step.code != 0
    assert "registry: " in step.log
    assert step.outputs["path"] == ""


def test_what_a_repository_says_is_no_command_to_the_runner(world, tmp_path) -> None:
    step = use_action(tmp_path / "work", {}, **model(world, name="::error::x", token=world.token))

    assert step.code != 0
    commands = [line for line in step.log.splitlines() if line.lstrip().startswith(("::", "##["))]
    assert [line for line in commands if not line.startswith("::add-mask::")] == []


def test_the_workflow_of_the_documentation_fits_the_action(world, tmp_path) -> None:
    (job,) = WORKFLOW["jobs"].values()
    step, use = job["steps"][1:]
    with_real_url = {**step["with"], "url": world.service.url}

    done = use_action(tmp_path / "work", permitted(world), **with_real_url)

    assert job["permissions"]["id-token"] == "write"
    assert done.code == 0, done.log
    handed = {f"steps.{step['id']}.outputs.{name}": text for name, text in done.outputs.items()}
    environ = {name: expression(text, handed) for name, text in use["env"].items()}
    assert environ == {"MODEL_PATH": f"models/{PATH}", "MODEL_REVISION": world.revision}


# GitLab


def run_gitlab(job: Mapping[str, object], workspace: Path, given: Mapping[str, str]):
    """Runs a job that extends the template, as GitLab's runner does: all lines are one script."""
    variables = {**GITLAB["variables"], **job["variables"], **given}
    expanded = {
        name: re.sub(r"\$(\w+)", lambda found: variables.get(found[1], ""), value)
        for name, value in variables.items()
    }
    lines = [*GITLAB["before_script"], *job["script"]]
    script = "set -eo pipefail\n" + "\n".join(lines) + "\n"
    return run(["bash"], workspace, expanded, script), expanded


def test_the_template_has_the_script_and_nothing_of_its_own() -> None:
    first, second = GITLAB["before_script"]

    opening, _, rest = first.partition("\n")
    assert opening == "sh -s <<'END_OF_DOWNLOAD'"
    assert rest == SCRIPT.read_text() + "END_OF_DOWNLOAD\n"
    assert "REGISTRY_DOTENV" in second


def test_a_job_of_gitlab_finds_the_model_before_its_own_script(world, tmp_path) -> None:
    job = PIPELINE["evaluate"]
    job = {
        **job,
        "variables": {**job["variables"], "REGISTRY_URL": world.service.url},
        "script": ['cat "$REGISTRY_MODEL_PATH/weights.bin"; echo "=$REGISTRY_MODEL_REVISION="'],
    }
    id_token = world.jobs.token(world.service.url, **world.jobs.job)

    done, variables = run_gitlab(job, tmp_path / "work", {"REGISTRY_ID_TOKEN": id_token})

    assert job["extends"] == ".registry-model"
    assert variables["REGISTRY_AUDIENCE"] == world.service.url
    assert GITLAB["id_tokens"] == {"REGISTRY_ID_TOKEN": {"aud": "$REGISTRY_AUDIENCE"}}
    assert done.returncode == 0, done.stderr
    assert done.stdout.endswith(f"weights={world.revision}=\n")
    assert id_token not in done.stdout + done.stderr
    dotenv = GITLAB["artifacts"]["reports"]["dotenv"]
    assert (tmp_path / "work" / dotenv).read_text().splitlines() == [
        f"REGISTRY_MODEL_REVISION={world.revision}",
        f"REGISTRY_MODEL_VERSION={VERSION}",
        f"REGISTRY_MODEL_PATH=models/{PATH}",
    ]


def test_a_job_of_gitlab_without_a_model_does_not_begin(world, tmp_path) -> None:
    job = {
        "variables": {
            "REGISTRY_URL": world.service.url,
            "REGISTRY_REPOSITORY": "team/models",
            "REGISTRY_NAME": NAME,
        },
        "script": ["touch begun"],
    }
    stranger = world.jobs.token(world.service.url, repository="evil/app")

    done, _ = run_gitlab(job, tmp_path / "work", {"REGISTRY_ID_TOKEN": stranger})

    assert done.returncode != 0
    assert "no rule" in done.stderr
    assert not (tmp_path / "work/begun").exists()


def test_a_variable_with_a_token_goes_before_the_id_token(world, tmp_path) -> None:
    job = {
        "variables": {
            "REGISTRY_URL": world.service.url,
            "REGISTRY_REPOSITORY": "team/models",
            "REGISTRY_NAME": NAME,
        },
        "script": [],
    }
    given = {"REGISTRY_ID_TOKEN": "spent", "REGISTRY_TOKEN": world.token}

    done, _ = run_gitlab(job, tmp_path / "work", given)

    assert done.returncode == 0, done.stderr


# Buildkite, Kubernetes, and anything else with a shell


def test_a_step_of_buildkite_downloads_a_model(world, tmp_path) -> None:
    (step,) = STEPS["steps"]
    programs = tmp_path / "bin"
    programs.mkdir()
    id_token = tmp_path / "id-token"
    id_token.write_text(world.jobs.token(world.service.url, **world.jobs.job))
    agent = programs / "buildkite-agent"
    # The one command of the agent that is used; another fails.
    words = f"oidc request-token --audience {world.service.url}"
    agent.write_text(f'#!/bin/sh\n[ "$*" = "{words}" ] && cat {id_token}\n')
    agent.chmod(agent.stat().st_mode | stat.S_IXUSR)
    workspace = tmp_path / "work"
    (workspace / "ci").mkdir(parents=True)
    (workspace / "ci/download.sh").write_text(SCRIPT.read_text())
    (workspace / "evaluate.py").write_text(
        "import sys; print(open(sys.argv[1] + '/weights.bin').read())"
    )
    environ = {
        **step["env"],
        "REGISTRY_URL": world.service.url,
        "BUILDKITE_AGENT_ACCESS_TOKEN": "an agent's",
        "PATH": f"{programs}:{Path(executable('python')).parent}:{os.environ['PATH']}",
    }

    # Buildkite replaces $$ by $ when the pipeline is uploaded.
    done = run(["bash", "-ec", step["command"].replace("$$", "$")], workspace, environ)

    assert done.returncode == 0, done.stderr
    assert done.stdout.endswith("weights\n")


def test_pods_of_kubernetes_share_the_token_of_their_account(world, tmp_path) -> None:
    (container,) = POD["spec"]["initContainers"]
    environ = {item["name"]: item["value"] for item in container["env"]}
    mounts = {item["mountPath"] for item in container["volumeMounts"]}
    assert {
        environ["REGISTRY_OUTPUT"],
        str(Path(environ["REGISTRY_ID_TOKEN_FILE"]).parent),
    } <= mounts
    assert container["command"] == ["sh", "/registry/download.sh"]
    token = tmp_path / "token"
    token.write_text(world.pods.token(world.service.url, **POD_CLAIMS))
    here = {"REGISTRY_URL": world.service.url, "REGISTRY_ID_TOKEN_FILE": str(token)}

    for pod in ("one", "two"):
        own = {**environ, **here, "REGISTRY_OUTPUT": str(tmp_path / pod)}
        done = run(["sh", str(SCRIPT)], tmp_path / "work", own)

        assert done.returncode == 0, done.stderr
        assert arrived(tmp_path / pod) == MODEL


def test_the_exchange_of_the_documentation_gives_a_token(world, tmp_path) -> None:
    ((command,),) = [re.findall(r"^```console\n(.*?)^```", PAGE, re.M | re.S)]
    workspace = tmp_path / "work"
    workspace.mkdir()
    id_token = world.jobs.token(world.service.url, **world.jobs.job)
    (workspace / "id-token").write_text(id_token)

    done = run(
        ["sh", "-c", command.replace("https://registry.example", world.service.url)], workspace, {}
    )

    answer = json.loads(done.stdout)
    assert answer["expires_in"] == 3600
    headers = {"Authorization": f"Bearer {answer['access_token']}"}
    query = f"repo=team/models&name={NAME}"
    asked = urllib3.request("GET", f"{world.service.url}/api/v1/resolve?{query}", headers=headers)
    assert asked.status == 200


def test_the_rules_of_the_documentation_are_valid() -> None:
    settings = Settings.parse({"secret_key": "k" * 32, **RULES}, {})

    assert len(settings.issuers) == 4


def test_of_many_worker_processes_one_gives_a_token(world) -> None:
    """The workers of one service are processes of their own, with a database in common."""
    form = {
        "grant_type": GRANT_TYPE,
        "subject_token_type": "urn:ietf:params:oauth:token-type:id_token",
        "subject_token": world.jobs.token(world.service.url, **world.jobs.job),
    }

    def attempt(_: int) -> int:
        # A connection each: it depends on the connection which worker answers.
        with urllib3.PoolManager(retries=False) as pool:
            answer = pool.request_encode_body(
                "POST", world.service.url + ROUTE, fields=form, encode_multipart=False
            )
            return answer.status

    with ThreadPoolExecutor(12) as threads:
        answers = sorted(threads.map(attempt, range(12)))

    assert answers == [200] + [401] * 11
