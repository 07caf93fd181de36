"""Webhooks: a forge says that a repository changed, and the registry looks at once.

    POST /hooks/<forge>        the proof that the sender knows the repository's `webhook_secret`
    github                     X-Hub-Signature-256: sha256=<hex>
    gitea (Forgejo)            X-Gitea-Signature, or X-Forgejo-Signature: <hex>
    gitlab                     X-Gitlab-Token: <secret>
    bitbucket                  X-Hub-Signature: sha256=<hex>
    generic                    Authorization: Bearer <secret>, or X-Hub-Signature-256: sha256=<hex>

    -> 202 {"repository": "team/models", "refresh": "started"}

<hex> is the HMAC-SHA256 of the body as it was sent. The repository is the one that `?repo=` names,
or else the one whose URL the payload holds; nothing else in a payload is looked at. Whoever does
not prove anything learns nothing: every refusal is the same, and takes the same work.
"""

import hmac
import json
from collections.abc import Callable, Iterator, Mapping
from urllib.parse import parse_qs

from flask import Blueprint, Request, Response, request

from registry.catalog import Mirrored
from registry.errors import HookRefused
from registry.services import Services
from registry.web.auth import public

LARGEST = 1 << 20
"""Bytes that a payload may have."""

Proof = Callable[[Request, bytes, bytes], bool]
"""Whether a request with this body proves that the sender knows the secret."""


def blueprint(services: Services) -> Blueprint:
    """The routes over the repositories that have a secret."""
    routes = Blueprint("hooks", __name__)

    @routes.post("/hooks/<forge>")
    @public
    def receive(forge: str) -> Response:
        proof = _PROOFS.get(forge)
        if proof is None:
            raise HookRefused("no such forge")
        request.max_content_length = LARGEST
        body = request.get_data(cache=False, parse_form_data=False)
        mirrored = _sender(services, proof, body)
        name = mirrored.repository.name
        if request.headers.get("X-GitHub-Event") == "ping":
            return _answer({"repository": name, "refresh": "not needed"}, 200)
        mirrored.repository.refresh()
        return _answer({"repository": name, "refresh": "started"}, 202)

    return routes


def _sender(services: Services, proof: Proof, body: bytes) -> Mirrored:
    """The repository that the request speaks of, and proves to. Raises HookRefused."""
    spelling = request.args.get("repo", "")
    for url in [spelling] if spelling else _urls(_payload(body)):
        mirrored = services.repositories.claimed(url)
        secret = services.webhook_secrets.get(mirrored.repository.name) if mirrored else None
        # Without a secret there is as much to compute as with one.
        proven = proof(request, body, (secret or "none").encode())
        if mirrored and secret and proven:
            return mirrored
    proof(request, body, b"none")
    raise HookRefused("no repository of these URLs has a webhook_secret that fits")


def _payload(body: bytes) -> object:
    """The JSON of a body, which GitHub sends as a form unless told otherwise; None for neither."""
    try:
        if request.mimetype == "application/x-www-form-urlencoded":
            (text,) = parse_qs(body.decode(), strict_parsing=True, max_num_fields=9)["payload"]
            return json.loads(text)
        return json.loads(body)
    except (ValueError, KeyError, RecursionError):
        return None


_URL_KEYS = (
    *("clone_url", "ssh_url", "html_url"),  # GitHub, Gitea
    *("git_http_url", "git_ssh_url", "web_url"),  # GitLab's project
    *("git_http_url", "git_ssh_url", "homepage"),  # GitLab's repository
)


def _urls(payload: object) -> Iterator[str]:
    """The URLs by which the payload may mean its repository; full ones only, names are for all."""
    for part in (_mapping(payload).get(key) for key in ("repository", "project")):
        places = [_mapping(part).get(key) for key in _URL_KEYS]
        links = _mapping(_mapping(part).get("links"))  # Bitbucket's
        places.append(_mapping(links.get("html")).get("href"))
        for name in ("clone", "self"):
            found = links.get(name)
            listed = found[:4] if isinstance(found, list) else [found]
            places += [_mapping(link).get("href") for link in listed]
        for place in dict.fromkeys(place for place in places if isinstance(place, str)):
            if "://" in place or "@" in place:
                yield place


def _mapping(value: object) -> Mapping[str, object]:
    return value if isinstance(value, dict) else {}


def _signed(*headers: str, prefix: str = "") -> Proof:
    """A proof by the HMAC of the body, in one of the headers."""

    def proves(asked: Request, body: bytes, secret: bytes) -> bool:
        expected = prefix + hmac.new(secret, body, "sha256").hexdigest()
        return any(_same(asked.headers.get(name), expected.encode()) for name in headers)

    return proves


def _told(header: str, scheme: str = "") -> Proof:
    """A proof by the secret itself."""

    def proves(asked: Request, _: bytes, secret: bytes) -> bool:
        return _same(asked.headers.get(header), scheme.encode() + secret)

    return proves


def _same(given: str | None, expected: bytes) -> bool:
    # WSGI hands headers over as Latin-1, whatever bytes were sent.
    return hmac.compare_digest((given or "").encode("latin-1", "replace"), expected)


def _either(one: Proof, other: Proof) -> Proof:
    return lambda *given: one(*given) or other(*given)


_HUB = _signed("X-Hub-Signature-256", prefix="sha256=")
_PROOFS: Mapping[str, Proof] = {
    "github": _HUB,
    "gitlab": _told("X-Gitlab-Token"),
    "gitea": _signed("X-Gitea-Signature", "X-Forgejo-Signature"),
    "bitbucket": _signed("X-Hub-Signature", prefix="sha256="),
    "generic": _either(_told("Authorization", "Bearer "), _HUB),
}


def _answer(body: Mapping[str, str], status: int) -> Response:
    return Response(json.dumps(body), status, mimetype="application/json")
