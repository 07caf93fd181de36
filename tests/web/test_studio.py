"""The dialect of DVC Studio: which version is meant, where its objects lie, and what is refused."""

import json
import socket
import subprocess
import time

import pytest
from gitrepo import START, GitRepository
from service import (
    NOW,
    S3_KEYS,
    Registry,
    Store,
    WebServer,
    artifacts,
    digest,
    key,
    legacy_key,
    output,
    place,
    remote,
    unmarked,
)

from registry.errors import SettingsError
from registry.web.studio import FILES_A_PART, LARGEST_WHOLE

DVC = {".dvc/config": remote("s3://bucket/dvc")}
MODEL = {
    **DVC,
    "dvc.yaml": artifacts(m="model.pkl"),
    "model.pkl.dvc": output("model.pkl", digest("1")),
}

# ------------------------------------------------------------------ which version is meant

# artifact -> its tags, one second apart, each with the number of the commit that it is on
HISTORIES = {
    "single": ["@v1.0.0 1"],
    "staged": ["@v1.0.0 1", "@v1.1.0 2", "#dev#1 1", "#prod#2 2"],
    "older-is-newer": ["@v2.0.0 1", "@v1.9.0 2", "@v1.10.0 3"],
    "candidates": ["@v1.0.0 1", "@v1.0.0-rc.10 2", "@v1.1.0-rc.1 3"],
    "rolled-back": ["@v1.0.0 1", "@v2.0.0 2", "#prod#1 2", "#prod#2 1"],
    "deregistered": ["@v1.0.0 1", "@v2.0.0 2", "@v2.0.0! 2"],
    "moved": ["@v1.0.0 1", "@v1.0.0!#2 1", "@v1.0.0#3 2"],
    "unassigned": ["@v1.0.0 1", "#prod#1 1", "#prod!#2 1"],
    "deprecated": ["@v1.0.0 1", "#prod#1 1", "@deprecated 1"],
    "revived": ["@v1.0.0 1", "@deprecated 1", "@v2.0.0 2"],
    "built": ["@v1.0.0+b 1", "@v1.0.0 3", "@v1.0.0+a 2"],
    "odd-stages": ["@v1.0.0 1", "@v2.0.0 2", "#2 1", "#eu/prod#3 2"],
    "unregistered-commit": ["@v1.0.0 1", "#canary#1 3"],
    "weird": ["@v1.0.0 1", "@created 1", "@v1 2", "@v01.0.0 2", "@v3.0.0?? 2", "#!#1 2"],
}

ANSWERS = [
    # artifact, request -> commit, version
    ("single", {}, 1, "v1.0.0"),
    ("single", {"version": "v1.0.0"}, 1, "v1.0.0"),
    ("single", {"version": "latest"}, 1, "v1.0.0"),
    ("single", {"version": "", "stage": ""}, 1, "v1.0.0"),
    ("staged", {"stage": "dev"}, 1, "v1.0.0"),
    ("staged", {"stage": "prod"}, 2, "v1.1.0"),
    ("older-is-newer", {}, 1, "v2.0.0"),
    ("candidates", {}, 3, "v1.1.0-rc.1"),
    ("candidates", {"version": "v1.0.0-rc.10"}, 2, "v1.0.0-rc.10"),
    ("rolled-back", {"stage": "prod"}, 1, "v1.0.0"),
    ("rolled-back", {}, 2, "v2.0.0"),
    ("deregistered", {}, 1, "v1.0.0"),
    ("moved", {"version": "v1.0.0"}, 2, "v1.0.0"),
    ("moved", {}, 2, "v1.0.0"),
    ("deprecated", {"version": "v1.0.0"}, 1, "v1.0.0"),
    ("revived", {}, 2, "v2.0.0"),
    ("built", {}, 2, "v1.0.0+a"),
    ("built", {"version": "v1.0.0"}, 3, "v1.0.0"),
    ("built", {"version": "v1.0.0+b"}, 1, "v1.0.0+b"),
    ("odd-stages", {"stage": "2"}, 1, "v1.0.0"),
    ("odd-stages", {"stage": "eu/prod"}, 2, "v2.0.0"),
    ("unregistered-commit", {"stage": "canary"}, 3, None),
    ("weird", {}, 1, "v1.0.0"),
    ("time-zones", {"stage": "prod"}, 2, "v2.0.0"),
    ("lightweight", {}, 1, "v1.0.0"),
]

REFUSALS = [
    # artifact, request -> status, a word that helps
    ("single", {"version": "v9.9.9"}, 404, "registered are v1.0.0"),
    ("single", {"version": "1.0.0"}, 404, "did you mean v1.0.0?"),
    ("nobody", {}, 404, "no tag registers it"),
    ("single", {"version": "v1.0.0", "stage": "prod"}, 400, "version"),
    ("", {}, 400, "name"),
    ("bad name", {}, 400, "not a valid artifact name"),
    ("../escape:m", {}, 400, "inside the repository"),
    ("/etc:m", {}, 400, "inside the repository"),
    ("m" * 256, {}, 400, "not a valid artifact name"),
    ("single", {"version": "v" * 256}, 400, "version"),
    ("single", {"repo": ""}, 400, "repo"),
    ("staged", {"stage": "staging"}, 404, "dev, prod"),
    ("staged", {"stage": "Prod"}, 404, "dev, prod"),
    ("deregistered", {"version": "v2.0.0"}, 404, "deregistered by the tag deregistered@v2.0.0!"),
    ("unassigned", {"stage": "prod"}, 404, "unassigned by the tag unassigned#prod!#2"),
    ("deprecated", {}, 404, "deprecated"),
    ("deprecated", {"stage": "prod"}, 404, "deprecated"),
    ("lightweight", {"version": "v2.0.0"}, 404, "lightweight"),
    ("lightweight", {"stage": "prod"}, 404, "lightweight"),
    ("on-a-tree", {}, 404, "no commit"),
]  # fmt: skip


@pytest.fixture(scope="module")
def histories(tmp_path_factory):
    """One repository with every history above; the odd ones must not harm the others."""
    directory = tmp_path_factory.mktemp("histories")
    origin = GitRepository(directory / "origin.git")
    names = {*HISTORIES, "time-zones", "lightweight", "on-a-tree"}
    declared = {**DVC, "dvc.yaml": artifacts(**dict.fromkeys(names, "model.pkl"))}
    commits = [
        origin.commit({**declared, "model.pkl.dvc": output("model.pkl", digest(str(number)))})
        for number in (1, 2, 3)
    ]
    for name, events in HISTORIES.items():
        for event in events:
            tag, number = event.split()
            if "?" not in tag:  # Git forbids it
                origin.tag(name + tag, commits[int(number) - 1])
    _tag_oddly(origin, *commits)
    storage = [{"url": "s3://bucket", "repositories": ["*"], **S3_KEYS}]
    with Registry(directory / "var", {"team/models": origin}, storage) as registry:
        registry.commits = commits
        yield registry


def _tag_oddly(origin: GitRepository, first: str, second: str, third: str) -> None:
    origin.tag("time-zones@v1.0.0", first)
    origin.tag("time-zones@v2.0.0", second)
    at = f"Ada <ada@example.com> {START + 5000}"
    earlier = f"Ada <ada@example.com> {START + 4999}"
    origin.raw_tag("time-zones#prod#2", first, f"tagger {earlier} +0900")
    origin.raw_tag("time-zones#prod#1", second, f"tagger {at} -0500")
    origin.raw_tag("time-zones@v0.1.0", first)  # without a tagger
    origin.tag("lightweight@v1.0.0", first)
    origin.tag("lightweight@v2.0.0", second, lightweight=True)
    origin.tag("lightweight#prod", second, lightweight=True)
    origin.tag("on-a-tree@v1.0.0", f"{first}^{{tree}}")


@pytest.mark.parametrize(("name", "query", "commit", "version"), ANSWERS)
def test_a_version_a_stage_or_the_latest_leads_to_the_objects_of_its_commit(
    histories, name, query, commit, version
) -> None:
    answer = histories.ask(name, **query)

    assert answer.headers["X-Registry-Revision"] == histories.commits[commit - 1]
    assert answer.headers.get("X-Registry-Version") == version
    assert answer.headers["X-Registry-Tag"].startswith(name)
    assert histories.places(name, **query) == {"model.pkl": f"s3://bucket/dvc/{key(str(commit))}"}


@pytest.mark.parametrize(("name", "query", "status", "word"), REFUSALS)
def test_what_cannot_be_resolved_is_refused_with_a_word_that_helps(
    histories, name, query, status, word
) -> None:
    answer = histories.ask(name, **query)

    assert answer.status_code == status
    assert_one_line(answer)
    assert word in answer.json["detail"]


def assert_one_line(answer) -> None:
    assert answer.content_type == "application/json"
    assert list(answer.json)[:3] == ["detail", "code", "request_id"]
    assert "\n" not in answer.text
    assert answer.text == json.dumps(answer.json, ensure_ascii=False, separators=(",", ":"))


def test_only_what_is_deprecated_says_so(histories) -> None:
    pinned, other = histories.ask("deprecated", version="v1.0.0"), histories.ask("single")

    assert pinned.headers["X-Registry-Deprecated"] == "true"
    assert "X-Registry-Deprecated" not in other.headers


def test_a_tag_counts_on_a_merge_and_on_a_commit_that_no_branch_leads_to(tmp_path, serve) -> None:
    origin = GitRepository(tmp_path / "origin.git")
    main = origin.commit(MODEL)
    side = origin.commit({**MODEL, "model.pkl.dvc": output("model.pkl", digest("2"))}, "side")
    merge = origin.git("commit-tree", f"{main}^{{tree}}", "-p", main, "-p", side, "-m", "Merge")
    origin.tag("m@v1.0.0", merge)
    origin.tag("m@v2.0.0", side)
    origin.git("update-ref", "-d", "refs/heads/side")
    registry = serve({"team/models": origin})

    assert registry.ask(version="v1.0.0").headers["X-Registry-Revision"] == merge
    assert registry.places(version="v1.0.0") == {"model.pkl": f"s3://bucket/dvc/{key('1')}"}
    assert registry.places() == {"model.pkl": f"s3://bucket/dvc/{key('2')}"}


def test_a_plus_that_was_not_escaped_is_a_space_and_no_version(histories) -> None:
    path = "/api/model-registry/get-download-uris?repo=team/models&name=built&version=v1.0.0+b"
    answer = histories.client.get(path, headers={"Authorization": f"token {histories.everything}"})

    assert answer.status_code == 404
    assert "v1.0.0 b" in answer.json["detail"]


# -------------------------------------------------------------------------- the answer


def test_an_answer_is_compact_json_with_the_facts_in_headers(tmp_path, publish) -> None:
    registry = publish(MODEL)
    origin = GitRepository(tmp_path / "origin.git")

    answer = registry.ask()

    link = answer.json["model.pkl"]
    assert answer.data == b'{"model.pkl":"%b"}' % link.encode()
    assert dict(answer.headers) == {
        "Content-Type": "application/json",
        "Content-Length": str(len(answer.data)),
        "Cache-Control": "private, no-store",
        "X-Registry-Revision": origin.head(),
        "X-Registry-Tag": "m@v1.0.0",
        "X-Registry-Version": "v1.0.0",
        "X-Registry-Expires": "2027-01-15T09:00:00Z",
        "X-Registry-Mirror-Age": "0",
        "X-Request-Id": answer.headers["X-Request-Id"],
        "X-Content-Type-Options": "nosniff",
        "Referrer-Policy": "no-referrer",
    }


@pytest.mark.parametrize("count", [LARGEST_WHOLE, LARGEST_WHOLE + 1, LARGEST_WHOLE + FILES_A_PART])
def test_a_large_answer_is_streamed_and_is_the_same_text(publish, store, count) -> None:
    files = [{"md5": digest(str(n)), "relpath": f"{n % 7}/ünïcode {n}"} for n in range(count)]
    md5 = store.put(json.dumps(files), ".dir")
    registry = publish(
        {
            ".dvc/config": remote(store.url),
            "dvc.yaml": artifacts(m="data"),
            "data.dvc": output("data", md5),
        },
        storage=[{"url": store.url, "repositories": ["*"]}],
    )

    answer = registry.ask()

    links = answer.json
    assert list(links) == [f"data/{file['relpath']}" for file in files]
    assert answer.text == json.dumps(links, ensure_ascii=False, separators=(",", ":"))
    assert ("Content-Length" in answer.headers) == (count <= LARGEST_WHOLE)


def test_what_is_refused_is_refused_before_a_large_answer_begins(publish, store) -> None:
    files = [{"md5": digest(str(n)), "relpath": str(n)} for n in range(LARGEST_WHOLE + 1)]
    private = f"{store.url}/{key(str(LARGEST_WHOLE))}"
    md5 = store.put(json.dumps(files), ".dir")
    locations = [
        {"url": store.url, "repositories": ["*"]},
        {"url": private, "repositories": ["somebody/else"]},
    ]
    registry = publish(
        {
            ".dvc/config": remote(store.url),
            "dvc.yaml": artifacts(m="data"),
            "data.dvc": output("data", md5),
        },
        storage=locations,
    )

    assert registry.ask().status_code == 422


def test_the_age_of_the_mirror_counts_from_the_last_look_at_the_origin(publish) -> None:
    registry = publish(MODEL, "m")
    registry.ask()
    registry.clock.now += 17

    assert registry.ask().headers["X-Registry-Mirror-Age"] == "17"


def test_other_methods_and_other_spellings_of_the_route_are_refused(publish) -> None:
    registry = publish(MODEL)
    headers = {"Authorization": f"token {registry.everything}"}
    path = "/api/model-registry/get-download-uris"

    posted = registry.client.post(path, headers=headers)
    unknown = registry.client.get(f"{path}/", headers=headers)

    assert (posted.status_code, unknown.status_code) == (405, 404)
    assert set(posted.headers["Allow"].split(", ")) == {"GET", "HEAD", "OPTIONS"}
    assert_one_line(posted)
    assert_one_line(unknown)


# ------------------------------------------------------- from the name to the objects

LOCK = """\
schema: '2.0'
stages:
  train:
    cmd: x
    outs:
    - {{path: out.bin, hash: md5, md5: {out}, size: 1}}
    - {{path: old.bin, md5: {old}, size: 1}}
    - {{path: ../up.bin, hash: md5, md5: {up}, size: 1}}
    - {{path: uncached.bin, hash: md5, md5: {out}, size: 1}}
  each@a:
    cmd: y a
    outs:
    - {{path: w/each_a.bin, hash: md5, md5: {each}, size: 1}}
  gone:
    cmd: z
    outs:
    - {{path: gone.bin, hash: md5, md5: {out}, size: 1}}
""".format(**{name: digest(name) for name in ("out", "old", "up", "each")})

PIPELINE = {
    ".dvc/config": remote("s3://bucket/dvc", more="['remote \"other\"']\n    url = s3://other/x\n"),
    "params.yaml": "dir: w\n",
    "dvc.lock": LOCK,
    "dvc.yaml": artifacts(
        out="w/out.bin", old="w/old.bin", up="up.bin", each="w/each_a.bin", gone="gone.bin",
        template="'${dir}/out.bin'", uncached="w/uncached.bin", never="w/never.bin",
    ) + """\
stages:
  train:
    cmd: x
    wdir: ${dir}
    outs:
    - out.bin:
        remote: other
    - old.bin
    - ../up.bin
    - uncached.bin:
        cache: false
    - never.bin
  each:
    foreach: [a]
    do:
      cmd: y ${item}
      outs:
      - w/each_${item}.bin
""",
}  # fmt: skip


@pytest.fixture(scope="module")
def pipeline(tmp_path_factory):
    """One repository with the pipeline above; every artifact has a version."""
    directory = tmp_path_factory.mktemp("pipeline")
    origin = GitRepository(directory / "origin.git")
    origin.commit(PIPELINE)
    for name in ("out", "old", "up", "each", "gone", "template", "uncached", "never"):
        origin.tag(f"{name}@v1.0.0")
    storage = [
        {"url": f"s3://{bucket}", "repositories": ["*"], **S3_KEYS}
        for bucket in ("bucket", "other")
    ]
    with Registry(directory / "var", {"team/models": origin}, storage) as registry:
        yield registry


@pytest.mark.parametrize(
    ("name", "path", "place"),
    [
        ("out", "w/out.bin", f"s3://other/x/{key('out')}"),
        ("old", "w/old.bin", f"s3://bucket/dvc/{legacy_key('old')}"),
        ("up", "up.bin", f"s3://bucket/dvc/{key('up')}"),
        ("each", "w/each_a.bin", f"s3://bucket/dvc/{key('each')}"),
        ("template", "w/out.bin", f"s3://other/x/{key('out')}"),
    ],
)
def test_an_output_of_a_pipeline_is_found_through_its_stage(pipeline, name, path, place) -> None:
    assert pipeline.places(name) == {path: place}


@pytest.mark.parametrize(
    ("name", "status", "word"),
    [
        ("uncached", 422, "cache: false"),
        ("gone", 404, "neither DVC nor Git tracks it"),
        ("never", 422, "records no hash"),
    ],
)
def test_an_output_that_is_not_in_the_remote_is_refused(pipeline, name, status, word) -> None:
    answer = pipeline.ask(name)

    assert (answer.status_code, word in answer.json["detail"]) == (status, True), answer.text


def test_everything_is_read_at_the_revision_of_the_version(tmp_path, serve) -> None:
    origin = GitRepository(tmp_path / "origin.git")
    origin.commit({path: text for path, text in MODEL.items() if path != "dvc.yaml"})
    origin.tag("m@v1.0.0")
    origin.commit({"dvc.yaml": artifacts(m="model.pkl")})
    origin.tag("m@v2.0.0")
    origin.commit(
        {"dvc.yaml": artifacts(m="new/m.pkl"), "new/m.pkl.dvc": output("m.pkl", digest("3"))}
    )
    origin.tag("m@v3.0.0")
    origin.commit({".dvc/config": remote("s3://bucket2/elsewhere")})
    origin.tag("m@v4.0.0")
    storage = [
        {"url": f"s3://{it}", "repositories": ["*"], **S3_KEYS} for it in ("bucket", "bucket2")
    ]
    registry = serve({"team/models": origin}, storage)

    undeclared = registry.ask(version="v1.0.0")

    assert (undeclared.status_code, "not declared" in undeclared.text) == (404, True)
    assert registry.places(version="v2.0.0") == {"model.pkl": f"s3://bucket/dvc/{key('1')}"}
    assert registry.places(version="v3.0.0") == {"new/m.pkl": f"s3://bucket/dvc/{key('3')}"}
    assert registry.places(version="v4.0.0") == {"new/m.pkl": f"s3://bucket2/elsewhere/{key('3')}"}


def test_the_layout_of_dvc_2_or_3_is_told_by_the_output_itself(tmp_path, serve) -> None:
    origin = GitRepository(tmp_path / "origin.git")
    origin.commit({**MODEL, "model.pkl.dvc": output("model.pkl", digest("1"), legacy=True)})
    origin.tag("m@v1.0.0")
    origin.commit({"model.pkl.dvc": output("model.pkl", digest("2"))})
    origin.tag("m@v2.0.0")
    registry = serve({"team/models": origin})

    assert registry.places(version="v1.0.0") == {"model.pkl": f"s3://bucket/dvc/{legacy_key('1')}"}
    assert registry.places(version="v2.0.0") == {"model.pkl": f"s3://bucket/dvc/{key('2')}"}


def test_a_lock_file_of_dvc_1_is_understood(publish) -> None:
    registry = publish(
        {
            **DVC,
            "dvc.yaml": artifacts(m="o.bin") + "stages:\n  t:\n    cmd: x\n    outs: [o.bin]\n",
            "dvc.lock": f"t:\n  cmd: x\n  outs:\n  - path: o.bin\n    md5: {digest('1')}\n",
        }
    )

    assert registry.places() == {"o.bin": f"s3://bucket/dvc/{legacy_key('1')}"}


def test_a_monorepo_spells_its_artifacts_by_the_directory_of_their_dvc_yaml(publish) -> None:
    registry = publish(
        {
            **MODEL,
            "path/to/dvc.yaml": artifacts(m="sub.pkl", up="../../model.pkl"),
            "path/to/sub.pkl.dvc": output("sub.pkl", digest("sub")),
            "a/dvc.yaml": artifacts(b="ab.pkl"),
            "a/ab.pkl.dvc": output("ab.pkl", digest("ab")),
        },
        "m", "path/to=m", "path/to=up", "a=b",
    )  # fmt: skip
    sub = {"path/to/sub.pkl": f"s3://bucket/dvc/{key('sub')}"}
    root = {"model.pkl": f"s3://bucket/dvc/{key('1')}"}

    assert registry.places("m") == registry.places(":m") == registry.places("dvc.yaml:m") == root
    assert registry.places("path/to:m") == registry.places("path/to/dvc.yaml:m") == sub
    assert registry.places("path/to:up") == root
    assert registry.places("a:b") == {"a/ab.pkl": f"s3://bucket/dvc/{key('ab')}"}
    assert registry.ask("a/b").status_code == 404


def test_the_deepest_dvc_root_above_an_output_decides_its_remote(publish) -> None:
    registry = publish(
        {
            **DVC,
            "sub/.dvc/config": remote("s3://bucket/below"),
            "sub/dvc.yaml": artifacts(m="s.pkl"),
            "sub/s.pkl.dvc": output("s.pkl", digest("s")),
            "sub/deep/dvc.yaml": artifacts(m="d.pkl"),
            "sub/deep/d.pkl.dvc": output("d.pkl", digest("d")),
        },
        "sub=m", "sub/deep=m",
        storage=[{"url": "s3://bucket", "repositories": ["*"], **S3_KEYS}],
    )  # fmt: skip

    assert registry.places("sub:m") == {"sub/s.pkl": f"s3://bucket/below/{key('s')}"}
    assert registry.places("sub/deep:m") == {"sub/deep/d.pkl": f"s3://bucket/below/{key('d')}"}


ANYWHERE = [
    {"url": "s3://bucket", "repositories": ["*"], **S3_KEYS},
    {"url": "https://remote.example", "repositories": ["*"]},
    {"url": "azure://cont", "repositories": ["*"], "account_name": "acc", "account_key": "a2V5"},
]


@pytest.mark.parametrize(
    ("config", "place"),
    [
        (remote("https://remote.example/get-started/"), "https://remote.example/get-started"),
        (remote("azure://cont/path/to"), "https://acc.blob.core.windows.net/cont/path/to"),
        (remote("s3://bucket/pre/"), "s3://bucket/pre"),
        (remote("s3://bucket"), "s3://bucket"),
        (
            remote("remote://base/sub/dir  # a comment", "MyRemote")
            + "['remote \"base\"']\n    url = s3://bucket/pre\n    profile = nope\n",
            "s3://bucket/pre/sub/dir",
        ),
        (
            remote("s3://bucket/pre", more="    endpointurl = http://127.0.0.1:9\n"
                   "    access_key_id = AKIAEVIL\n    region = eu-evil-1\n"),
            "s3://bucket/pre",
        ),
    ],
    ids=["https", "azure", "slash", "root", "reference", "ignored"],
)  # fmt: skip
def test_a_remote_of_any_kind_leads_to_where_its_objects_lie(publish, config, place) -> None:
    registry = publish({**MODEL, ".dvc/config": config}, storage=ANYWHERE)

    assert registry.places() == {"model.pkl": f"{place}/{key('1')}"}


def test_a_link_to_azure_is_for_reading_one_blob_for_one_hour(publish) -> None:
    registry = publish({**MODEL, ".dvc/config": remote("azure://cont/p")}, storage=ANYWHERE)

    link = registry.links()["model.pkl"]

    assert {"sp=r", "sr=b", "se=2027-01-15T09%3A00%3A00Z"} <= set(link.partition("?")[2].split("&"))


@pytest.mark.parametrize(
    ("config", "word"),
    [
        ("['remote \"s\"']\n    url = s3://bucket/dvc\n", "no default remote"),
        ("[core]\n    remote = zz\n", "'zz': it is not defined"),
        (remote("../store"), "local remote"),
        (remote("ssh://u@h.example/abs"), "ssh"),
        (remote("gs://bucket"), "gs"),
        (remote("remote://storage/x"), "refers to itself"),
    ],
)
def test_a_remote_that_nothing_can_sign_is_refused_with_its_reason(publish, config, word) -> None:
    answer = publish({**MODEL, ".dvc/config": config}).ask()

    assert (answer.status_code, word in answer.json["detail"]) == (422, True), answer.text
    assert_one_line(answer)


@pytest.mark.parametrize(
    ("path", "status", "word"),
    [
        ("models/churn.pkl", 422, "tracked by Git"),
        ("models", 422, "tracked by Git"),
        ("nope.bin", 404, "neither DVC nor Git"),
        ("s3://elsewhere/m.pt", 422, "s3://elsewhere"),
        ("../out.bin", 422, "leaves the repository"),
        ("/etc/passwd", 422, "absolute"),
    ],
)
def test_an_artifact_without_objects_is_refused_with_its_reason(
    publish, path, status, word
) -> None:
    files = {**DVC, "dvc.yaml": artifacts(m=path), "models/churn.pkl": "bytes"}

    answer = publish(files).ask()

    assert (answer.status_code, word in answer.json["detail"]) == (status, True), answer.text


def test_an_artifact_at_an_external_url_is_signed_when_that_is_granted(publish) -> None:
    registry = publish({**DVC, "dvc.yaml": artifacts(m="s3://bucket/proj/m.pt")}, storage=ANYWHERE)

    assert registry.places() == {"m.pt": "s3://bucket/proj/m.pt"}


@pytest.mark.parametrize(
    ("file", "text"),
    [
        ("dvc.yaml", "artifacts: ["),
        ("model.pkl.dvc", "outs: [:"),
        ("model.pkl.dvc", output("model.pkl", "../../../etc/passwd")),
        ("model.pkl.dvc", output("model.pkl", "A" * 32)),
    ],
)
def test_a_broken_file_that_the_answer_depends_on_is_named(publish, file, text) -> None:
    answer = publish({**MODEL, file: text}).ask()

    assert (answer.status_code, file in answer.json["detail"]) == (422, True), answer.text
    assert_one_line(answer)


def test_a_broken_file_elsewhere_does_not_matter(publish) -> None:
    registry = publish({**MODEL, "other/dvc.yaml": "artifacts: [", "other/x.dvc": "\0"})

    assert registry.places() == {"model.pkl": f"s3://bucket/dvc/{key('1')}"}


def test_a_version_aware_remote_gives_links_with_version_ids(publish) -> None:
    files = {
        ".dvc/config": remote("s3://bucket/dvc", more="    version_aware = true\n"),
        "dvc.yaml": artifacts(m="model.pkl", d="data"),
        "model.pkl.dvc": output("model.pkl", digest("1"), "version_id: Va.1"),
        "data.dvc": "outs:\n- path: data\n  hash: md5\n  files:\n"
        f"  - {{relpath: a b.txt, md5: {digest('a')}, version_id: Vb}}\n"
        f"  - {{relpath: c/d.txt, md5: {digest('d')}, version_id: Vd}}\n",
    }
    registry = publish(files, "m", "d")

    assert registry.places("m") == {"model.pkl": "s3://bucket/dvc/model.pkl?versionId=Va.1"}
    assert registry.places("d") == {
        "data/a b.txt": "s3://bucket/dvc/data/a b.txt?versionId=Vb",
        "data/c/d.txt": "s3://bucket/dvc/data/c/d.txt?versionId=Vd",
    }


# ------------------------------------------------------------------- what is on record

CHURN = "[core]\n    remote = s3_storage\n['remote \"s3_storage\"']\n" \
        "    url = s3://sandbox-datasets-iterative/bank-customer-churn/"  # fmt: skip


def test_it_answers_as_dvc_studio_did_for_the_bank_customer_churn_demo(tmp_path, serve) -> None:
    """On record in treeverse/dvc, pull request 9770: metadata of DVC 2, artifacts.yaml."""
    origin = GitRepository(tmp_path / "origin.git")
    origin.commit(
        {
            ".dvc/config": CHURN,
            "artifacts.yaml": "randomforest-model:\n  path: .mlem/model/clf-model\n  type: model\n",
            "params.yaml": "base:\n  model_dir: .mlem/model\n",
            "dvc.yaml": "stages:\n  train:\n    cmd: python train.py\n    outs:\n"
            "    - ${base.model_dir}/clf-model\n    - ${base.model_dir}/clf-model.mlem:\n"
            "        cache: false\n",
            "dvc.lock": "schema: '2.0'\nstages:\n  train:\n    cmd: python train.py\n    outs:\n"
            "    - path: .mlem/model/clf-model\n      md5: 4c65eb98e1f9b9cae801f1a3f124f8ae\n"
            "      size: 4145903\n"
            "    - path: .mlem/model/clf-model.mlem\n      md5: fe917ad72c4c45c4529290ca350be5d0\n",
        }
    )
    origin.tag("randomforest-model@v2.0.0")
    origin.commit({"artifacts.yaml": "other:\n  path: x\n"})
    origin.tag("randomforest-model@v2.0.1")
    name = "iterative/demo-bank-customer-churn"
    storage = [{"url": "s3://sandbox-datasets-iterative", "repositories": ["*"], **S3_KEYS}]
    registry = serve(
        {name: {"url": str(origin.path), "aliases": [f"https://github.com/{name}.git"]}}, storage
    )

    links = registry.links(
        "randomforest-model", version="v2.0.0", repo=f"git@github.com:{name}.git"
    )
    latest = registry.ask("randomforest-model")

    assert links[".mlem/model/clf-model"].partition("?")[0] == (
        "https://sandbox-datasets-iterative.s3.amazonaws.com"
        "/bank-customer-churn/4c/65eb98e1f9b9cae801f1a3f124f8ae"
    )
    # The latest version is not declared at its commit, and nothing is served in its place.
    assert latest.status_code == 404
    assert "not declared in dvc.yaml or artifacts.yaml" in latest.json["detail"]


def test_a_plain_web_remote_is_answered_with_plain_urls_as_studio_did(publish) -> None:
    """As iterative/example-get-started is, and was answered (treeverse/dvc, issue 10077)."""
    md5 = "cfa72ff6e2575c44f78f423cada5b783"
    registry = publish(
        {
            ".dvc/config": remote("https://remote.dvc.org/get-started"),
            "dvc.yaml": "artifacts:\n  text-classification:\n    path: model.pkl\n"
            "stages:\n  train:\n    cmd: x\n    outs:\n    - model.pkl\n",
            "dvc.lock": "schema: '2.0'\nstages:\n  train:\n    cmd: x\n    outs:\n"
            f"    - path: model.pkl\n      hash: md5\n      md5: {md5}\n      size: 1855075\n",
        },
        "text-classification",
        storage=[{"url": "https://remote.dvc.org", "repositories": ["*"]}],
    )

    assert registry.links("text-classification") == {
        "model.pkl": "https://remote.dvc.org/get-started/files/md5/cf/a72ff6e2575c44f78f423cada5b783"
    }


# --------------------------------------------------------------------------- directories

FILES = {"a/one.txt": "A", "dupe1": "D", "dupe2": "D", "empty": "", "sp ace/tw#o%20+é.txt": "U"}


def listing(files) -> str:
    listed = [{"md5": digest(text), "relpath": path} for path, text in sorted(files.items())]
    return json.dumps(listed, sort_keys=True)


def directory(store: Store, text: str, **paths: str) -> dict[str, str]:
    """The metadata of a tracked directory `data` whose manifest is `text`, put into the store."""
    md5 = store.put(text, ".dir")
    return {
        ".dvc/config": remote(store.url),
        "dvc.yaml": artifacts(**paths or {"m": "data"}),
        "data.dvc": output("data", md5, "nfiles: 5"),
    }


def granted(store: Store) -> list[dict[str, object]]:
    return [{"url": store.url, "repositories": ["*"]}]


def test_a_directory_is_answered_file_by_file_and_so_are_paths_inside(publish, store) -> None:
    paths = {
        "whole": "data",
        "slash": "data/",
        "sub": "data/a",
        "file": "data/dupe2",
        "no": "data/x",
    }
    for text in FILES.values():
        store.put(text)
    registry = publish(directory(store, listing(FILES), **paths), *paths, storage=granted(store))

    whole = registry.links("whole")
    missing = registry.ask("no")

    assert list(whole) == [f"data/{path}" for path in sorted(FILES)]
    assert {path: registry.download(link).text for path, link in whole.items()} == {
        f"data/{path}": text for path, text in FILES.items()
    }
    assert list(registry.links("slash")) == list(whole)
    assert list(registry.links("sub")) == ["data/a/one.txt"]
    assert list(registry.links("file")) == ["data/dupe2"]
    assert (missing.status_code, "does not hold it" in missing.text) == (404, True)


def test_the_manifest_of_a_directory_is_kept_and_serves_when_the_store_is_gone(
    publish, serve, tmp_path
) -> None:
    manifest = listing(FILES)
    path = f"/dvc/{key(manifest)}.dir"
    with WebServer({path: manifest.encode()}) as web:
        storage = [{"url": f"{web.url}/dvc", "repositories": ["*"]}]
        files = directory(Store(tmp_path / "unused"), manifest)
        registry = publish({**files, ".dvc/config": remote(f"{web.url}/dvc")}, storage=storage)

        first = registry.places()
        again = registry.places()

        assert web.requests == [f"GET {path}"]
    origins = {"team/models": GitRepository(tmp_path / "origin.git")}
    assert serve(origins, storage).places() == again == first


def test_a_manifest_whose_file_in_the_cache_is_corrupt_is_read_again(
    publish, serve, store, tmp_path
) -> None:
    registry = publish(directory(store, listing(FILES)), storage=granted(store))
    before = registry.places()
    (cached,) = [file for file in (tmp_path / "var/manifests").rglob("*") if file.is_file()]
    good = cached.read_bytes()
    cached.write_bytes(good[:-7])

    after = serve({"team/models": GitRepository(tmp_path / "origin.git")}, granted(store)).places()

    assert list(after) == list(before)
    assert cached.read_bytes() == good


HOSTILE = [
    "../up",
    "/etc/passwd",
    "a\\..\\b",
    "C:/windows",
    "a//b",
    "./a",
    "a/..",
    "",
    "a\nb",
    "x" * 256,
]


@pytest.mark.parametrize("path", HOSTILE)
def test_a_manifest_with_a_hostile_path_is_refused_as_a_whole(publish, store, path) -> None:
    manifest = listing({"fine.txt": "1", path: "2"})

    answer = publish(directory(store, manifest), storage=granted(store)).ask()

    assert (answer.status_code, "Unsafe path" in answer.json["detail"]) == (422, True), answer.text
    assert_one_line(answer)


@pytest.mark.parametrize(
    "manifest",
    [
        json.dumps([{"md5": digest("1"), "relpath": "a"}, {"md5": digest("2"), "relpath": "a"}]),
        json.dumps([{"md5": digest("1"), "relpath": "a"}, {"md5": digest("2"), "relpath": "a/b"}]),
        json.dumps([{"md5": "../../secret", "relpath": "a"}]),
        json.dumps([{"md5": digest("1")}]),
        json.dumps({"md5": digest("1"), "relpath": "a"}),
        json.dumps([]),
        "[" * 10_000,
        "no JSON",
    ],
    ids=["twice", "conflict", "md5", "no-path", "object", "empty", "deep", "text"],
)
def test_a_manifest_that_makes_no_sense_is_refused(publish, store, manifest) -> None:
    answer = publish(directory(store, manifest), storage=granted(store)).ask()

    assert answer.status_code == 422
    assert_one_line(answer)


def test_a_manifest_that_was_never_pushed_is_refused_and_found_once_it_is(publish, store) -> None:
    files = directory(store, listing(FILES))
    pushed = next(store.directory.rglob("*.dir"))
    aside = pushed.rename(store.directory / "aside")
    registry = publish(files, storage=granted(store))

    missing = registry.ask()
    aside.rename(pushed)

    assert missing.status_code == 424
    for word in ("dvc push", digest(listing(FILES)) + ".dir"):
        assert word in missing.json["detail"]
    assert registry.ask().status_code == 200


def test_a_manifest_with_other_bytes_than_its_md5_is_the_fault_of_the_store(publish, store) -> None:
    registry = publish(directory(store, listing(FILES)), storage=granted(store))
    next(store.directory.rglob("*.dir")).write_text(listing({"a": "1"}))

    answer = registry.ask()

    assert answer.status_code == 502, answer.text
    assert digest(listing(FILES)) + ".dir" in answer.json["detail"]
    assert int(answer.headers["Retry-After"]) > 0


@pytest.mark.parametrize("status", [403, 500, 301])
def test_a_store_that_refuses_the_manifest_is_named_without_a_signature(
    publish, store, status
) -> None:
    with WebServer() as web:
        web.status = status
        location = {"url": "s3://bucket", "endpoint_url": web.url, "addressing_style": "path"}
        files = directory(store, listing(FILES))
        registry = publish(
            {**files, ".dvc/config": remote("s3://bucket/dvc")},
            storage=[{**location, "repositories": ["*"], **S3_KEYS}],
        )
        registry.clock.now = time.time()  # as it is at the store

        answer = registry.ask()

    assert (answer.status_code, str(status) in answer.json["detail"]) == (502, True), answer.text
    assert "X-Amz" not in answer.text


def test_a_store_that_is_down_is_a_fault_that_passes(publish, store) -> None:
    with WebServer() as web:
        pass
    files = {**directory(store, listing(FILES)), ".dvc/config": remote(f"{web.url}/dvc")}

    answer = publish(files, storage=[{"url": web.url, "repositories": ["*"]}]).ask()

    assert answer.status_code == 502
    assert "cannot be reached" in answer.json["detail"]


def test_a_directory_that_holds_outputs_is_answered_with_all_of_them(publish) -> None:
    registry = publish(
        {
            **DVC,
            "dvc.yaml": artifacts(m="models"),
            "models/a.pkl.dvc": output("a.pkl", digest("a")),
            "models/deep/b.pkl.dvc": output("b.pkl", digest("b")),
            "models/README.md": "tracked by Git",
        }
    )

    assert registry.places() == {
        "models/a.pkl": f"s3://bucket/dvc/{key('a')}",
        "models/deep/b.pkl": f"s3://bucket/dvc/{key('b')}",
    }


# ------------------------------------------------------------------------------- imports


def imports(url: str, revision: str, path: str = "x.bin", more: str = "", md5: str = "imp") -> str:
    return (
        f"frozen: true\ndeps:\n- path: {path}\n  repo:\n    url: {url}\n    rev_lock: {revision}\n"
        f"{more}outs:\n- md5: {digest(md5)}\n  size: 1\n  hash: md5\n  path: m.bin\n"
    )


def source(tmp_path, name="source", **more: str):
    origin = GitRepository(tmp_path / f"{name}.git")
    files = {".dvc/config": remote("s3://source/s"), "x.bin.dvc": output("x.bin", digest("imp"))}
    return origin, origin.commit({**files, **more})


def importer(tmp_path, text: str, name="origin") -> GitRepository:
    origin = GitRepository(tmp_path / f"{name}.git")
    origin.commit({**DVC, "dvc.yaml": artifacts(m="m.bin"), "m.bin.dvc": text})
    origin.tag("m@v1.0.0")
    return origin


SOURCE_URL = "https://git.example/team/source.git"
SOURCES = [
    {"url": "s3://source", "repositories": ["team/source"], **S3_KEYS},
    {"url": "s3://bucket", "repositories": ["*"], **S3_KEYS},
]


def test_what_dvc_import_brought_lies_in_the_remote_of_its_source(tmp_path, serve) -> None:
    origin, revision = source(tmp_path)
    models = importer(tmp_path, imports(SOURCE_URL, revision))

    registry = serve({"team/models": models, "team/source": origin}, SOURCES)

    assert registry.places() == {"m.bin": f"s3://source/s/{key('imp')}"}


def test_an_import_from_a_repository_that_is_not_mirrored_is_refused(tmp_path, serve) -> None:
    _, revision = source(tmp_path)
    models = importer(tmp_path, imports(SOURCE_URL, revision))

    answer = serve({"team/models": models}, SOURCES).ask()

    assert answer.status_code == 422
    assert "git.example/team/source" in answer.json["detail"]


def test_an_import_counts_only_for_tokens_that_see_its_source(tmp_path, serve) -> None:
    origin, revision = source(tmp_path)
    models = importer(tmp_path, imports(SOURCE_URL, revision))
    registry = serve({"team/models": models, "team/source": origin}, SOURCES)

    before = registry.ask(token=registry.token("team/models"))
    allowed = registry.ask()
    after = registry.ask(token=registry.token("team/models"))

    assert (before.status_code, allowed.status_code, after.status_code) == (422, 200, 422)
    assert unmarked(before) == unmarked(after)
    assert "does not cover" in after.json["detail"]


@pytest.mark.parametrize("url", ["../source", "/srv/source.git", ".", "file:///srv/source.git"])
def test_an_import_from_a_local_path_is_refused_without_repeating_the_path(
    tmp_path, serve, url
) -> None:
    models = importer(tmp_path, imports(url, "1" * 40))

    answer = serve({"team/models": models}, SOURCES).ask()

    assert (answer.status_code, "a local path" in answer.json["detail"]) == (422, True)
    assert "/srv" not in answer.text


def test_an_import_at_a_revision_that_its_source_lacks_is_not_found(tmp_path, serve) -> None:
    origin, _ = source(tmp_path)
    models = importer(tmp_path, imports(SOURCE_URL, "1" * 40))

    answer = serve({"team/models": models, "team/source": origin}, SOURCES).ask()

    assert answer.status_code == 404
    assert_one_line(answer)


@pytest.mark.parametrize(("length", "status"), [(5, 200), (6, 422)])
def test_a_chain_of_imports_ends(tmp_path, serve, length, status) -> None:
    origin, revision = source(tmp_path, "link0")
    origins = {"team/link0": origin}
    for number in range(1, length):
        link = GitRepository(tmp_path / f"link{number}.git")
        before = f"https://git.example/team/link{number - 1}.git"
        text = imports(before, revision).replace("path: m.bin", "path: x.bin")
        revision = link.commit({**DVC, "x.bin.dvc": text})
        origins[f"team/link{number}"] = link
    last = f"https://git.example/team/link{length - 1}.git"
    models = importer(tmp_path, imports(last, revision))
    storage = [{"url": "s3://source", "repositories": ["*"], **S3_KEYS}]

    answer = serve({"team/models": models, **origins}, storage).ask()

    assert answer.status_code == status, answer.text
    assert status == 200 or "too long, or goes in circles" in answer.json["detail"]


def url_import(dependency: str, out: str) -> str:
    return f"md5: {digest('stage')}\nfrozen: true\ndeps:\n- {dependency}\nouts:\n- {out}\n"


def test_import_url_is_served_from_the_copy_or_else_from_where_it_came(publish) -> None:
    copied = url_import(
        "{etag: abc, size: 1, hash: etag, path: 's3://elsewhere/obj.bin'}",
        f"{{md5: {digest('x')}, size: 1, hash: md5, path: a.bin}}",
    )
    pinned = url_import(
        "{etag: abc, size: 1, version_id: VID, hash: etag, path: 's3://elsewhere/obj.bin'}",
        f"{{md5: {digest('x')}, size: 1, hash: md5, path: b.bin, push: false}}",
    )
    registry = publish(
        {
            **DVC,
            "dvc.yaml": artifacts(a="a.bin", b="b.bin"),
            "a.bin.dvc": copied,
            "b.bin.dvc": pinned,
        },
        "a",
        "b",
        storage=[*ANYWHERE, {"url": "s3://elsewhere", "repositories": ["*"], **S3_KEYS}],
    )

    assert registry.places("a") == {"a.bin": f"s3://bucket/dvc/{key('x')}"}
    assert registry.places("b") == {"b.bin": "s3://elsewhere/obj.bin?versionId=VID"}


# -------------------------------------------------------- whose repository, whose storage

SPELLINGS = [
    "acme/models",
    "https://git.acme.example/acme/models.git",
    "https://git.acme.example/acme/models",
    "https://user@GIT.acme.example:443/acme/models/",
    "ssh://git@git.acme.example/acme/models.git",
    "git@git.acme.example:acme/models.git",
    "git@git.acme.example:/acme/models",
    "git.acme.example:acme/models.git",
]


@pytest.fixture
def acme(tmp_path, serve) -> Registry:
    origin = GitRepository(tmp_path / "origin.git")
    origin.commit(MODEL)
    origin.tag("m@v1.0.0")
    alias = "https://git.acme.example/acme/models.git"
    return serve({"acme/models": {"url": str(origin.path), "aliases": [alias]}})


@pytest.mark.parametrize("spelling", SPELLINGS)
def test_a_repository_is_found_by_any_spelling_of_its_url(acme, spelling) -> None:
    assert acme.ask(repo=spelling).status_code == 200


STRANGERS = [
    ".", "..", "/srv/models.git", "~/models", "file:///srv/models.git", "acme", "models",
    "https://git.evil.example/acme/models.git", "ext::sh -c touch% /tmp/x", "-oProxyCommand=x",
    "--upload-pack=x", "git@git.acme.example:acme/models2", "ssh://-oProxyCommand=x/acme/models",
    "x" * 5000, "acme/models\0", "é",
]  # fmt: skip


@pytest.mark.parametrize("spelling", STRANGERS)
def test_an_unknown_repository_is_not_found_with_no_process_and_no_socket(
    acme, spelling, monkeypatch
) -> None:
    def forbidden(*_: object, **__: object) -> None:
        raise AssertionError("nothing may be started or contacted for an unknown repository")

    monkeypatch.setattr(subprocess.Popen, "__init__", forbidden)
    monkeypatch.setattr(socket.socket, "connect", forbidden)

    answer = acme.ask(repo=spelling)

    monkeypatch.undo()
    assert answer.status_code == 404
    assert_one_line(answer)
    assert spelling[:30].split("\0")[0] in answer.json["detail"]


def test_a_repository_that_a_token_may_not_see_looks_like_one_that_does_not_exist(acme) -> None:
    other = acme.token("other/*")

    for spelling in SPELLINGS:
        hidden = acme.ask(repo=spelling, token=other)
        # As long as the other, and in its place.
        unknown = acme.ask(repo=spelling.replace("models", "xxxxxx"), token=other)

        assert hidden.status_code == unknown.status_code == 404
        assert unmarked(hidden) == unmarked(unknown).replace("xxxxxx", "models")
        assert hidden.headers.pop("X-Request-Id") != unknown.headers.pop("X-Request-Id")
        assert dict(hidden.headers) == dict(unknown.headers)


def test_a_tag_that_was_pushed_a_second_ago_is_found(tmp_path, serve) -> None:
    origin = GitRepository(tmp_path / "origin.git")
    origin.commit(MODEL)
    origin.tag("m@v1.0.0")
    registry = serve({"team/models": origin})
    assert registry.ask().status_code == 200
    revision = origin.commit({"model.pkl.dvc": output("model.pkl", digest("2"))})
    origin.tag("m@v2.0.0")
    origin.tag("m#prod#1")
    registry.clock.now += 3

    assert registry.ask(version="v2.0.0").headers["X-Registry-Revision"] == revision
    assert registry.ask(stage="prod").headers["X-Registry-Revision"] == revision


def test_no_repository_gets_a_link_to_what_was_granted_to_another(tmp_path, serve) -> None:
    origin = GitRepository(tmp_path / "origin.git")
    origin.commit({**MODEL, ".dvc/config": remote("s3://tenant-a/dvc")})
    origin.tag("m@v1.0.0")
    granted = {"url": "s3://tenant-a", "repositories": ["tenant-a/*"], **S3_KEYS}

    theirs = serve({"tenant-a/models": origin}, [granted]).ask()
    ours = serve({"tenant-b/models": origin}, [granted], "var2").ask()

    assert theirs.status_code == 200
    assert ours.status_code == 422
    assert "s3://tenant-a/dvc" in ours.json["detail"]
    assert "tenant-b/models" in ours.json["detail"]


def test_a_place_of_its_own_inside_a_shared_location_stays_private(tmp_path, serve) -> None:
    origin = GitRepository(tmp_path / "origin.git")
    origin.commit({**MODEL, ".dvc/config": remote("s3://bucket/shared/private/x")})
    origin.tag("m@v1.0.0")
    shared = {"url": "s3://bucket/shared", "repositories": ["*"], **S3_KEYS}
    private = {"url": "s3://bucket/shared/private", "repositories": ["boss/*"], **S3_KEYS}

    answers = [
        serve({name: origin}, [shared, private], name.replace("/", "-")).ask().status_code
        for name in ("boss/models", "team/models")
    ]

    assert answers == [200, 422]


def test_a_place_beside_a_location_with_the_same_beginning_is_not_granted(publish) -> None:
    files = {**MODEL, ".dvc/config": remote("s3://bucket/dvc-secret")}

    assert publish(files).ask().status_code == 422


@pytest.mark.parametrize("kind", ["file", "directory"])
def test_an_endpoint_in_a_repository_is_never_contacted(publish, store, kind) -> None:
    files = directory(store, listing(FILES)) if kind == "directory" else MODEL
    with WebServer() as attacker:
        evil = f"    endpointurl = {attacker.url}\n    use_ssl = false\n    ssl_verify = false\n"
        config = remote("s3://bucket/dvc", more=evil)
        registry = publish({**files, ".dvc/config": config}, storage=[])

        answer = registry.ask()

        assert attacker.requests == []
    assert answer.status_code == 422
    assert "s3://bucket/dvc" in answer.json["detail"]
    assert_one_line(answer)


def test_a_web_server_in_a_repository_is_never_contacted_unless_it_was_granted(
    publish, store
) -> None:
    with WebServer() as attacker:
        config = remote(f"{attacker.url}/dvc")
        registry = publish(
            {**directory(store, listing(FILES)), ".dvc/config": config}, storage=granted(store)
        )

        answer = registry.ask()

        assert attacker.requests == []
    assert (answer.status_code, attacker.url in answer.json["detail"]) == (422, True)


def test_knowing_the_md5_of_a_directory_is_no_way_to_read_it_from_the_cache(
    tmp_path, serve, store
) -> None:
    files = directory(store, listing(FILES))
    ours, theirs = (GitRepository(tmp_path / f"{name}.git") for name in ("ours", "theirs"))
    for origin, config in ((theirs, remote(store.url)), (ours, remote(f"{store.url}2"))):
        origin.commit({**files, ".dvc/config": config})
        origin.tag("m@v1.0.0")
    storage = [
        {"url": store.url, "repositories": ["theirs/m"]},
        {"url": f"{store.url}2", "repositories": ["ours/m"]},
    ]
    registry = serve({"theirs/m": theirs, "ours/m": ours}, storage)

    assert registry.ask(repo="theirs/m").status_code == 200
    assert registry.ask(repo="ours/m").status_code == 424


def test_the_clock_decides_when_links_end(publish) -> None:
    registry = publish(MODEL, link_lifetime=60)

    answer = registry.ask()

    assert answer.headers["X-Registry-Expires"] == "2027-01-15T08:01:00Z"
    assert "X-Amz-Expires=60&" in answer.json["model.pkl"]
    assert registry.clock() == NOW


@pytest.mark.parametrize("url", ["s3://bucket", "s3://bucket/", "s3://bucket/dvc/"])
def test_a_place_that_is_no_object_is_not_signed_for_since_the_link_would_list_it(
    publish, url
) -> None:
    imported = f"deps:\n- {{path: '{url}', etag: x}}\nouts:\n- {{path: m.bin}}\n"
    everything = [{"url": "s3://bucket", "repositories": ["*"], **S3_KEYS}]

    answer = publish(
        {**DVC, "dvc.yaml": artifacts(m="m.bin"), "m.bin.dvc": imported}, storage=everything
    ).ask()

    links = answer.json if answer.status_code == 200 else {}
    assert all(place(link) != "s3://bucket/" for link in links.values())
    assert answer.status_code == (200 if url == "s3://bucket/dvc/" else 422)


def test_what_stands_where_a_bucket_belongs_is_not_repeated_with_its_password(publish) -> None:
    config = remote("s3://AKIAX:canary@bucket/dvc")

    answer = publish(
        {".dvc/config": config, "dvc.yaml": artifacts(m="m"), "m.dvc": output("m", digest("1"))}
    ).ask()

    assert answer.status_code == 422
    assert "canary" not in answer.text


@pytest.mark.parametrize("path", [".git/config", "sub/.GIT/hooks/x", ".git./config"])
def test_nothing_is_served_into_the_directory_of_git(publish, path) -> None:
    files = {**DVC, "dvc.yaml": artifacts(m=path)}

    assert publish(files).ask().status_code == 422


def test_a_tag_with_a_line_separator_of_another_alphabet_harms_nobody(tmp_path, serve) -> None:
    origin = GitRepository(tmp_path / "origin.git")
    origin.commit({**DVC, "dvc.yaml": artifacts(m="m"), "m.dvc": output("m", digest("1"))})
    origin.tag("m@v1.0.0")
    for separator in ("\u2028", "\u2029", "\x85"):
        origin.tag(f"m#a{separator}b")

    answer = serve({"team/models": origin}).ask()

    assert (answer.status_code, answer.headers["X-Registry-Tag"]) == (200, "m@v1.0.0")


def test_two_logins_for_one_place_cannot_both_go_through_the_gateway(tmp_path, serve) -> None:
    place_of = {"url": "http://127.0.0.1:1/store", "signing": "gateway"}
    twins = [{**place_of, "repositories": [name]} for name in ("team/a", "team/b")]

    with pytest.raises(SettingsError, match="listed twice"):
        serve({}, twins)


class TestTheSameQuestionWithinASecond:
    """A hundred pipelines that start at once ask for one model."""

    def test_it_has_the_same_answer_with_an_id_and_an_audit_row_of_its_own(self, acme) -> None:
        first, second = acme.ask(), acme.ask()

        assert second.data == first.data
        ids = [answer.headers.pop("X-Request-Id") for answer in (first, second)]
        assert sorted(first.headers) == sorted(second.headers)
        acme.services.audit.close()
        rows = [json.loads(row.record) for row in acme.services.audit.rows()]
        assert [row["request"] for row in rows] == ids
        assert {row["decision"] for row in rows} == {"granted"}

    def test_a_token_that_may_not_see_the_repository_learns_nothing_from_it(self, acme) -> None:
        assert acme.ask().status_code == 200

        assert acme.ask(token=acme.token("other/*")).status_code == 404
        assert acme.ask(token=acme.token(scopes=["metrics:read"])).status_code == 403
        assert acme.ask(token="reg_nobody").status_code == 401

    def test_a_revoked_token_is_refused(self, acme) -> None:
        token = acme.token()
        assert acme.ask(token=token).status_code == 200
        acme.services.access.revoke(acme.services.access.principal(token).id)
        acme.clock.now += 3

        assert acme.ask().status_code == 200
        assert acme.ask(token=token).status_code == 401

    def test_the_next_second_has_links_of_its_own(self, acme) -> None:
        first = acme.ask()
        acme.clock.now += 1

        assert acme.ask().data != first.data
