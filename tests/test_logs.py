"""Logs hold no secrets, whoever writes them."""

import json
import logging
import subprocess
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from registry.access import PREFIX
from registry.logs import JsonFormatter, redact

CANARY = "Canary0Canary1Canary2"


def written(message: object, *arguments: object, **extra: object) -> dict[str, object]:
    record = logging.getLogger("registry.test").makeRecord(
        "registry.test", logging.INFO, "file", 1, message, arguments, None, extra=extra
    )
    line = JsonFormatter().format(record)
    assert "\n" not in line
    return dict(json.loads(line))


@pytest.mark.parametrize("text", [
    f"Authorization: token {CANARY}",
    f"authorization: Bearer {CANARY}",
    f"{{'Authorization': 'Basic {CANARY}'}}",
    f"('Authorization', 'token {CANARY}')",
    f'"authorization":"{CANARY}"',
    f"sent token {PREFIX}{CANARY}.{CANARY}",
    f"{PREFIX}{CANARY}-_{CANARY}.{CANARY}",
    f"Bearer {CANARY}",
    f"eyJhbGciOiJSUzI1NiJ9.eyJ{CANARY}.{CANARY}",
    f"subject_token=eyJhbGciOiJSUzI1NiJ9.eyJ{CANARY}.{CANARY}&scope=",
    f"https://bucket.s3.amazonaws.com/key?X-Amz-Signature={CANARY}&X-Amz-Expires=3600",
    f"X-Amz-Signature={CANARY}",
    f"X-Amz-Credential={CANARY}&X-Amz-Security-Token={CANARY}",
    f"x-amz-security-token: {CANARY}",
    f"https://account.blob.core.windows.net/c/b?se=2027&sig={CANARY}%3D",
    f"?sp=r&sig={CANARY}%2B",
    f"sig%3D{CANARY}",
    f"https://store.example/file?md5={CANARY}&expires=1800000000",
    f"GET /file?md5={CANARY}&expires=1 HTTP/1.1",
    f"GET /objects/{CANARY}.{CANARY} HTTP/1.1",
    f"https://registry.example/objects/{CANARY}",
    f"https://git:{CANARY}@git.example/team/models.git",
    f"cloning https://{CANARY}@git.example/x",
    f"postgresql+psycopg://user:{CANARY}@host/registry",
    f"AccountName=a;AccountKey={CANARY}==;EndpointSuffix=core",
    f"aws_secret_access_key = {CANARY}".replace(" = ", "="),
    f"password: {CANARY}",
    f"?token={CANARY}",
    f"Error handling request /api?repo=x&access_token={CANARY}",
])  # fmt: skip
def test_no_secret_survives_in_any_form_it_is_known_to_take(text) -> None:
    assert CANARY not in redact(text)
    for line in (
        written(text),
        written("%s", text),
        written("fine", reason=text, path=[text]),
        written("100%"),
    ):
        assert CANARY not in json.dumps(line)


@pytest.mark.parametrize("text", [
    "no token in the Authorization header",
    "token 0123456789ab is revoked",
    "repository team/models cannot be fetched: its origin does not answer",
    "Storage s3://bucket/files/md5/ab/cdef: it does not answer in time.",
    "/api/model-registry/get-download-uris",
    "the secret is out",
])  # fmt: skip
def test_what_is_no_secret_stays_readable(text) -> None:
    assert redact(text) == text


def test_a_traceback_is_one_line_and_redacted_too() -> None:
    try:
        raise ValueError(f"https://host/key?X-Amz-Signature={CANARY}")
    except ValueError:
        info = sys.exc_info()
    record = logging.LogRecord("registry", logging.ERROR, "file", 1, "failed", (), info)

    line = JsonFormatter().format(record)

    assert "ValueError: https://host/key?***" in json.loads(line)["error"]
    assert CANARY not in line
    assert "\n" not in line


@given(st.text(), st.text())
def test_any_text_becomes_one_line_of_json(message: str, reason: str) -> None:
    line = written("%s", message, reason=reason)

    assert line["level"] == "info"
    assert isinstance(line["message"], str)


@given(st.text())
def test_what_is_redacted_once_stays_as_it_is(text: str) -> None:
    assert redact(redact(text)) == redact(text)


def test_no_text_that_a_client_chooses_keeps_a_worker_busy() -> None:
    texts = [
        "'key' + 'a' * 60_000",
        "'key ' + 'a://' * 15_000",
        "'key://' + 'a:' * 30_000",
        "'eyJ-' * 15_000",
        "'token ' * 10_000",
        "'password:' + ' ' * 60_000",
        "'basic' + ' ' * 60_000",
        "'/objects/' * 6_000",
        "'X-Amz-' * 10_000",
    ]
    # Apart, since what never ends here would hold up the tests as it does a worker.
    program = f"from registry.logs import redact; [*map(redact, [{', '.join(texts)}])]"

    subprocess.run([sys.executable, "-c", program], check=True, timeout=60)
