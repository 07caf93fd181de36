"""A CI job's ID token is good for one token of ours, if it holds and a rule lets the job in."""

import base64
import hashlib
import hmac
import json
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor, as_completed
from itertools import islice
from threading import Barrier, Event
from urllib.parse import urlsplit

import pytest
import sqlalchemy as sa
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from servers.issuer import DISCOVERY, KEYS, Issuer, private_key, public_jwk, respond
from service import Registry, artifacts, digest, output, remote
from urllib3 import Timeout

from registry.access import KEPT
from registry.federation import LONGEST
from registry.federation.keys import LARGEST, PAUSE, STALE, WAITING
from registry.web.exchange import GRANT_TYPE, ROUTE

AUDIENCE = "https://registry.example"
FILES = {
    ".dvc/config": remote("s3://bucket/dvc"),
    "dvc.yaml": artifacts(m="model.pkl"),
    "model.pkl.dvc": output("model.pkl", digest("1")),
}
RULE = {"claims": {"sub": "job"}, "repositories": ["team/*"]}


@pytest.fixture
def issuer() -> Iterator[Issuer]:
    with Issuer() as running:
        yield running


@pytest.fixture(params=["sqlite", pytest.param("postgresql", marks=pytest.mark.servers)])
def database(request: pytest.FixtureRequest) -> dict[str, str]:
    if request.param == "postgresql":
        return {"database_url": request.getfixturevalue("postgresql").create_database()}
    return {}


@pytest.fixture
def start(publish, issuer: Issuer):
    """Serves team/models, and takes tokens of the issuer by these rules."""

    def start(*rules: object, more: object = None, **settings: object) -> Registry:
        entry = {"url": issuer.url, "rules": list(rules) or [RULE], **(more or {})}
        registry = publish(FILES, **{"issuers": [entry], **settings})
        issuer.clock = registry.clock
        return registry

    return start


def exchange(registry: Registry, token: str, address: str = "192.0.2.1", **form: str):
    # A client of its own, since some exchange at the same time.
    return registry.app.test_client().post(
        ROUTE,
        data={
            "grant_type": GRANT_TYPE,
            "subject_token_type": "urn:ietf:params:oauth:token-type:id_token",
            "subject_token": token,
            **form,
        },
        environ_overrides={"REMOTE_ADDR": address},
    )


def refused(registry: Registry, token: str, **form: str) -> str:
    """Why the token is refused, which must be with 401."""
    answer = exchange(registry, token, **form)
    assert answer.status_code == 401, answer.text
    assert answer.json["error"] == "invalid_request"
    assert answer.json["error_description"]
    assert len(token) < 20 or token not in answer.text
    return answer.json["reason"]


def rows(registry: Registry) -> list[dict[str, object]]:
    """The audit log, once what waits for it is written."""
    registry.services.audit.close()
    return [json.loads(row.record) for row in registry.services.audit.rows()]


def test_a_job_gets_a_token_for_what_its_rule_says(start, issuer, database) -> None:
    registry = start(
        {**RULE, "claims": {"sub": "other"}, "repositories": ["*"]},
        {**RULE, "scopes": ["models:read", "metrics:read"], "lifetime": 600},
        **database,
    )

    answer = exchange(registry, issuer.token(AUDIENCE))

    assert answer.status_code == 200, answer.text
    assert answer.headers["Cache-Control"] == "no-store"
    assert answer.json["token_type"] == "Bearer"
    assert answer.json["issued_token_type"].endswith(":access_token")
    assert answer.json["expires_in"] == 600
    assert answer.json["scope"] == "models:read metrics:read"
    assert registry.ask(token=answer.json["access_token"]).status_code == 200
    (issued,) = [it for it in registry.services.access.tokens() if it.principal.name != "test"]
    assert issued.principal.name == f"{issuer.url} job"
    assert issued.principal.repositories == ("team/*",)
    assert issued.expires.timestamp() == registry.clock() + 600


def test_the_token_ends_and_can_be_revoked_like_any_other(start, issuer) -> None:
    registry = start({**RULE, "lifetime": 60})
    ends, revoked = (
        exchange(registry, issuer.token(AUDIENCE)).json["access_token"] for _ in range(2)
    )
    access = registry.services.access
    access.revoke(access.principal(revoked).id)
    registry.clock.now += 5

    assert registry.ask(token=revoked).status_code == 401
    assert registry.ask(token=ends).status_code == 200
    registry.clock.now += 55
    assert registry.ask(token=ends).status_code == 401


def test_a_token_is_good_for_the_repositories_of_the_rule_and_no_other(start, issuer) -> None:
    registry = start({**RULE, "repositories": ["other/*"]})

    token = exchange(registry, issuer.token(AUDIENCE)).json["access_token"]

    assert registry.ask(token=token).status_code == 404


GITHUB = {
    "sub": "repo:team/app:ref:refs/heads/main",
    "repository": "team/app",
    "repository_owner_id": "65",
    "ref": "refs/heads/main",
    "ref_protected": "true",
    "event_name": "push",
    "job_workflow_ref": "team/app/.github/workflows/ci.yml@refs/heads/main",
}
GITLAB = {
    "sub": "project_path:team/app:ref_type:branch:ref:main",
    "namespace_path": "team",
    "project_path": "team/app",
    "project_id": "22",
    "ref": "main",
    "ref_type": "branch",
    "ref_protected": "true",
    "user_email": "it@example.com",
}
BUILDKITE = {
    "sub": "organization:team:pipeline:app:ref:refs/heads/main:commit:1a2b:step:build",
    "organization_slug": "team",
    "pipeline_slug": "app",
    "build_branch": "main",
    "build_number": 175,
    "step_key": "build",
    "jti": None,
}
KUBERNETES = {
    "sub": "system:serviceaccount:inference:loader",
    "kubernetes.io": {
        "namespace": "inference",
        "serviceaccount": {"name": "loader", "uid": "8b2f"},
        "pod": {"name": "loader-7d9", "uid": "11aa"},
    },
}
KINDS = {
    "github": (GITHUB, {"repository": "team/app", "ref": ["refs/heads/main", "refs/tags/v*"]}),
    "gitlab": (GITLAB, {"project_id": 22, "ref_protected": True, "ref": "main"}),
    "buildkite": (
        BUILDKITE,
        {"organization_slug": "team", "pipeline_slug": "a*", "build_number": 175},
    ),
    "kubernetes": (
        KUBERNETES,
        {"kubernetes.io/namespace": "inference", "kubernetes.io/serviceaccount/name": "load*"},
    ),
}


@pytest.mark.parametrize("kind", KINDS)
def test_the_claims_of_every_ci_system_let_a_job_in_and_another_not(start, issuer, kind) -> None:
    claims, patterns = KINDS[kind]
    registry = start({**RULE, "claims": patterns})

    assert exchange(registry, issuer.token(AUDIENCE, **claims)).status_code == 200
    for name in patterns:
        outer = name.partition("/")[0]
        without = {**claims, outer: None}
        other = {**claims, outer: {"namespace": "evil"} if "/" in name else "evil/app"}
        assert refused(registry, issuer.token(AUDIENCE, **without)) == "no_rule"
        assert refused(registry, issuer.token(AUDIENCE, **other)) == "no_rule"


@pytest.mark.parametrize(
    ("repository", "let_in"),
    [
        ("team/app", True),
        ("team/app2", False),
        ("xteam/app", False),
        ("Team/app", False),
        ("team/app\n", False),
        ("team/app/../other", False),
        (["evil/app", "x"], False),
        ({"team/app": "team/app"}, False),
        (None, False),
        (True, False),
    ],
)
def test_a_claim_fits_whole_or_not_at_all(start, issuer, repository, let_in) -> None:
    registry = start({**RULE, "claims": {"repository": "team/app"}})

    answer = exchange(registry, issuer.token(AUDIENCE, repository=repository))

    assert answer.status_code == (200 if let_in else 401)


def test_a_scope_can_be_asked_for_but_none_that_the_rule_does_not_give(start, issuer) -> None:
    registry = start({**RULE, "scopes": ["models:read", "metrics:read"]})
    few = exchange(registry, issuer.token(AUDIENCE), scope="metrics:read metrics:read")
    more = exchange(registry, issuer.token(AUDIENCE), scope="models:read admin")

    assert (few.status_code, few.json["scope"]) == (200, "metrics:read")
    assert registry.ask(token=few.json["access_token"]).status_code == 403
    assert (more.status_code, more.json["error"]) == (400, "invalid_scope")


# What is not signed by a key of the issuer's, with an algorithm that the operator allowed


def compact(header: dict[str, object], claims: dict[str, object], signature: bytes = b"") -> str:
    parts = (json.dumps(header).encode(), json.dumps(claims).encode())
    return ".".join(
        base64.urlsafe_b64encode(it).rstrip(b"=").decode() for it in (*parts, signature)
    )


@pytest.mark.parametrize("algorithm", ["none", "None", "NONE", "", None, 1, "RS512", "HS256"])
def test_a_token_that_names_another_algorithm_is_refused(start, issuer, algorithm) -> None:
    registry = start()
    header = {"kid": "first", "typ": "JWT", **({} if algorithm is None else {"alg": algorithm})}
    signed = issuer.token(AUDIENCE)
    claims = issuer.claims(AUDIENCE)

    for signature in (b"x", base64.urlsafe_b64decode(signed.rpartition(".")[2] + "==")):
        token = compact(header, claims, signature)
        assert refused(registry, token) == "algorithm"
    assert refused(registry, compact(header, claims)) == "malformed"
    assert issuer.requests == []


def test_the_public_key_is_no_secret_to_sign_with(start, issuer) -> None:
    registry = start()
    key = private_key("first").public_key()
    published = json.dumps(public_jwk("first")).encode()
    for form in (
        key.public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo),
        key.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo),
        published,
    ):
        unsigned = compact({"alg": "HS256", "kid": "first"}, issuer.claims(AUDIENCE))[:-1]
        seal = hmac.digest(form, unsigned.encode(), hashlib.sha256)
        token = unsigned + "." + base64.urlsafe_b64encode(seal).rstrip(b"=").decode()

        assert refused(registry, token) == "algorithm"


def test_a_signature_by_another_key_does_not_hold(start, issuer) -> None:
    registry = start()

    assert refused(registry, issuer.sign(issuer.claims(AUDIENCE), "stranger", kid="first")) == (
        "signature"
    )


def test_a_token_that_was_changed_does_not_hold(start, issuer) -> None:
    registry = start({**RULE, "claims": {"sub": "j*"}})
    header, claims, signature = issuer.token(AUDIENCE).split(".")
    other = json.dumps(issuer.claims(AUDIENCE, sub="jim")).encode()
    swapped = base64.urlsafe_b64encode(other).rstrip(b"=").decode()

    assert refused(registry, f"{header}.{swapped}.{signature}") == "signature"
    assert exchange(registry, f"{header}.{claims}.{signature}").status_code == 200


@pytest.mark.parametrize("name", ["jku", "x5u", "jwk", "x5c"])
def test_a_token_does_not_say_where_its_key_is(start, issuer, name) -> None:
    registry = start()
    with Issuer(registry.clock) as stranger:
        stranger.keys = [public_jwk("stranger")]
        value = {"jwk": public_jwk("stranger"), "x5c": ["MIIB"]}.get(name, stranger.url + KEYS)
        headers = {name: value}
        for kid in ("first", "stranger"):
            token = issuer.sign(issuer.claims(AUDIENCE), "stranger", **{**headers, "kid": kid})
            assert refused(registry, token) in ("signature", "unknown_key")
        assert stranger.requests == []
    assert set(issuer.requests) == {DISCOVERY, KEYS}


def test_a_header_that_must_be_understood_is_not_passed_over(start, issuer) -> None:
    registry = start()
    token = issuer.sign(issuer.claims(AUDIENCE), crit=["exp"], exp=1)

    assert refused(registry, token) == "malformed"


def test_keys_that_are_too_short_or_private_or_of_another_kind_are_not_used(start, issuer) -> None:
    registry = start(more={"algorithms": ["RS256", "ES256"]})
    curve = {name: it for name, it in public_jwk("curve", "ES256").items() if name != "alg"}
    issuer.keys = [
        public_jwk("short"),
        {**curve, "kid": "curve"},
        {**public_jwk("sealed"), "use": "enc"},
        {**public_jwk("other"), "alg": "RS512"},
        {"kid": "oct", "kty": "oct", "k": "c2VjcmV0"},
        {"kid": "odd", "kty": "RSA", "n": 5, "e": []},
        {"kid": "empty", "kty": "RSA"},
        {"kid": "point", "kty": "EC", "crv": "P-256", "x": "AA", "y": "AA"},
        {"kid": 7, "kty": "RSA"},
        "nonsense",
    ]
    claims = issuer.claims(AUDIENCE)
    with pytest.warns(match="2048"):
        tokens = [issuer.sign(claims, "short")]
    tokens += [
        issuer.sign(claims, name) for name in ("sealed", "other", "oct", "odd", "empty", "point")
    ]
    tokens.append(issuer.sign(claims, "first", kid="curve"))

    for token in tokens:
        assert refused(registry, token) == "unknown_key"
    assert exchange(registry, issuer.sign(claims, "curve", "ES256")).status_code == 200


@pytest.mark.parametrize("algorithm", ["RS512", "PS256", "ES384", "EdDSA"])
def test_another_algorithm_works_where_the_operator_allows_it(start, issuer, algorithm) -> None:
    registry = start(more={"algorithms": [algorithm]})
    issuer.keys = [public_jwk(algorithm, algorithm)]
    token = issuer.sign(issuer.claims(AUDIENCE), algorithm, algorithm)

    assert exchange(registry, token).status_code == 200
    assert refused(registry, issuer.token(AUDIENCE)) == "algorithm"


@pytest.mark.parametrize(
    "token",
    ["x", "a.b", "a.b.c", "a.b.c.d", "....", "é.é.é", "a" * (LONGEST + 1), "reg_x.y", "e30.e30.e30",
     compact({"alg": "RS256"}, {}, b"x") + "=", "W10.W10.eA", "e30.W10.eA",
     "bnVsbA.bnVsbA.eA", f"{'WyJ' * 4000}.e30.eA"],
)  # fmt: skip
def test_what_is_no_id_token_is_refused(start, token) -> None:
    assert refused(start(), token) in ("malformed", "unknown_issuer")


# Whom it is for, and when


@pytest.mark.parametrize(
    ("audience", "let_in"),
    [
        (AUDIENCE, True),
        ([AUDIENCE], True),
        (["x", AUDIENCE], True),
        (AUDIENCE + "/", False),
        ("https://registry.example.evil", False),
        ("", False),
        ([], False),
        (None, False),
        ({AUDIENCE: 1}, False),
    ],
)
def test_a_token_for_another_audience_is_refused(start, issuer, audience, let_in) -> None:
    registry = start()
    token = issuer.token(audience, aud=audience)

    if let_in:
        assert exchange(registry, token).status_code == 200
    else:
        assert refused(registry, token) == "audience"


def test_the_audience_can_be_configured(start, issuer) -> None:
    registry = start(more={"audience": "models"})

    assert refused(registry, issuer.token(AUDIENCE)) == "audience"
    assert exchange(registry, issuer.token("models")).status_code == 200


@pytest.mark.parametrize(
    ("times", "reason"),
    [
        ({"exp": -30}, "expired"),
        ({"exp": -29}, None),
        ({"nbf": 31}, "not_yet_valid"),
        ({"nbf": 30}, None),
        ({"iat": 31}, "not_yet_valid"),
        ({"iat": 30}, None),
        ({"exp": 86_401}, "lifetime"),
        ({"exp": 86_400}, None),
    ],
)
def test_a_token_holds_at_its_time_give_or_take_the_leeway(start, issuer, times, reason) -> None:
    registry = start()
    moments = {name: int(registry.clock()) + moment for name, moment in times.items()}
    token = issuer.token(AUDIENCE, **moments)

    if reason:
        assert refused(registry, token) == reason
    else:
        assert exchange(registry, token).status_code == 200


@pytest.mark.parametrize("name", ["exp", "iat", "sub"])
@pytest.mark.parametrize(
    "value",
    [
        None,
        True,
        "x",
        "9999999999",
        [1],
        float("inf"),
        float("nan"),
        pytest.param(10**400, id="huge"),
    ],
)
def test_a_token_without_its_times_and_subject_is_refused(start, issuer, name, value) -> None:
    if name == "sub" and isinstance(value, str):
        value = ""
    registry = start({**RULE, "claims": {"sub": "j*"}})

    assert refused(registry, issuer.token(AUDIENCE, **{name: value})) == "claims"


def test_a_token_of_an_issuer_that_is_not_configured_is_refused_unasked(start, issuer) -> None:
    registry = start()
    with Issuer(registry.clock) as stranger:
        assert refused(registry, stranger.token(AUDIENCE)) == "unknown_issuer"
        for spelling in (issuer.url + "/", issuer.url.upper(), [issuer.url], None):
            token = compact({"alg": "RS256", "kid": "first"}, {"iss": spelling}, b"x")
            assert refused(registry, token) == "unknown_issuer"
        assert stranger.requests == []
    assert issuer.requests == []


def test_where_no_issuer_is_configured_nobody_is_let_in(publish, issuer) -> None:
    registry = publish(FILES)
    issuer.clock = registry.clock

    assert refused(registry, issuer.token(AUDIENCE)) == "unknown_issuer"


# Once


def test_a_token_is_good_for_one_exchange(start, issuer, database) -> None:
    registry = start(**database)
    token = issuer.token(AUDIENCE)

    assert exchange(registry, token).status_code == 200
    assert refused(registry, token) == "replayed"
    registry.clock.now += 329  # the leeway included
    assert refused(registry, token) == "replayed"
    registry.clock.now += 1
    assert refused(registry, token) == "expired"


def test_two_tokens_with_the_same_id_are_one(start, issuer) -> None:
    registry = start()
    one, two = (issuer.token(AUDIENCE, jti="one", nonce=nonce) for nonce in "ab")

    assert exchange(registry, one).status_code == 200
    assert refused(registry, two) == "replayed"


@pytest.mark.parametrize("algorithm", ["RS256", "ES256"])
def test_a_token_without_an_id_is_known_by_what_was_signed(start, issuer, algorithm) -> None:
    registry = start()
    issuer.keys = [public_jwk(algorithm, algorithm)]
    claims = issuer.claims(AUDIENCE, jti=None)
    token = issuer.sign(claims, algorithm, algorithm)
    # Who has one signature on a curve has two: (r, s) and (r, n - s).
    signed, _, signature = token.rpartition(".")
    raw = base64.urlsafe_b64decode(signature + "==")
    order = 0xFFFFFFFF00000000FFFFFFFFFFFFFFFFBCE6FAADA7179E84F3B9CAC2FC632551
    s = (order - int.from_bytes(raw[32:64], "big")).to_bytes(32, "big")
    twin = raw[:32] + s if algorithm == "ES256" else raw
    other = f"{signed}.{base64.urlsafe_b64encode(twin).rstrip(b'=').decode()}"
    later = issuer.sign({**claims, "exp": claims["exp"] + 1}, algorithm, algorithm)

    assert exchange(registry, other).status_code == 200
    assert refused(registry, token) == "replayed"
    assert exchange(registry, later).status_code == 200


def test_where_jobs_share_a_token_it_can_be_exchanged_again(start, issuer) -> None:
    registry = start(more={"single_use": False})
    token = issuer.token(AUDIENCE)

    assert {exchange(registry, token).status_code for _ in range(3)} == {200}


def test_of_many_at_the_same_time_one_gets_a_token(start, serve, issuer, database) -> None:
    entry = {"url": issuer.url, "rules": [RULE]}
    one = start(**database)
    # Another host: nothing in common but the database.
    shared = database or {"database_url": one.settings.database}
    two = serve({}, directory="other", issuers=[entry], **shared)
    token = issuer.token(AUDIENCE)
    together = Barrier(8)

    def attempt(registry: Registry) -> int:
        together.wait()
        return exchange(registry, token).status_code

    with ThreadPoolExecutor(8) as threads:
        answers = sorted(threads.map(attempt, [one, two] * 4))

    assert answers == [200] + [401] * 7


def test_a_token_that_was_refused_for_another_reason_is_not_spent(start, issuer) -> None:
    registry = start()
    token = issuer.token(AUDIENCE)

    assert exchange(registry, token, scope="admin").status_code == 400
    assert exchange(registry, token).status_code == 200


def test_ended_exchanges_are_forgotten_with_their_tokens_and_nothing_else(
    start, issuer, database
) -> None:
    registry = start(**database)
    kept = registry.token(lives=90 * 86_400)
    exchange(registry, issuer.token(AUDIENCE))
    registry.clock.now += 3600 + KEPT + 2
    exchange(registry, issuer.token(AUDIENCE))
    registry.clock.now += 3600 + KEPT + 2
    exchange(registry, issuer.token(AUDIENCE))
    engine = sa.create_engine(registry.settings.database)
    with engine.connect() as connection:
        remembered = connection.execute(sa.text("SELECT count(*) FROM exchanges")).scalar_one()
    engine.dispose()
    names = [token.principal.name for token in registry.services.access.tokens()]

    assert remembered == 1
    assert sorted(names) == [f"{issuer.url} job", "test", "test"]
    assert registry.ask(token=kept).status_code == 200


# The issuer's keys


def test_the_keys_are_fetched_once_and_then_kept(start, issuer) -> None:
    registry = start()
    for _ in range(3):
        assert exchange(registry, issuer.token(AUDIENCE)).status_code == 200

    assert issuer.requests == [DISCOVERY, KEYS]


def test_a_new_key_is_found_when_it_is_first_used(start, issuer) -> None:
    registry = start()
    exchange(registry, issuer.token(AUDIENCE))
    issuer.keys = [public_jwk("second")]
    registry.clock.now += PAUSE

    assert exchange(registry, issuer.sign(issuer.claims(AUDIENCE), "second")).status_code == 200
    assert refused(registry, issuer.token(AUDIENCE)) == "unknown_key"


def test_an_old_key_ends_when_its_issuer_takes_it_back(start, issuer) -> None:
    registry = start()
    exchange(registry, issuer.token(AUDIENCE))
    issuer.keys = [public_jwk("second")]
    registry.clock.now += 600

    assert refused(registry, issuer.token(AUDIENCE)) == "unknown_key"


def test_unknown_keys_do_not_make_us_ask_the_issuer_over_and_over(start, issuer) -> None:
    registry = start(exchange_limit=1000)
    for number in range(50):
        token = issuer.sign(issuer.claims(AUDIENCE), "stranger", kid=f"made-up-{number}")
        assert refused(registry, token) == "unknown_key"
    registry.clock.now += PAUSE
    for _ in range(50):
        refused(registry, issuer.sign(issuer.claims(AUDIENCE), "stranger"))

    assert issuer.requests == [DISCOVERY, KEYS] * 2


def test_requests_at_the_same_time_share_one_look_at_the_issuer(start, issuer) -> None:
    registry = start()
    tokens = [issuer.token(AUDIENCE) for _ in range(8)]
    together = Barrier(8)

    def attempt(token: str) -> int:
        together.wait()
        return exchange(registry, token).status_code

    with ThreadPoolExecutor(8) as threads:
        assert set(threads.map(attempt, tokens)) == {200}
    assert issuer.requests == [DISCOVERY, KEYS]


def test_while_the_issuer_is_down_its_keys_are_used_for_an_hour_and_no_longer(
    start, issuer
) -> None:
    registry = start()
    exchange(registry, issuer.token(AUDIENCE))
    issuer.answers[DISCOVERY] = b"down"
    registry.clock.now += STALE - 1
    assert exchange(registry, issuer.token(AUDIENCE)).status_code == 200
    registry.clock.now += 1

    answer = exchange(registry, issuer.token(AUDIENCE))

    assert answer.status_code == 503
    assert answer.json["error"] == "temporarily_unavailable"
    assert answer.headers["Retry-After"] == "15"
    del issuer.answers[DISCOVERY]
    registry.clock.now += PAUSE
    assert exchange(registry, issuer.token(AUDIENCE)).status_code == 200


def test_a_key_that_cannot_be_looked_for_is_not_called_unknown(start, issuer) -> None:
    registry = start()
    exchange(registry, issuer.token(AUDIENCE))
    issuer.keys.append(public_jwk("second"))
    issuer.answers[KEYS] = b"down"
    registry.clock.now += PAUSE
    token = issuer.sign(issuer.claims(AUDIENCE), "second")

    assert exchange(registry, token).status_code == 503
    assert exchange(registry, issuer.token(AUDIENCE)).status_code == 200
    del issuer.answers[KEYS]
    registry.clock.now += PAUSE
    assert exchange(registry, token).status_code == 200


def test_few_wait_for_an_issuer_that_hangs_and_the_others_are_answered(
    start, issuer, monkeypatch
) -> None:
    registry = start(exchange_limit=100)
    held = Event()

    def hang(handler) -> None:
        held.wait(60)
        respond(handler, json.dumps({"keys": issuer.keys}).encode())

    issuer.answers[KEYS] = hang
    for name, limit in (("PATIENCE", 60), ("_READS", Timeout(60))):
        monkeypatch.setattr(f"registry.federation.keys.{name}", limit)
    tokens = [issuer.token(AUDIENCE) for _ in range(WAITING + 2)]
    with ThreadPoolExecutor(WAITING + 2) as threads:
        answers = [threads.submit(exchange, registry, token) for token in tokens]
        first = [answer.result().status_code for answer in islice(as_completed(answers, 60), 2)]
        held.set()

    assert first == [503, 503]
    assert sorted(answer.result().status_code for answer in answers) == [200] * WAITING + first


def test_an_issuer_that_is_down_is_not_asked_by_everybody(start, issuer) -> None:
    registry = start()
    issuer.answers[DISCOVERY] = b""
    for _ in range(5):
        assert exchange(registry, issuer.token(AUDIENCE)).status_code == 503

    assert issuer.requests == [DISCOVERY]


def test_a_token_is_still_good_after_its_issuer_could_not_be_asked(start, issuer) -> None:
    registry = start()
    token = issuer.token(AUDIENCE)
    issuer.answers[KEYS] = b"["
    assert exchange(registry, token).status_code == 503
    del issuer.answers[KEYS]
    registry.clock.now += PAUSE

    assert exchange(registry, token).status_code == 200


def drip(handler) -> None:
    """Answers a byte at a time, and never ends."""
    handler.send_response(200)
    handler.end_headers()
    while not handler.server.issuer_ended.wait(0.05):
        try:
            handler.wfile.write(b" ")
        except OSError:
            return


def drip_headers(handler) -> None:
    """The same, before the first byte of the body."""
    handler.wfile.write(b"HTTP/1.1 200 OK\r\nX-Slow: ")
    while not handler.server.issuer_ended.wait(0.05):
        try:
            handler.wfile.write(b"x")
        except OSError:
            return


def bomb(handler) -> None:
    respond(handler, b'{"keys":[' + b" " * LARGEST + b"]}")


def compressed(handler) -> None:
    respond(handler, b"\x1f\x8b\x08", **{"Content-Encoding": "gzip"})


def elsewhere(handler) -> None:
    respond(handler, b"", 302, Location="http://169.254.169.254/latest/meta-data/")


HOSTILE = {
    "huge": bomb,
    "compressed": compressed,
    "redirect": elsewhere,
    "nested": b"[" * 100_000,
    "no set": b'{"keys": {}}',
    "no JSON": b"<html>",
    "no text": b"\xff\xfe",
    "big number": b'{"keys": ' + b"9" * 10_000 + b"}",
    "slow": drip,
    "slow headers": drip_headers,
}


@pytest.mark.parametrize("path", [DISCOVERY, KEYS])
@pytest.mark.parametrize("kind", HOSTILE)
def test_an_issuer_that_answers_nonsense_is_unavailable_and_nothing_else(
    start, issuer, monkeypatch, path, kind
) -> None:
    monkeypatch.setattr("registry.federation.keys.PATIENCE", 0.3)
    registry = start()
    issuer.answers[path] = HOSTILE[kind]

    answer = exchange(registry, issuer.token(AUDIENCE))

    assert answer.status_code == 503
    assert issuer.url in answer.json["detail"]
    assert registry.ask().status_code == 200


@pytest.mark.parametrize("keys_url", [
    "http://127.0.0.2:{port}/keys", "http://localhost:{port}/keys", "https://127.0.0.1:{port}/keys",
    "http://127.0.0.1:1/keys", "http://127.0.0.1:{port}@evil.example/keys", "/keys", "file:///keys",
    "http://[::ffff:127.0.0.1]:{port}/keys", "http://2130706433:{port}/keys", None, 7,
    "http://x@127.0.0.1:{port}/keys",
    "http://127.0.0.1:{port}/" + "x" * 3000, "http://[", "http://127.0.0.1:{port}0/keys",
])  # fmt: skip
def test_keys_on_another_origin_are_not_fetched_unless_they_are_configured(
    start, issuer, keys_url
) -> None:
    port = issuer.url.rpartition(":")[2]
    place = keys_url.format(port=port) if isinstance(keys_url, str) else keys_url
    issuer.answers[DISCOVERY] = json.dumps({"issuer": issuer.url, "jwks_uri": place}).encode()

    assert exchange(start(), issuer.token(AUDIENCE)).status_code == 503
    assert issuer.requests == [DISCOVERY]


def test_a_url_in_which_two_parsers_see_two_hosts_leads_nowhere(start, issuer) -> None:
    with Issuer() as stranger:
        place = f"{stranger.url}\\@{issuer.url.removeprefix('http://')}/keys"
        issuer.answers[DISCOVERY] = json.dumps({"issuer": issuer.url, "jwks_uri": place}).encode()
        assert urlsplit(place).netloc.endswith(issuer.url.removeprefix("http://"))

        assert exchange(start(), issuer.token(AUDIENCE)).status_code == 503
        assert stranger.requests == []


def test_keys_on_another_origin_are_fetched_where_the_operator_says(start, issuer) -> None:
    with Issuer() as elsewhere:
        registry = start(more={"jwks_url": elsewhere.url + KEYS})

        assert exchange(registry, issuer.token(AUDIENCE)).status_code == 200
        assert (issuer.requests, elsewhere.requests) == ([], [KEYS])


def test_the_discovery_document_of_another_issuer_is_not_believed(start, issuer) -> None:
    document = {"issuer": issuer.url + "/other", "jwks_uri": issuer.url + KEYS}
    issuer.answers[DISCOVERY] = json.dumps(document).encode()

    assert exchange(start(), issuer.token(AUDIENCE)).status_code == 503


# What is written down, and how often one may try


def test_every_exchange_leaves_a_row_and_no_row_holds_a_token(start, issuer, database) -> None:
    registry = start(**database)
    token = issuer.token(AUDIENCE)
    issued = exchange(registry, token).json["access_token"]
    exchange(registry, token)
    exchange(registry, issuer.token(AUDIENCE, sub="other"))
    exchange(registry, "x")
    exchange(registry, token, grant_type="password")
    assert registry.ask(token=issued).status_code == 200
    granted, *others, used = rows(registry)

    assert granted["decision"] == "granted"
    assert granted["subject"] == f"{issuer.url} job"
    assert granted["repository"] == "team/*"
    assert granted["address"] == "192.0.2.1"
    assert granted["token"] == used["token"]
    assert [(row["decision"], row["reason"], row["subject"]) for row in others] == [
        ("refused", "replayed", f"{issuer.url} job"),
        ("refused", "no_rule", f"{issuer.url} other"),
        ("refused", "malformed", ""),
        ("refused", "InvalidRequest", ""),
    ]
    text = json.dumps([granted, *others, used])
    assert token not in text
    assert token.rpartition(".")[2] not in text
    assert issued not in text


def test_the_log_has_a_line_and_no_token(start, issuer, log) -> None:
    registry = start()
    token = issuer.token(AUDIENCE)
    issued = exchange(registry, token).json["access_token"]
    exchange(registry, token)
    lines = [json.loads(line) for line in log.getvalue().splitlines()]

    assert [line["status"] for line in lines] == [200, 401]
    assert lines[0]["token"] == registry.services.access.principal(issued).id
    assert lines[1]["reason"] == "replayed: it was exchanged before"
    assert token not in log.getvalue()
    assert issued not in log.getvalue()


def test_who_fails_too_often_has_to_wait_and_others_have_not(start, issuer) -> None:
    registry = start(exchange_limit=3)
    for _ in range(3):
        assert exchange(registry, "x", "192.0.2.1").status_code == 401
    answer = exchange(registry, issuer.token(AUDIENCE), "192.0.2.1")

    assert answer.status_code == 429
    assert answer.json["error"] == "temporarily_unavailable"
    assert 0 < int(answer.headers["Retry-After"]) <= 20
    assert exchange(registry, issuer.token(AUDIENCE), "192.0.2.2").status_code == 200
    registry.clock.now += 20
    assert exchange(registry, issuer.token(AUDIENCE), "192.0.2.1").status_code == 200
    assert len(rows(registry)) == 5


def test_jobs_that_are_let_in_are_not_counted(start, issuer) -> None:
    registry = start(exchange_limit=2)

    for _ in range(9):
        assert exchange(registry, issuer.token(AUDIENCE)).status_code == 200


def test_the_addresses_of_one_network_of_ipv6_count_as_one(start) -> None:
    registry = start(exchange_limit=2)
    answers = [exchange(registry, "x", f"2001:db8:1:1::{number}").status_code for number in "1234"]

    assert answers == [401, 401, 429, 429]
    assert exchange(registry, "x", "2001:db8:1:2::1").status_code == 401


def test_addresses_of_ipv4_are_no_network_however_they_are_spelled(start) -> None:
    """A server that listens on `::` sees all of them below ::ffff:0:0/96."""
    registry = start(exchange_limit=1)
    answers = [exchange(registry, "x", f"::ffff:192.0.2.{host}").status_code for host in "122"]

    assert answers == [401, 401, 429]


# The form


@pytest.mark.parametrize(
    ("form", "error"),
    [
        ({"grant_type": ""}, "unsupported_grant_type"),
        ({"grant_type": "client_credentials"}, "unsupported_grant_type"),
        ({"subject_token_type": "urn:ietf:params:oauth:token-type:saml2"}, "invalid_request"),
        ({"subject_token": ""}, "invalid_request"),
        ({"requested_token_type": "urn:x"}, "invalid_request"),
        ({"actor_token": "x"}, "invalid_request"),
        ({"subject_token": ["a", "b"]}, "invalid_request"),
    ],
)
def test_a_form_that_is_not_as_it_should_be_is_refused(start, issuer, form, error) -> None:
    answer = exchange(start(), **{"token": issuer.token(AUDIENCE), **form})

    assert answer.status_code == 400
    assert answer.json["error"] == error
    assert "reason" not in answer.json


def test_a_parameter_without_a_value_is_none(start, issuer) -> None:
    form = {"requested_token_type": "", "actor_token": "", "scope": ""}

    assert exchange(start(), issuer.token(AUDIENCE), **form).status_code == 200


def test_only_a_form_is_read(start) -> None:
    registry = start()
    answers = [
        registry.client.post(ROUTE, json={"grant_type": GRANT_TYPE}),
        registry.client.post(
            ROUTE, data={"grant_type": GRANT_TYPE}, content_type="multipart/form-data"
        ),
        registry.client.post(f"{ROUTE}?grant_type={GRANT_TYPE}"),
    ]

    assert [answer.status_code for answer in answers] == [400] * 3
    assert registry.client.post(ROUTE, data={"subject_token": "x" * 70_000}).status_code == 413
    assert registry.client.get(ROUTE).status_code == 401


@pytest.mark.parametrize("subject", ['x"\\\n\x1b[31m', "é" * 400])
def test_what_a_claim_holds_breaks_no_answer_and_no_terminal(start, issuer, subject) -> None:
    registry = start({**RULE, "claims": {"kind": "any"}})
    no = exchange(registry, issuer.token(AUDIENCE, sub=subject))
    yes = exchange(registry, issuer.token(AUDIENCE, sub=subject, kind="any"))
    name = registry.services.access.principal(yes.json["access_token"]).name

    assert no.status_code == 401
    assert no.json["error_description"].isascii()
    assert not set('"\\') & set(no.json["error_description"])
    assert name.isprintable()
    assert len(name) <= 255
    assert "\x1b" not in no.json["detail"]


def test_a_worker_that_gets_no_exchange_does_not_load_what_checks_one(tmp_path) -> None:
    code = (
        "import sys\n"
        "from registry.services import Services\n"
        "from registry.settings import Settings\n"
        "from registry.web import create_app\n"
        "rule = {'claims': {'sub': 'x'}, 'repositories': ['*']}\n"
        "issuer = {'url': 'https://issuer.example', 'rules': [rule]}\n"
        f"document = {{'secret_key': 'k' * 32, 'data_dir': {str(tmp_path)!r}}}\n"
        "document['issuers'] = [issuer]\n"
        "app = create_app(Services.of(Settings.parse(document, {})))\n"
        "assert app.test_client().get('/healthz').status_code == 200\n"
        f"assert app.test_client().post({ROUTE!r}).status_code == 400\n"
        "sys.exit(any(name in sys.modules for name in ('jwt', 'cryptography')))\n"
    )

    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
