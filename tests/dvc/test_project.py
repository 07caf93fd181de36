"""Which output holds a path, and what an artifact is, at one revision."""

from contextlib import suppress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from registry.domain import ArtifactName, Digest, RelPath
from registry.dvc import config, yaml
from registry.dvc.output import OutputFile, RepoImport, UrlImport
from registry.dvc.project import Project, is_metadata
from registry.errors import ArtifactNotFound, InvalidMetadata, RemoteUnusable, UnsafePath

CONFIG = "[core]\n    remote = s\n['remote \"s\"']\n    url = s3://bkt/pre\n"
A, B, C = (digit.rjust(32, "0") for digit in "abc")
REV = "c" * 40


class Tree:
    """The files of a revision by path, as Git would give them; `reads` records which were read."""

    def __init__(self, files):
        self.files = {".dvc/config": CONFIG, **files}
        self.reads = []
        paths = [RelPath.parse(path) for path in self.files if is_metadata(path)]
        self.project = Project(paths, self.load, self.config)

    def load(self, path):
        self.reads.append(str(path))
        text = self.files.get(path)
        return None if text is None else yaml.load(text.encode(), path)

    def config(self, path):
        return config.parse(self.files.get(path, "").encode(), path)


def project(files):
    return Tree(files).project


def outputs(files, path):
    return project(files).outputs(RelPath(path))


def only(files, path):
    (output,) = outputs(files, path)
    return output


def artifact(files, name):
    return project(files).artifact(ArtifactName.parse(name))


def out(path, md5=A, hashed="hash: md5, ", more=""):
    return f"outs:\n- {{md5: {md5}, size: 3, {hashed}path: {path}{more}}}\n"


def lock(**stages):
    """A dvc.lock; each stage is given as a mapping of output paths to MD5s."""
    text = "schema: '2.0'\nstages:\n"
    for name, recorded in stages.items():
        text += f"  {name.replace('__', '@')}:\n    cmd: x\n    outs:\n"
        for path, md5 in recorded.items():
            text += f"    - {{path: {path}, hash: md5, md5: {md5}, size: 3}}\n"
    return text


@pytest.mark.parametrize(
    ("path", "expected"),
    [
        *[("dvc.yaml", True), ("a/dvc.lock", True), ("a/x.dvc", True), ("artifacts.yaml", True)],
        *[(".dvc/config", True), ("sub/.dvc/.gitignore", True), ("a/artifacts.yaml", False)],
        *[("a/.dvc", False), ("params.yaml", False), (".dvc/tmp/x", False), ("dvc.yml", False)],
    ],
)
def test_metadata_files_are_known_by_their_names(path, expected):
    assert is_metadata(path) is expected


# Artifacts


@pytest.mark.parametrize(
    ("file", "written", "name", "path"),
    [
        ("dvc.yaml", "model.pkl", "m", "model.pkl"),
        ("dvc.yaml", "./data/", "m", "data"),
        ("dvc.yaml", "data\\a", "m", "data/a"),
        ("path/to/dvc.yaml", "sub.pkl", "path/to:m", "path/to/sub.pkl"),
        ("path/to/dvc.yaml", "../../model.pkl", "path/to/dvc.yaml:m", "model.pkl"),
        ("dvc.yaml", "'${dir}/${names[1]}.bin'", "m", "w/y.bin"),
    ],
)
def test_the_path_of_an_artifact_is_relative_to_its_dvc_yaml(file, written, name, path):
    files = {file: f"artifacts: {{m: {{path: {written}}}}}", "params.yaml": "dir: w\nnames: [x, y]"}

    assert artifact(files, name).path == path


def test_an_artifact_has_its_annotations():
    text = "artifacts: {m: {path: p, type: model, desc: d, labels: [a, 1, b], meta: {k: 1}, x: y}}"
    found = artifact({"dvc.yaml": text}, "m")

    assert (found.type, found.description, found.labels) == ("model", "d", ("a", "b"))
    assert found.meta == {"k": 1}


def test_of_the_whole_file_only_the_path_has_to_be_right():
    text = "artifacts: {m: {path: p, labels: 3}, n: x, o: {path: '${no}'}}\nstages: [broken]\n"

    assert artifact({"dvc.yaml": text, "params.yaml": "{"}, "m").path == "p"
    for name in ("n", "o"):
        with pytest.raises(InvalidMetadata):
            artifact({"dvc.yaml": text}, name)


@pytest.mark.parametrize("path", ["../x", "/abs", "C:/x", "a/../../x", '"a\\nb"'])
def test_an_artifact_must_lie_inside_the_repository(path):
    with pytest.raises((UnsafePath, InvalidMetadata)):
        artifact({"dvc.yaml": f"artifacts: {{m: {{path: {path}}}}}"}, "m")


@pytest.mark.parametrize("files", [{}, {"dvc.yaml": ""}, {"dvc.yaml": "artifacts: {n: {path: x}}"}])
def test_an_artifact_that_is_not_declared_is_not_found(files):
    with pytest.raises(ArtifactNotFound, match=r"not declared in a/dvc\.yaml at this revision"):
        artifact({f"a/{path}": text for path, text in files.items()}, "a:m")


def test_a_name_with_a_slash_is_no_directory():
    with pytest.raises(ArtifactNotFound):
        artifact({"a/dvc.yaml": "artifacts: {b: {path: x}}"}, "a/b")


def test_a_broken_dvc_yaml_is_no_missing_artifact():
    for text in ("{", "[]", "x"):
        with pytest.raises(InvalidMetadata):
            artifact({"dvc.yaml": text}, "m")


def test_the_legacy_artifacts_yaml_counts_after_dvc_yaml():
    legacy = "m: {type: model, path: old, description: d, custom: 1}\nn: {path: x}\n"
    files = {"artifacts.yaml": legacy, "dvc.yaml": "artifacts: {n: {path: new}}"}

    assert artifact(files, "m").path == "old"
    assert (artifact(files, "m").description, artifact(files, "m").meta) == ("d", 1)
    assert artifact(files, "n").path == "new"
    with pytest.raises(ArtifactNotFound):
        artifact(files, "sub:m")
    with pytest.raises(ArtifactNotFound):
        artifact(files, "other")


def test_an_artifact_may_lie_in_external_storage():
    text = "artifacts: {m: {path: 's3://mycorp/p/m.pt'}, r: {path: 'remote://s/x'}}"

    assert str(artifact({"dvc.yaml": text}, "m").url) == "s3://mycorp/p/m.pt"
    assert artifact({"dvc.yaml": text}, "m").path is None
    assert str(artifact({"dvc.yaml": text}, "r").url) == "s3://bkt/pre/x"
    with pytest.raises(RemoteUnusable):
        artifact({"dvc.yaml": "artifacts: {m: {path: 'oss://x/y'}}"}, "m")


# Outputs of .dvc files


def test_a_dvc_file_holds_its_output():
    found = only({"model.pkl.dvc": out("model.pkl")}, "model.pkl")

    assert (found.path, found.file, found.root) == ("model.pkl", "model.pkl.dvc", "")
    assert (found.digest, found.legacy, found.size) == (Digest(A), False, 3)
    assert (found.remote, found.cached, found.files) == (None, True, None)


def test_an_output_without_hash_was_laid_out_by_dvc_2():
    assert only({"m.dvc": out("m", hashed="")}, "m").legacy


@pytest.mark.parametrize("path", ["data", "data/a", "data/a/b.txt"])
def test_a_directory_holds_what_is_in_it(path):
    found = only({"data.dvc": out("data", A + ".dir")}, path)

    assert (found.path, found.digest) == ("data", Digest(A + ".dir"))


def test_a_directory_that_contains_outputs_gives_them_all():
    files = {
        "mixed/b.dvc": out("b"),
        "mixed/deep/dvc.yaml": "stages: {t: {cmd: x, outs: [c, ../../other]}}",
        "mixed/deep/dvc.lock": lock(t={"c": C, "../../other": B}),
        "x/wdir.dvc": "wdir: ../mixed\n" + out("a"),
        "mixedup.dvc": out("mixedup"),
    }

    assert [output.path for output in outputs(files, "mixed")] == [
        "mixed/a",
        "mixed/b",
        "mixed/deep/c",
    ]
    assert len(outputs(files, "")) == 5


def test_a_dvc_file_of_dvc_1_is_read():
    text = f"wdir: ..\nlocked: true\nouts:\n- {{md5: {A}, path: a, metric: false, cache: true}}\n"
    text += f"- {{md5: {B}, path: b, persist: false}}\n"

    assert only({"sub/Dvcfile.dvc": text}, "b").digest == Digest(B)


@pytest.mark.parametrize("path", ["gone", "model.pkl.dvc", "model"])
def test_what_dvc_does_not_track_has_no_outputs(path):
    assert outputs({"model.pkl.dvc": out("model.pkl")}, path) == ()


def test_of_two_declarations_the_dvc_file_counts():
    files = {
        "dvc.yaml": "stages: {t: {cmd: x, outs: [m]}}",
        "dvc.lock": lock(t={"m": B}),
        "z.dvc": out("m", A),
    }

    assert only(files, "m").digest == Digest(A)


def test_the_usual_case_reads_one_file():
    tree = Tree({f"data/{n}.dvc": out(n) for n in "abcm"} | {"dvc.yaml": "", "m.dvc": out("m")})
    tree.project.outputs(RelPath("data/m"))

    assert tree.reads == ["data/m.dvc"]


@pytest.mark.parametrize(
    ("more", "cached", "remote"),
    [("", True, None), (", cache: false", False, None), (", push: false, remote: R", True, "R")],
)
def test_flags_of_a_dvc_file_are_read(more, cached, remote):
    found = only({"m.dvc": out("m", more=more)}, "m")

    assert (found.cached, found.remote) == (cached, remote)


@pytest.mark.parametrize(
    "text",
    [
        out("m", "../../../secret"),
        out("m", A.upper()),
        out("m", "1" * 32),
        out("m", hashed="hash: sha256, "),
        out("m", more=", files: [{relpath: ../x}]").replace("../x", "a, md5: zz"),
    ],
)
def test_a_wanted_output_must_be_sound(text):
    with pytest.raises(InvalidMetadata):
        outputs({"m.dvc": text}, "m")

    assert only({"m.dvc": text, "n.dvc": out("n")}, "n").digest == Digest(A)


def test_a_broken_file_on_the_way_is_not_nothing():
    for files in (
        {"a/m.dvc": "{"},
        {"a/other.dvc": "[]"},
        {"a.dvc": "{"},
        {"dvc.yaml": "{"},
        {"a/dvc.yaml": "stages: {t: {cmd: x, outs: [m]}}", "a/dvc.lock": "{"},
        {"a/m.dvc": out("../../x")},
    ):
        with pytest.raises((InvalidMetadata, UnsafePath)):
            outputs(files, "a/m")
    with pytest.raises(InvalidMetadata):
        outputs({"a/x.dvc": "{", "a/y.dvc": out("y")}, "a")


def test_a_broken_file_elsewhere_is_no_harm():
    broken = {"b/m.dvc": "{", "other.dvc": "{", "b/dvc.yaml": "{", "a/n/dvc.yaml": "[]"}

    assert only({**broken, "a/m.dvc": out("m")}, "a/m").digest == Digest(A)
    assert only({**broken, "dvc.yaml": "{", "a/m.dvc": out("m")}, "a/m").digest == Digest(A)
    assert outputs(broken, "a/m") == ()


# DVC roots and remotes


def test_a_path_belongs_to_the_deepest_dvc_root():
    files = {
        "sub/.dvc/config": CONFIG.replace("bkt/pre", "subbkt/subpre"),
        "sub/s.dvc": out("s"),
        "sub/deep/d.dvc": out("d"),
        "steal.dvc": out("sub"),
        "sub/up.dvc": out("../top"),
    }

    for path in ("sub/s", "sub/deep/d"):
        found = only(files, path)
        assert (found.path, found.root) == (path, "sub")
        assert str(project(files).remote_of(found).url) == "s3://subbkt/subpre"
    assert len(outputs(files, "sub")) == 2
    assert outputs(files, "top") == ()


def test_a_path_outside_of_every_dvc_root_says_so():
    tree = Tree({"x/m.dvc": out("m"), "y/.dvc/config": ""})
    paths = [RelPath("x/m.dvc"), RelPath("y/.dvc/config")]

    with pytest.raises(RemoteUnusable, match="no DVC repository at 'x/m'"):
        Project(paths, tree.load, tree.config).outputs(RelPath("x/m"))


def test_files_in_dvc_directories_declare_nothing():
    assert outputs({".dvc/m.dvc": "wdir: ..\n" + out("m")}, "m") == ()


def test_an_output_may_name_its_remote():
    more = "['remote \"o\"']\nurl = s3://other/opre\n"
    files = {".dvc/config": CONFIG + more, "m.dvc": out("m", more=", remote: O"), "n.dvc": out("n")}

    assert str(project(files).remote_of(only(files, "m")).url) == "s3://other/opre"
    assert str(project(files).remote_of(only(files, "n")).url) == "s3://bkt/pre"
    assert project(files).config_of(only(files, "n")).default == "s"


# Cloud versions and imports


def test_a_cloud_version_pins_a_file():
    more = ", cloud: {va: {etag: x, version_id: V}}"

    assert only({"m.dvc": out("m", more=more)}, "m").version_id == "V"
    assert only({"m.dvc": out("m", more=", version_id: W")}, "m").version_id == "W"


def test_a_cloud_versioned_directory_lists_its_files():
    text = f"""
outs:
- path: dd
  hash: md5
  files:
  - {{relpath: a.txt, md5: {A}, size: 3, cloud: {{va: {{etag: x, version_id: V}}}}}}
  - {{relpath: b/c, md5: {B}, size: 4}}
"""
    found = only({"dd.dvc": text}, "dd/b")

    assert found.digest is None
    assert found.files == (
        OutputFile(RelPath("a.txt"), A, 3, "V"),
        OutputFile(RelPath("b/c"), B, 4, None),
    )


@pytest.mark.parametrize("paths", [["../x"], ["/x"], ["a", "a"], ["a", "a/b"], [""]])
def test_listed_files_must_be_safe(paths):
    listed = ", ".join(f"{{relpath: '{path}', md5: {A}}}" for path in paths)

    with pytest.raises(UnsafePath):
        outputs({"d.dvc": f"outs: [{{path: d, hash: md5, files: [{listed}]}}]"}, "d")


def imported(dependency, output=f"md5: {A}, size: 1, hash: md5, "):
    return f"frozen: true\ndeps:\n- {dependency}\nouts:\n- {{{output}path: m}}\n"


def test_an_import_leads_to_another_repository():
    repo = f"{{url: 'https://git.example/x.git', rev: main, rev_lock: {REV}, remote: big}}"
    found = only({"m.dvc": imported(f"{{path: ./a/x.bin, repo: {repo}}}")}, "m")

    assert found.repo_import == RepoImport(
        "https://git.example/x.git", REV, RelPath("a/x.bin"), "big"
    )


@pytest.mark.parametrize(
    "repo",
    [
        "{url: u}",
        "{url: u, rev_lock: main}",
        f"{{rev_lock: {REV}}}",
        f"{{url: u, rev_lock: {REV}, config: {{core: {{remote: x}}}}}}",
        f"{{url: u, rev_lock: {REV}, remote: {{url: x}}}}",
    ],
)
def test_an_import_that_cannot_be_followed_says_so(repo):
    with pytest.raises(InvalidMetadata):
        outputs({"m.dvc": imported(f"{{path: x, repo: {repo}}}")}, "m")


def test_a_downloaded_url_is_in_the_own_remote():
    dependency = "{etag: abc, size: 1, hash: etag, path: 's3://src/obj.bin'}"

    assert only({"m.dvc": imported(dependency)}, "m").url_import is None


@pytest.mark.parametrize(
    ("dependency", "output", "expected"),
    [
        ("{etag: a, path: 's3://src/o'}", "hash: md5, ", UrlImport("s3://src/o", None, None)),
        (
            "{etag: a, version_id: VID, path: 's3://src/o'}",
            f"md5: {A}, hash: md5, push: false, ",
            UrlImport("s3://src/o", "VID", None),
        ),
        ("{path: 's3://src/o?versionId=W'}", "", UrlImport("s3://src/o", "W", None)),
        (
            "{path: 's3://src/d', files: [{relpath: a, etag: x, version_id: V, size: 2}]}",
            f"md5: {A}.dir, hash: md5, ",
            UrlImport("s3://src/d", None, (OutputFile(RelPath("a"), None, 2, "V"),)),
        ),
    ],
)
def test_a_url_without_a_copy_is_read_at_its_source(dependency, output, expected):
    assert only({"m.dvc": imported(dependency, output)}, "m").url_import == expected


# Outputs of stages

PIPELINE = """
stages:
  t:
    cmd: x
    wdir: ${dir}
    outs:
    - out.bin: {remote: o, push: false}
    - old.bin
    - ../up.bin
    - nc.bin: {cache: false}
    - nolock.bin
    metrics:
    - m.json: {cache: false}
    plots:
    - p.csv: [{x: a}, {x: b}]
    - q.csv: {cache: '${no}', x: a}
plots: [w/top.csv]
metrics: [w/top.json]
"""
LOCK = f"""
schema: '2.0'
stages:
  t:
    cmd: x
    outs:
    - {{path: out.bin, hash: md5, md5: {A}, size: 1}}
    - {{path: old.bin, md5: {B}, size: 1}}
    - {{path: ../up.bin, hash: md5, md5: {C}, size: 1}}
    - {{path: nc.bin, hash: md5, md5: {A}, size: 1}}
    - {{path: p.csv, hash: md5, md5: {A}, size: 1}}
  gone:
    cmd: x
    outs:
    - {{path: gone.bin, hash: md5, md5: {A}}}
"""
STAGED = {"params.yaml": "dir: w\nno: off\n", "dvc.yaml": PIPELINE, "dvc.lock": LOCK}


@pytest.mark.parametrize(
    ("path", "digest", "legacy", "remote", "cached"),
    [
        ("w/out.bin", Digest(A), False, "o", True),
        ("w/old.bin", Digest(B), True, None, True),
        ("up.bin", Digest(C), False, None, True),
        ("w/nc.bin", Digest(A), False, None, False),
        ("w/nolock.bin", None, True, None, True),
        ("w/m.json", None, True, None, False),
        ("w/p.csv", Digest(A), False, None, True),
    ],
)
def test_outputs_of_stages_have_flags_and_hashes(path, digest, legacy, remote, cached):
    found = only(STAGED, path)

    assert (found.path, found.file) == (path, "dvc.yaml")
    assert (found.digest, found.legacy) == (digest, legacy)
    assert (found.remote, found.cached) == (remote, cached)


@pytest.mark.parametrize("path", ["gone.bin", "w/gone.bin", "w/top.csv", "w/top.json"])
def test_stale_lock_entries_and_top_level_plots_are_no_outputs(path):
    assert outputs(STAGED, path) == ()


def test_a_lock_of_dvc_1_is_read():
    files = {
        "dvc.yaml": "stages: {t: {cmd: x, outs: [o.bin]}}",
        "dvc.lock": f"t:\n  cmd: x\n  outs:\n  - {{path: o.bin, md5: {A}}}\n",
    }

    assert (only(files, "o.bin").digest, only(files, "o.bin").legacy) == (Digest(A), True)


def test_a_lock_of_an_unknown_schema_is_refused():
    files = {"dvc.yaml": "stages: {t: {cmd: x, outs: [o]}}", "dvc.lock": "schema: '3.0'\n"}

    with pytest.raises(InvalidMetadata, match=r"dvc\.lock"):
        outputs(files, "o")


LOOPS = r"""
vars: [{v: 1}, extra.yaml, 'keys.yaml:k1,k2', {params: {m: {three: {p: s}}}}]
stages:
  plain:
    cmd: x
    wdir: ${params.a.b[0]}
    outs: ['${params.a.b[1]}.bin', 'p\${q}', 'n${params.n}', 't${ params.t }', 'z${v}${w}${k1}',
           'o${params.e}', 'neg${params.a.b[-1]}']
  each: {foreach: '${params.m}', do: {cmd: x, outs: ['${key}-${item.p}.bin']}}
  lst:
    foreach: ${params.lst}
    do: {cmd: x, wdir: '${item}', vars: [{loc: 5}], outs: ['f${loc}']}
  mix: {foreach: [{a: 1}, 2], do: {cmd: x, outs: ['mix${item}.bin']}}
  nums: {foreach: [1, 2.5, true, null], do: {cmd: x, outs: ['n-${item}']}}
  comp: {foreach: [{a: 1}, {a: 2}], do: {cmd: x, outs: ['c${item.a}.bin']}}
  mx:
    matrix: {os: [linux, mac], n: [1, 2.0], model: [{d: x}, '${params.lst}'], flag: [true]}
    cmd: x
    outs: ['${key}.bin', '${item.os}/${item.n}-${key}']
"""
LOOP_FILES = {
    "dvc.yaml": LOOPS,
    "params.yaml": "params: {a: {b: [x, y]}, t: true, n: 1.50, e: null, lst: [u, v],"
    " m: {one: {p: q}, two: {p: r}}}",
    "extra.yaml": "w: W",
    "keys.yaml": "k1: K\nk2: 2\nv: 9\n",
}


@pytest.mark.parametrize(
    ("stage", "recorded", "path"),
    [
        ("plain", "y.bin", "x/y.bin"),
        ("plain", "p${q}", "x/p${q}"),
        ("plain", "n1.5", "x/n1.5"),
        ("plain", "ttrue", "x/ttrue"),
        ("plain", "z1WK", "x/z1WK"),
        ("plain", "oNone", "x/oNone"),
        ("plain", "negy", "x/negy"),
        ("each@one", "one-q.bin", "one-q.bin"),
        ("each@two", "two-r.bin", "two-r.bin"),
        ("each@three", "three-s.bin", "three-s.bin"),
        ("lst@u", "f5", "u/f5"),
        ("lst@v", "f5", "v/f5"),
        ("mix@1", "mix2.bin", "mix2.bin"),
        ("nums@2.5", "n-2.5", "n-2.5"),
        ("nums@true", "n-true", "n-true"),
        ("nums@None", "n-None", "n-None"),
        ("comp@1", "c2.bin", "c2.bin"),
        ("mx@linux-1-model0-true", "linux-1-model0-true.bin", "linux-1-model0-true.bin"),
        ("mx@mac-2.0-model1-true", "mac/2.0-mac-2.0-model1-true", "mac/2.0-mac-2.0-model1-true"),
    ],
)
def test_stages_of_loops_and_their_outputs_are_called_as_dvc_3_67_calls_them(stage, recorded, path):
    files = {**LOOP_FILES, "dvc.lock": lock(**{stage: {f"'{recorded}'": C}})}

    assert only(files, path).digest == Digest(C)


def test_outputs_in_external_storage_are_not_ours():
    stage = "stages: {t: {cmd: x, outs: ['s3://b/k', '${v}']}}"
    files = {"dvc.yaml": stage, "params.yaml": "v: 's3://b/l'", "x.dvc": out("'s3://b/m'")}

    assert outputs(files, "") == ()


def test_values_are_not_templates():
    files = {
        "params.yaml": "a: '${b}'\nb: '${a}'\n",
        "dvc.yaml": "stages: {t: {cmd: x, outs: ['${a}']}}",
    }

    assert only(files, "${b}").path == "${b}"


BAD_TEMPLATES = [
    "${no}",
    "${a.x}",
    "${l[9]}",
    "${d}",
    "x${l}",
    "${}",
    "${a[}",
    "${" + "a" * 5000 + "}",
]


@pytest.mark.parametrize("template", BAD_TEMPLATES)
def test_a_template_without_a_value_matters_only_to_its_own_outputs(template):
    files = {
        "params.yaml": "a: 1\nl: [1]\nd: {k: v}\n",
        "dvc.yaml": f"stages: {{t: {{cmd: x, outs: [good, '{template}']}}, u: {{cmd: x}}}}",
    }
    locked = {**files, "dvc.lock": lock(t={"good": A, "dir/bad": B})}

    assert only(locked, "good").digest == Digest(A)
    assert outputs(locked, "other") == ()
    assert outputs(files, "dir/bad") == ()
    for path in ("dir/bad", "dir"):
        with pytest.raises(InvalidMetadata):
            outputs(locked, path)


@pytest.mark.parametrize(
    "stage",
    [
        "{cmd: x, wdir: '${no}', outs: [o]}",
        "{cmd: x, vars: [{a: 1}], wdir: '${a}', outs: [o]}",
        "{foreach: '${no}', do: {cmd: x, outs: [o]}}",
        "{matrix: {a: '${no}'}, cmd: x, outs: [o]}",
        "{cmd: x, vars: [broken.yaml], outs: ['${no}']}",
        "{cmd: x, vars: [../../broken.yaml], outs: ['${no}']}",
    ],
)
def test_a_stage_that_was_run_but_cannot_be_resolved_is_not_nothing(stage):
    files = {"broken.yaml": "{", "dvc.yaml": f"stages: {{t: {stage}, u: {{cmd: x, outs: [p]}}}}"}
    locked = {**files, "dvc.lock": lock(t={"o": A}, t__k={"o": A})}

    assert outputs(files, "o") == ()
    assert only(files, "p").path == "p"
    with pytest.raises((InvalidMetadata, UnsafePath)):
        outputs(locked, "o")


EXPANSIONS = [
    "a: {foreach: [" + "1, " * 20_000 + "], do: {cmd: x, outs: [" + "x, " * 20_000 + "]}}",
    "a: {matrix: {" + ", ".join(f"a{n}: [1, 2]" for n in range(5000)) + "}, cmd: x}",
    "a: {cmd: x, vars: [" + "{a: 1}, " * 10_000 + "], outs: ['${no}']}",
    "a: {foreach: [" + "1, " * 20_000 + "], do: {vars: [p.yaml], outs: ['${no}']}}",
    "? " + "n" * 400_000 + "\n  : {foreach: [" + "1, " * 50_000 + "], do: {outs: [x]}}",
    "a: {matrix: {i: [" + "1, " * 50_000 + "], l: [" + "n" * 400_000 + "]}, outs: [x]}",
    "\n  ".join(f"a{n}: {{foreach: '${{no}}', do: {{}}}}" for n in range(3000)),
]


@pytest.mark.parametrize("stages", EXPANSIONS)
def test_expansion_has_an_end(stages):
    files = {
        "dvc.yaml": f"stages:\n  {stages}\n",
        "dvc.lock": lock(**{f"z{n}": {} for n in range(1000)}),
    }
    tree = Tree(files)

    with suppress(InvalidMetadata):
        assert tree.project.outputs(RelPath("wanted")) == ()
    assert len(tree.reads) < 10_000


PARTS = st.sampled_from(["a", "b", "..", ".", "a/b", "../a", "../../..", "/a", "${v}", "c:", "\\"])


@given(st.lists(PARTS, max_size=4), PARTS, PARTS, st.sampled_from(["m.dvc", "a/b/m.dvc"]))
def test_no_output_ever_leaves_the_repository(wdir, path, wanted, file):
    text = f"wdir: '{'/'.join(wdir)}'\nouts:\n- {{md5: {A}, hash: md5, path: '{path}'}}\n"
    stage = f"stages: {{t: {{cmd: x, wdir: '{'/'.join(wdir)}', outs: ['{path}']}}}}"
    files = {file: text, "a/dvc.yaml": stage, "a/params.yaml": "v: ../../.."}
    for start in ("", "a", "a/b"):
        try:
            found = outputs(files, start)
        except UnsafePath:
            continue
        for output in found:
            assert RelPath.parse(output.path) == output.path


COSTLY = "stages:\n" + "".join(
    f"  s{number}:\n    matrix: {{a: {list(range(100))}, b: {list(range(100))}}}\n"
    "    outs: ['${item.a}-${item.b}']\n"
    for number in range(20)
)


def test_all_files_of_a_search_share_one_bound_on_what_they_may_cost():
    tree = Tree({f"d{number}/dvc.yaml": COSTLY for number in range(20)})

    assert tree.project.outputs(RelPath("absent")) == ()

    assert len({path for path in tree.reads if path.endswith("dvc.yaml")}) < 5


def test_files_elsewhere_that_are_made_to_cost_much_hide_no_output():
    costly = {f"d{number}/dvc.yaml": COSTLY for number in range(20)}
    pipeline = {"dvc.yaml": "stages: {t: {outs: [m]}}", "dvc.lock": lock(t={"m": A})}

    assert only({**costly, **pipeline}, "m").digest == Digest(A)
    assert only({**costly, "z/far.dvc": "wdir: ..\n" + out("m")}, "m").digest == Digest(A)
