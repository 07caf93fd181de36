"""`registry.artifacts_show` beside `dvc.api.artifacts_show`, and its answers in DVC's own API.

One process of DVC answers all questions: it takes two seconds to import. Where the two differ is
a table of its own: each row is a deliberate difference.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import pytest
from gitrepo import GitRepository
from servers.dvc import Clients
from service import Store, artifacts, output, remote

import registry
from registry.errors import RegistryError

pytestmark = pytest.mark.servers

ASK = """\
import json, sys
import dvc.api
for line in sys.stdin:
    try:
        print(json.dumps(dvc.api.artifacts_show(**json.loads(line))))
    except BaseException as error:
        print(json.dumps(type(error).__name__))
"""


@dataclass(frozen=True)
class Question:
    """The arguments, and where the repository is that they are asked of."""

    name: str
    version: str | None = None
    stage: str | None = None

    def arguments(self, repo: Path) -> dict[str, str | None]:
        return {"name": self.name, "version": self.version, "stage": self.stage, "repo": str(repo)}


def stages_that_moved(origin: GitRepository, commits: list[str]) -> None:
    origin.tag("m@v1.0.0", commits[0])
    origin.tag("m@v2.0.0", commits[1])
    origin.tag("m#prod#1", commits[1])
    origin.tag("m#prod#2", commits[0])
    origin.tag("m#dev#3", commits[1])


def versions_by_semver(origin: GitRepository, commits: list[str]) -> None:
    origin.tag("m@v2.0.0", commits[0])
    origin.tag("m@v1.9.0", commits[1])
    origin.tag("m@v1.10.0", commits[2])
    origin.tag("n@v1.0.0", commits[1])
    origin.tag("n@v1.0.0-rc.10", commits[2])
    origin.tag("n@v1.1.0-rc.1", commits[0])


def what_does_not_count(origin: GitRepository, commits: list[str]) -> None:
    origin.tag("m@v1.0.0", commits[0])
    origin.tag("m@v2.0.0", commits[1], lightweight=True)
    origin.tag("m#prod", commits[1], lightweight=True)
    origin.tag("m@v3.0", commits[2])
    origin.tag("m@latest", commits[2])
    origin.tag("other", commits[2])


def other_directories(origin: GitRepository, commits: list[str]) -> None:
    origin.tag("path/to=one@v1.0.0", commits[0])
    origin.tag("path/to=up@v1.0.0", commits[1])
    origin.tag("a/b@v1.0.0", commits[1])


def registered_again(origin: GitRepository, commits: list[str]) -> None:
    origin.tag("m@v1.0.0", commits[0])
    origin.tag("m@v1.0.0!", commits[0])
    origin.tag("m@v1.0.0#3", commits[1])
    origin.tag("m#1#4", commits[1])
    origin.tag("m#eu/prod#5", commits[2])


def one_commit_for_all(origin: GitRepository, commits: list[str]) -> None:
    origin.tag("m@v1.0.0", commits[0])
    origin.tag("m@v1.0.1", commits[0])
    origin.tag("m#prod#3", commits[0])
    origin.tag("m@v2.0.0+build", commits[2])


def annotated_later(origin: GitRepository, commits: list[str]) -> None:
    early = origin.commit({"dvc.yaml": "artifacts: {}\n"}, branch="early", orphan=True)
    origin.tag("m@v1.0.0", early)
    origin.tag("m@v2.0.0", commits[1])
    origin.tag("gone@v1.0.0", commits[0])


ALIKE = (
    stages_that_moved,
    versions_by_semver,
    what_does_not_count,
    other_directories,
    registered_again,
    one_commit_for_all,
    annotated_later,
)
NAMES = ("m", "n", "path/to:one", "path/to/dvc.yaml:one", "path/to:up", "a/b", "a:b", "gone", "x y")
VERSIONS = (None, "v1.0.0", "v1.0.1", "v2.0.0", "v1.10.0", "v1.1.0-rc.1", "v2.0.0+build", "1.0.0")
STAGES = ("prod", "dev", "1", "eu/prod", "Prod")
QUESTIONS = [
    *(Question(name, version) for name in NAMES for version in VERSIONS),
    *(Question(name, stage=stage) for name in NAMES for stage in STAGES),
]


def repository(path: Path) -> tuple[GitRepository, list[str]]:
    """Three commits, in each of which `m` lies elsewhere."""
    origin = GitRepository(path)
    commits = [
        origin.commit(
            {
                ".dvc/config": "",
                "dvc.yaml": artifacts(m=f"models/{number}.pkl", n="./n/", **{"a/b": "ab.pkl"}),
                "path/to/dvc.yaml": artifacts(one=f"one-{number}.pkl", up="../../up.pkl"),
            }
        )
        for number in range(3)
    ]
    return origin, list(commits)


@pytest.fixture(scope="module")
def reader(tmp_path_factory) -> Clients:
    return Clients(tmp_path_factory.mktemp("reader"))


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch) -> None:
    monkeypatch.setenv("REGISTRY_CACHE_DIR", str(tmp_path / "cache"))


def clone(reader: Clients, origin: GitRepository, path: Path) -> Path:
    reader.run("git", "clone", "--quiet", str(origin.path), str(path), cwd=path.parent)
    return path


def dvc_says(reader: Clients, questions: list[dict[str, object]], cwd: Path) -> list[object]:
    """A dictionary for each answer, and the name of the exception for each failure."""
    script, given = cwd / "ask.py", cwd / "questions"
    script.write_text(ASK)
    given.write_text("".join(f"{json.dumps(one)}\n" for one in questions))
    command = f"python {script} < {given}"
    return [json.loads(line) for line in reader.run("sh", "-c", command, cwd=cwd).splitlines()]


def we_say(question: Mapping[str, object]) -> object:
    try:
        return registry.artifacts_show(**question)
    except RegistryError as error:
        return type(error).__name__


@pytest.mark.parametrize("make", ALIKE, ids=lambda make: make.__name__)
def test_the_answers_are_those_of_dvc(reader, tmp_path, make) -> None:
    """A failure of DVC's must be one of ours, whatever it is called: it has one for all."""
    origin, commits = repository(tmp_path / "origin.git")
    make(origin, commits)
    project = clone(reader, origin, tmp_path / "project")
    questions = [one.arguments(project) for one in QUESTIONS]

    theirs = dvc_says(reader, questions, tmp_path)

    answered = 0
    for question, their in zip(questions, theirs, strict=True):
        our = we_say(question)
        assert isinstance(our, dict) == isinstance(their, dict), (question, their, our)
        if isinstance(their, dict):
            assert our == their, question
            answered += 1
    assert answered >= 2


# Tags in the order they are made, `name commit`; the question; what DVC says; what we say.
C1, C2, C3 = 0, 1, 2
DIFFERENT = {
    "an unassigned stage holds nothing": (
        [("m@v1.0.0", C1), ("m#prod#1", C1), ("m#prod!#2", C1)],
        Question("m", stage="prod"), C1, "StageNotFound",
    ),
    "what was assigned before is in the stage again": (
        [("m@v1.0.0", C1), ("m@v2.0.0", C2), ("m#prod#1", C1), ("m#prod#2", C2), ("m#prod!#3", C2)],
        Question("m", stage="prod"), C2, C1,
    ),
    "a deregistered version is none": (
        [("m@v1.0.0", C1), ("m@v2.0.0", C2), ("m@v2.0.0!", C2)],
        Question("m", "v2.0.0"), C2, "VersionNotFound",
    ),
    "a deregistered version is not the latest": (
        [("m@v1.0.0", C1), ("m@v2.0.0", C2), ("m@v2.0.0!", C2)],
        Question("m"), C2, C1,
    ),
    "what was deregistered is in no stage": (
        [("m@v1.0.0", C1), ("m#prod#1", C1), ("m@v1.0.0!", C1)],
        Question("m", stage="prod"), C1, "StageNotFound",
    ),
    "a deprecated artifact has no latest version": (
        [("m@v1.0.0", C1), ("m@deprecated", C1)],
        Question("m"), C1, "VersionNotFound",
    ),
    "no version at all is an error of ours": (
        [("m#prod#1", C1)],
        Question("m"), "IndexError", "VersionNotFound",
    ),
    "counters are numbers": (
        [("m@v1.0.0", C1), ("m@v2.0.0", C2), ("m#prod#9", C1), ("m#prod#10", C2)],
        Question("m", stage="prod"), C1, C2,
    ),
    "a tag without an action is ignored": (
        [("m@v1.0.0", C1), ("m@created", C2)],
        Question("m"), "ValidationError", C1,
    ),
    "the root may be spelled out": (
        [("m@v1.0.0", C1)],
        Question("dvc.yaml:m"), "ArtifactNotFoundError", C1,
    ),
    "latest is a version": (
        [("m@v1.0.0", C1)],
        Question("m", "latest"), "ArtifactNotFoundError", C1,
    ),
}  # fmt: skip


def test_each_deliberate_difference_is_one(reader, tmp_path) -> None:
    """Should DVC mend one of them, this says so."""
    questions, expected, ours = [], [], []
    for number, (tags, question, theirs, our) in enumerate(DIFFERENT.values()):
        origin, commits = repository(tmp_path / f"{number}.git")
        for tag, at in tags:
            same_second = 1_800_000_000 if "#9" in tag or "#10" in tag else None
            origin.tag(tag, commits[at], time=same_second)
        project = clone(reader, origin, tmp_path / f"project-{number}")
        questions.append(question.arguments(project))
        for place, said in ((expected, theirs), (ours, our)):
            answer = said if isinstance(said, str) else commits[said]
            place.append(answer)

    said = dvc_says(reader, questions, tmp_path)

    named = [one["rev"] if isinstance(one, dict) else one for one in said]
    assert dict(zip(DIFFERENT, named, strict=True)) == dict(zip(DIFFERENT, expected, strict=True))
    told = [we_say(question) for question in questions]
    named = [one["rev"] if isinstance(one, dict) else one for one in told]
    assert dict(zip(DIFFERENT, named, strict=True)) == dict(zip(DIFFERENT, ours, strict=True))


def test_a_tag_of_a_tag_means_the_commit(reader, tmp_path) -> None:
    origin, commits = repository(tmp_path / "origin.git")
    inner = origin.tag("inner", commits[0])
    origin.tag("m@v1.0.0", inner)
    question = Question("m").arguments(clone(reader, origin, tmp_path / "project"))

    (theirs,) = dvc_says(reader, [question], tmp_path)

    assert theirs["rev"] == inner
    assert we_say(question)["rev"] == commits[0]


def test_one_broken_file_elsewhere_is_no_harm(reader, tmp_path) -> None:
    origin, _ = repository(tmp_path / "origin.git")
    commit = origin.commit({"elsewhere/dvc.yaml": "artifacts: [\n"})
    origin.tag("m@v1.0.0")
    project = clone(reader, origin, tmp_path / "project")
    question = Question("m").arguments(project)

    (theirs,) = dvc_says(reader, [question], tmp_path)

    assert not isinstance(theirs, dict)
    assert we_say(question) == {"path": "models/2.pkl", "rev": commit}


# ---------------------------------------------------------------------- what DVC does with them

READ = """\
import json, pickle, sys
import dvc.api

artifact = json.loads(sys.argv[1])
data = dvc.api.read(artifact["path"], repo=sys.argv[2], rev=artifact["rev"], mode="rb")
model = pickle.loads(data)
with dvc.api.open(artifact["path"], repo=sys.argv[2], rev=artifact["rev"], mode="rb") as file:
    assert file.read() == data
print(json.dumps(model))
"""
DOWNLOAD = """\
import json, os, sys
import dvc.api

artifact = json.loads(sys.argv[1])
fs = dvc.api.DVCFileSystem(sys.argv[2], rev=artifact["rev"])
fs.get_file(artifact["path"], os.path.basename(artifact["path"]))
"""


@pytest.fixture
def published(tmp_path) -> GitRepository:
    """A pickled model in the store, twice, as DVC keeps it; the first is in `prod`."""
    import pickle

    store = Store(tmp_path / "store")
    origin = GitRepository(tmp_path / "published.git")
    for number in (1, 2):
        md5 = store.put(pickle.dumps({"model": number}))
        origin.commit(
            {
                ".dvc/config": remote(str(store.directory)),
                "sub/dvc.yaml": artifacts(m="models/m.pkl"),
                "sub/models/m.pkl.dvc": output("m.pkl", md5),
            }
        )
        origin.tag(f"sub=m@v{number}.0.0")
        origin.tag(f"sub=m#prod#{number}", origin.git("rev-list", "--max-parents=0", "main"))
    return origin


def test_the_example_that_reads_an_artifact_works_with_dvc(reader, published, tmp_path) -> None:
    project = clone(reader, published, tmp_path / "project")
    artifact = registry.artifacts_show("sub:m", stage="prod", repo=str(project))
    script = tmp_path / "read.py"
    script.write_text(READ)

    said = reader.run("python", str(script), json.dumps(artifact), str(project), cwd=tmp_path)

    assert json.loads(said) == {"model": 1}


def test_the_example_that_downloads_an_artifact_works_with_dvc(reader, published, tmp_path) -> None:
    import pickle

    url = f"file://{published.path}"
    artifact = registry.artifacts_show("sub/dvc.yaml:m", version="v2.0.0", repo=url)
    script, out = tmp_path / "download.py", tmp_path / "out"
    script.write_text(DOWNLOAD)
    out.mkdir()

    reader.run("python", str(script), json.dumps(artifact), str(published.path), cwd=out)

    assert pickle.loads((out / "m.pkl").read_bytes()) == {"model": 2}
