"""What is fuzzed: a function of bytes for everything that reads what strangers wrote.

Each also checks what must hold of an answer, so that a wrong one is a crash too.
"""

import json
from base64 import b64encode
from collections.abc import Callable, Mapping
from contextlib import suppress
from datetime import datetime, timezone
from hashlib import md5, sha256
from pathlib import Path

from cryptography.hazmat.primitives.asymmetric.ec import SECP256R1, derive_private_key
from jwt import PyJWS
from jwt.algorithms import ECAlgorithm

from registry import gto
from registry.domain import (
    ArtifactName,
    Digest,
    Entry,
    RelPath,
    Selector,
    StorageUrl,
    canonical_repository,
)
from registry.dvc import config, manifest, yaml
from registry.dvc.project import Project
from registry.errors import RegistryError
from registry.federation import LONGEST_LIFE, Federation, Issuer, Rule
from registry.federation.keys import parse
from registry.receipt import Receipt, canonical
from registry.repository.inscription import LONGEST_MESSAGE, Inscription
from registry.repository.origin import Origin
from registry.storage import Origin as Source
from registry.storage import Reader
from registry.storage.gateway import GatewayLinks
from registry.tracking.query import Comparison
from registry.web.mlflow import filters, wire

Target = Callable[[bytes], object]

ALLOWED = (RegistryError, ValueError)
"""What a target may raise."""

_NOW = datetime(2027, 1, 15, tzinfo=timezone.utc)
_SIGNER = derive_private_key(1, SECP256R1())
_JWK = {**ECAlgorithm.to_jwk(_SIGNER.public_key(), as_dict=True), "kid": "k"}


class _Held:
    """The one key of an issuer, which is at hand."""

    def key(self, key_id: str) -> Mapping[str, object] | None:
        return _JWK if key_id == "k" else None


_RULE = Rule({"n/x": ("a*",)}, ("*",), ("models:read",), 60)
_ISSUER = Issuer("https://i", "r", ("ES256",), 0, True, (_RULE,), _Held())
_FEDERATION = Federation([_ISSUER], _NOW.timestamp)
_LINKS = GatewayLinks(["a key of nobody, which is long enough"], "https://registry.example")


def tag(data: bytes) -> None:
    """The name of a ref: what is read can be spelled, and read again as the same."""
    text = data.decode(errors="surrogateescape")
    event = gto.Event.parse(text)
    if event:
        assert gto.Event.parse(str(event)) == event
    names = text.split("\n")
    tags = [gto.Tag(name, None, at, annotated=True) for at, name in enumerate(names)]
    index = gto.Index(tags)
    for artifact in index.artifacts():
        history = index.history(artifact)
        assert not history.is_empty
        assert not history.versions


def selector(data: bytes) -> None:
    """The parameters of a question, a line each."""
    name, version, stage = [*data.decode(errors="replace").split("\n", 2), "", ""][:3]
    found = Selector.parse(name, version, stage)
    assert ArtifactName.parse(str(found.artifact)) == found.artifact
    _check(found.artifact.directory)


def document(data: bytes) -> None:
    """A YAML file."""
    yaml.load(data, "dvc.yaml")


def dvc_config(data: bytes) -> None:
    """A `.dvc/config`, and every remote in it."""
    parsed = config.parse(data, ".dvc/config")
    for name in [None, *parsed.options][:20]:
        try:
            remote = parsed.remote(name)
        except RegistryError:
            continue
        _check_place(remote.url)
    parsed.resolve(data.decode(errors="replace"))


def dir_object(data: bytes) -> None:
    """A `.dir` object that has the MD5 it is named by: hostile, and not broken on the way."""
    digest = Digest(md5(data, usedforsecurity=False).hexdigest() + ".dir")
    for entry in manifest.parse(data, digest, "x.dir", RelPath.ROOT, legacy=False):
        _check(entry.path)


def project(data: bytes) -> None:
    """The DVC files of a revision, each after a line `--- path`: all artifacts and outputs."""
    files: dict[str, bytes] = {".dvc/config": b"[core]\nremote = r\n"}
    for part in data.split(b"\n--- "):
        name, _, content = part.removeprefix(b"--- ").partition(b"\n")
        files[name.decode(errors="replace")] = content
    paths = {}
    for name, content in files.items():
        try:
            paths[RelPath.parse(name)] = content
        except RegistryError:
            continue

    def load(path: RelPath) -> object | None:
        return yaml.load(paths[path], path) if path in paths else None

    found = Project(set(paths), load, lambda path: config.parse(paths.get(path, b""), path))
    path = RelPath.ROOT
    with suppress(RegistryError):  # then all that there is is asked for
        path = found.artifact(ArtifactName.parse("m")).path or path
    _outputs(found, path)


def _outputs(project: Project, path: RelPath) -> None:
    try:
        outputs = project.outputs(path)
    except RegistryError:
        return
    for output in outputs:
        _check(output.path)
        for file in output.files or ():
            _check(file.path)
        try:
            project.remote_of(output)
        except RegistryError:
            continue


def repository_url(data: bytes) -> None:
    """A URL as the operator or a `dvc import` writes it, and as a question spells it."""
    text = data.decode(errors="surrogateescape")
    canonical_repository(text)
    origin = Origin.parse(text)
    assert not origin.url.startswith("-")
    assert origin.protocol in ("https", "http", "ssh", "file")
    assert Origin.parse(origin.url) == origin


def storage_url(data: bytes) -> None:
    """A URL of a store: what is read lies in the place that it spells, and nowhere above."""
    _check_place(StorageUrl.parse(data.decode(errors="surrogateescape")))


def gateway_token(data: bytes) -> None:
    """The token of a link: nothing that we did not sign opens, and whatever we sign does."""
    text = data.decode(errors="surrogateescape")
    try:
        _LINKS.open(text, _NOW)
    except RegistryError:
        pass
    else:
        raise AssertionError("a token that nobody signed opened")
    name = RelPath.parse(text)
    url = StorageUrl("file", "", f"store/{name}")
    token = _LINKS.link(url, Entry(name, name), _NOW.replace(year=2028)).rpartition("/")[2]
    opened = _LINKS.open(token, _NOW)
    assert (opened.url, opened.entry.key) == (url, name)


def id_token(data: bytes) -> None:
    """What is sent for an ID token: nothing that the issuer did not sign is good for anything."""
    text = data.decode(errors="replace")
    header = b64encode(json.dumps({"alg": "ES256", "kid": "k"}).encode(), b"-_").decode()
    for token in (text, f"{header}.{b64encode(data, b'-_').decode()}.{'A' * 86}".replace("=", "")):
        try:
            _FEDERATION.admit(token)
        except RegistryError:
            continue
        raise AssertionError("a token that nobody signed is good for something")


def claims(data: bytes) -> None:
    """The claims of a token that the issuer did sign: they fit the rule whole, or not at all."""
    admission = _FEDERATION.admit(PyJWS().encode(data, _SIGNER, "ES256", {"kid": "k"}))
    found = json.loads(data)
    assert found["iss"] == admission.issuer
    assert admission.name.isprintable()
    assert len(admission.name) <= 255
    assert admission.ends <= _NOW.timestamp() + LONGEST_LIFE


def keys(data: bytes) -> None:
    """What an issuer publishes: whatever key is found, it is there and has no private half."""
    for key_id, key in parse(data).items():
        assert key["kid"] == key_id
        assert "d" not in key


def message(data: bytes) -> None:
    """A body of MLflow's, of either generation, read as each kind of field."""
    for flavour in (wire.EARLY, wire.CURRENT):
        with suppress(RegistryError):
            _fields(wire.Message.of_body(data, flavour))


def _fields(read: wire.Message) -> None:
    for field in ("a", "run_id"):
        for kind in (read.text, read.needed, read.integer, read.moment, read.number):
            with suppress(RegistryError):
                kind(field)
        with suppress(RegistryError):
            assert 0 <= read.experiment_id(field) < 2**63
        with suppress(RegistryError):
            assert all(isinstance(text, str) for text in read.texts(field))
        with suppress(RegistryError):
            for part in read.messages(field):
                _fields(part)


def search_filter(data: bytes) -> None:
    """A filter of MLflow's: what is read can be written, and read again as the same."""
    text = data.decode(errors="replace")
    for language in (filters.SEED, filters.RUNS, filters.EXPERIMENTS, filters.MODELS):
        with suppress(RegistryError):
            assert len(filters.parse(text, language)) <= filters.CLAUSES
        with suppress(RegistryError):
            filters.parse_orders([text], language)
    try:
        found = filters.parse(text, filters.SEED)
    except RegistryError:
        return
    written = " AND ".join(map(_written, found))
    assert "`" in text or filters.parse(written, filters.SEED) == found, written


def _written(comparison: Comparison) -> str:
    value = comparison.value
    if isinstance(value, str):
        value = "'" + value.replace("'", "''") + "'"
    sign = comparison.operator.upper()
    return f'{comparison.kind}."{comparison.key.replace(chr(34), chr(34) * 2)}" {sign} {value!s}'


def receipt(data: bytes) -> None:
    """A receipt as somebody kept or sent it: with its own digest put in, so that more is read."""
    with suppress(RegistryError):
        Receipt.parse(data)
    value = json.loads(data)
    if isinstance(value, dict):
        value.pop("digest", None)
        value["digest"] = sha256(canonical(value)).hexdigest()
    found = Receipt.of_json(value)
    for file in found.files:
        _check(file.path)
        assert file.path
    assert bytes(found) == canonical(value)
    assert Receipt.parse(bytes(found)) == found


def inscription(data: bytes) -> None:
    """A tag object: whatever it is, it can be shown, and is short."""
    found = Inscription.parse(data)
    assert len(found.message) <= LONGEST_MESSAGE
    shown = found.message.replace("\n", "").replace("\t", "") + (found.who or "")
    assert not [character for character in shown if ord(character) < 32 or ord(character) == 127]


def byte_range(data: bytes) -> None:
    """A Range header, over a file that is sure to be there: this one."""
    this = Path(__file__)
    size = this.stat().st_size
    text = data.decode("latin-1")
    stream = Reader().stream(Source(f"file://{this}", root=this.parent), text)
    assert stream is not None
    try:
        length = sum(map(len, stream))
    finally:
        stream.close()
    assert stream.status in (200, 206, 416)
    assert length == int(stream.headers["Content-Length"]) <= size


def _check(path: RelPath) -> None:
    assert not path or RelPath.parse(path) == path
    assert ".." not in path.split("/")
    assert not path.startswith("/")


def _check_place(url: StorageUrl) -> None:
    assert StorageUrl.parse(str(url)).contains(url)
    assert ".." not in url.path.split("/")


def _words(*words: str) -> tuple[bytes, ...]:
    common = (
        "",
        "..",
        "/",
        "\\",
        "\0",
        "\n",
        "\r\n",
        ":",
        "=",
        "é",
        "\ud800",
        "%2e",
        "-",
        "0" * 99,
    )
    return tuple(word.encode(errors="surrogatepass") for word in (*words, *common))


_YAML = _words(
    "- ", ": ", "? ", "&a ", "*a", "<<: ", "<<: *a", "[", "]", "{", "}", "!!int ", "!!set ", "|\n",
    '"', "'", "#", "---\n", "...\n", "%YAML 1.1\n", "0x", ".inf", "1_0", "1e9", "~", "true", "\t",
    "\ufeff", "&a [*a]", "!<tag:yaml.org,2002:str>",
)  # fmt: skip

TARGETS: Mapping[str, tuple[Target, tuple[bytes, ...]]] = {
    "tag": (tag, _words("@v1.0.0", "#prod", "#1", "!", "@deprecated", "m", "a/b=", "-rc.1", "+b")),
    "selector": (selector, _words("dvc.yaml:", "m", "latest", "v1.0.0", "a/b:", "./")),
    "yaml": (document, _YAML),
    "config": (
        dvc_config,
        _words("[core]\n", "['remote \"r\"']\n", "remote = ", "url = ", "remote://r/", "s3://b/k",
               "%(x)s", "worktree = true", '"', "'", "#", ",", "https://u:p@h:1/", "file:///"),
    ),
    "manifest": (
        dir_object,
        _words('{"md5": "', '", "relpath": "', '"}', "[", "]", ",", "1e999", "\\u0000", "\\ud800",
               "a" * 32, "../", "C:", "null", "9" * 5000, "[" * 2000),
    ),
    "project": (
        project,
        (*_YAML, *_words("${item}", "${a.b[0]}", "\\${", "foreach: ", "matrix: ", "do: ", "outs: ",
                         "wdir: ", "vars: ", "path: ", "\n--- dvc.lock\n", "\n--- params.yaml\n",
                         "\n--- sub/dvc.yaml\n", "\n--- model.pkl.dvc\n", "../../", "s3://b/k")),
    ),
    "origin": (
        repository_url,
        _words("https://", "ssh://", "git@", "ext::", "fd::", "file://", "-oProxyCommand=x",
               "--upload-pack=x", "[::1]", "@", "?", "#", "github:", ".git", ":22/"),
    ),
    "receipt": (
        receipt,
        _words('"version": ', '"stage": "prod"', '"rev": "', "0" * 40, "null", "9" * 30, "1e999",
               '{"md5": "', '"path": "', '"size": -1', "[]", "{}", "NaN", "[" * 2000, '"\\ud800"'),
    ),
    "inscription": (
        inscription,
        _words("object ", "tagger ", " <e@x> 1 +0000", "\n\n", "\x1b[2J", "\x85", "\x7f",
               "-----BEGIN PGP SIGNATURE-----", "\xff"),
    ),
    "storage": (
        storage_url,
        _words("s3://", "azure://", "ssh://", "gs://", "https://", "file:///", "@", "?", "%2F"),
    ),
    "gateway": (gateway_token, _words(".", "_", "eJw", json.dumps(["file", "", "x"]))),
    "id-token": (id_token, _words(".", "eyJ", '{"alg": "none"}', '{"iss": "https://i"}', "e30")),
    "claims": (
        claims,
        _words('{"iss": "https://i", "aud": "r", "sub": "s", "iat": 1799971200, "exp": 1799971500, '
               '"n": {"x": ["a"]}', "}", '"aud": ["r"], ', '"exp": 1e999, ', '"n/x": "a", ', "NaN",
               '"iat": -1, ', '"jti": "', '"sub": "\\u001b', "[" * 2000, "9" * 5000, "true"),
    ),
    "keys": (
        keys,
        _words('{"keys": [', '{"kid": "k", "kty": "RSA", "use": "sig"}', "]}", '"d": 1', "null",
               "[" * 2000, "9" * 5000, '{"kid": 1}'),
    ),
    "message": (
        message,
        _words('{"a": ', '"run_id": ', "[", "]", "{", "}", "NaN", "-Infinity", '"1e400"', "1e999",
               '"\\ud800"', "null", "true", "9" * 19, '"' + "9" * 19 + '"'),
    ),
    "filter": (
        search_filter,
        _words("metrics.", "params.", "tag.", "attributes.", " AND ", " IN (", " IS NOT NULL",
               "LIKE ", "`", "'", '"', "''", "!=", ">=", "1e999", "9" * 30, ".5", "run_id"),
    ),
    "range": (byte_range, _words("bytes=", "-", ",", "0-0", "9" * 30, "bytes", " ", "٣")),
}  # fmt: skip
