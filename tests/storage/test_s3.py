"""S3 links: the same bytes as botocore's, and never a longer life than the credentials'."""

import json
import sys
from datetime import datetime, timedelta, timezone
from functools import lru_cache
from urllib.parse import parse_qs, urlsplit

import botocore.session
import pytest
from botocore.config import Config
from hypothesis import given, settings
from hypothesis import strategies as st

from registry.domain import Entry, RelPath
from registry.errors import CredentialsUnavailable
from registry.storage.s3 import Credentials, S3Signer, chain_credentials, static_credentials

NOW = datetime(2025, 3, 4, 5, 6, 7, 890_123, tzinfo=timezone.utc)
KEYS = static_credentials("AKIDEXAMPLE", "wJalrXUtnFEMI/K7MDENG+bPxRfiCYEXAMPLEKEY")

REGIONS = [
    "us-east-1",
    "us-west-2",
    "eu-west-1",
    "ap-southeast-3",
    "cn-north-1",
    "us-gov-west-1",
    "us-iso-east-1",
    "us-isob-east-1",
    "us-isof-south-1",
    "eu-isoe-west-1",
    "eusc-de-east-1",
]
ENDPOINTS = [
    "http://127.0.0.1:9000",
    "http://localhost:9000",
    "http://[::1]:9000",
    "http://h.example:80",
    "http://h.example/",
    "https://minio.example.com",
    "https://minio.example.com:443",
    "https://UPPER.Example.com:8443",
    "https://gw.example.com/pre/fix",
    "https://gw.example.com/pre/fix/",
    "https://s3.eu-west-1.amazonaws.com",
]
BUCKETS = [
    "bkt",
    "my-bucket-1",
    "b.c.d",
    "b..c",
    "b-.c",
    "My_Bucket",
    "bk",
    "a" * 63,
    "a" * 64,
    "-b",
    "10.0.0.1",
]
odd_keys = st.one_of(
    st.text("abc /#%+é~()!*'&=?:@,;$|\"<>^`{}[]\\.-_ü😀", min_size=1),
    st.text(st.characters(exclude_categories=["Cs"]), min_size=1),
    st.from_regex(r"files/md5/[0-9a-f]{2}/[0-9a-f]{30}(\.dir)?", fullmatch=True),
)
odd_texts = st.text(st.characters(exclude_categories=["Cs", "Cc"]), min_size=1, max_size=60)


@pytest.fixture(autouse=True, scope="module")
def _no_configuration_of_this_machine(tmp_path_factory):
    nowhere = tmp_path_factory.mktemp("aws") / "none"
    with pytest.MonkeyPatch.context() as patch:
        for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN"):
            patch.delenv(name, raising=False)
        patch.delenv("AWS_PROFILE", raising=False)
        patch.setenv("AWS_CONFIG_FILE", str(nowhere))
        patch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(nowhere))
        patch.setenv("AWS_EC2_METADATA_DISABLED", "true")
        yield


@lru_cache(maxsize=1)
def session():
    return botocore.session.Session()


@lru_cache(maxsize=500)
def client(region, endpoint, style):
    # botocore's "auto" on AWS is the global host for presigned links; ours is the region's.
    if endpoint is None and style == "auto":
        style = "virtual"
    return session().create_client(
        "s3",
        region_name=region,
        endpoint_url=endpoint,
        aws_access_key_id="replaced",
        aws_secret_access_key="replaced",
        config=Config(signature_version="s3v4", s3={"addressing_style": style}),
    )


def botocore_link(where, bucket, key, version, credentials, lifetime):
    asked = client(*where)
    asked._request_signer._credentials = botocore.credentials.Credentials(
        credentials.access_key_id, credentials.secret_access_key, credentials.session_token
    )
    wanted = {"Bucket": bucket, "Key": key} | ({"VersionId": version} if version else {})
    with pytest.MonkeyPatch.context() as patch:
        frozen = NOW.replace(tzinfo=None)
        patch.setattr("botocore.auth.get_current_datetime", lambda *_, **__: frozen)
        return asked.generate_presigned_url("get_object", Params=wanted, ExpiresIn=lifetime)


def entry(key="k", version=None):
    return Entry(RelPath("file"), key, version_id=version)


def query(link):
    return {name: values[0] for name, values in parse_qs(urlsplit(link).query).items()}


@settings(max_examples=400)
@given(
    key=odd_keys,
    bucket=st.sampled_from(BUCKETS),
    region=st.sampled_from(REGIONS),
    endpoint=st.none() | st.sampled_from(ENDPOINTS),
    style=st.sampled_from(["auto", "path", "virtual"]),
    version=st.none() | odd_texts,
    token=st.none() | odd_texts,
    secret=odd_texts,
    lifetime=st.integers(1, 604_800),
)
def test_a_link_is_botocores_byte_for_byte(
    *, key, bucket, region, endpoint, style, version, token, secret, lifetime
):
    numeric = endpoint and ("127.0.0.1" in endpoint or "[" in endpoint)
    if numeric and style == "virtual" and "." in bucket:
        style = "path"  # botocore writes the host b.c.d.127.0.0.1, which no resolver knows
    credentials = Credentials("AKID/EXAMPLE", secret, token)

    signer = S3Signer(
        bucket,
        credentials=lambda _now: credentials,
        region=region,
        endpoint_url=endpoint,
        addressing_style=style,
    )

    assert botocore_link(
        (region, endpoint, style), bucket, key, version, credentials, lifetime
    ) == signer.links(NOW, lifetime).sign(key, entry(key, version))


REQUESTS = {
    "put_object": ("PUT", {}),
    "head_object": ("HEAD", {}),
    "delete_object": ("DELETE", {}),
    "create_multipart_upload": ("POST", {"uploads": ""}),
    "upload_part": ("PUT", {"partNumber": "7", "uploadId": "a/b+c=~ü"}),
    "complete_multipart_upload": ("POST", {"uploadId": "a/b+c=~ü"}),
    "abort_multipart_upload": ("DELETE", {"uploadId": "a/b+c=~ü"}),
}


@pytest.mark.parametrize("method", REQUESTS)
@settings(max_examples=50)
@given(key=odd_keys, endpoint=st.none() | st.sampled_from(ENDPOINTS), token=st.none() | odd_texts)
def test_what_the_service_writes_is_signed_as_botocore_signs_it(*, method, key, endpoint, token):
    verb, parameters = REQUESTS[method]
    credentials = Credentials("AKIDEXAMPLE", "secret", token)
    signer = S3Signer("bkt", credentials=lambda _: credentials, endpoint_url=endpoint)
    known = {"partNumber": ("PartNumber", 7), "uploadId": ("UploadId", "a/b+c=~ü")}
    asked = client("us-east-1", endpoint, "auto")
    asked._request_signer._credentials = botocore.credentials.Credentials(
        "AKIDEXAMPLE", "secret", token
    )
    wanted = {"Bucket": "bkt", "Key": key}
    wanted |= dict(known[name] for name in parameters if name in known)
    with pytest.MonkeyPatch.context() as patch:
        frozen = NOW.replace(tzinfo=None)
        patch.setattr("botocore.auth.get_current_datetime", lambda *_, **__: frozen)
        expected = asked.generate_presigned_url(method, Params=wanted, ExpiresIn=300)

    found = signer.request(verb, key, NOW, parameters)

    assert query(found) == query(expected)
    assert sorted(urlsplit(found).query.split("&")) == sorted(urlsplit(expected).query.split("&"))
    assert found.partition("?")[0] == expected.partition("?")[0]


def test_the_service_writes_at_its_own_endpoint():
    signer = S3Signer(
        "bkt",
        credentials=KEYS,
        endpoint_url="http://10.0.0.5:9000",
        public_endpoint_url="https://objects.example.com",
    )

    assert signer.request("PUT", "k", NOW).startswith("http://10.0.0.5:9000/bkt/k?")


@pytest.mark.parametrize("region", REGIONS)
def test_every_partition_of_aws_has_its_own_domain(region):
    signer = S3Signer("bkt", credentials=KEYS, region=region)

    expected = client(region, None, "virtual").generate_presigned_url(
        "get_object", Params={"Bucket": "bkt", "Key": "k"}
    )

    assert urlsplit(expected).netloc == urlsplit(signer.links(NOW, 60).sign("k", entry())).netloc


def test_the_host_of_the_region_is_used_so_that_no_link_meets_a_redirect():
    def host(region, bucket="bkt", **options):
        signer = S3Signer(bucket, credentials=KEYS, region=region, **options)
        return urlsplit(signer.links(NOW, 60).sign("k", entry())).netloc

    assert host("us-east-1") == "bkt.s3.amazonaws.com"
    assert host("eu-west-1") == "bkt.s3.eu-west-1.amazonaws.com"
    assert host("cn-north-1") == "bkt.s3.cn-north-1.amazonaws.com.cn"
    assert host("eu-west-1", "dotted.name") == "s3.eu-west-1.amazonaws.com"


def test_a_bucket_with_dots_is_never_put_before_an_address():
    for endpoint in ("http://127.0.0.1:9000", "http://[::1]:9000"):
        signer = S3Signer(
            "b.c", credentials=KEYS, endpoint_url=endpoint, addressing_style="virtual"
        )

        assert signer.links(NOW, 60).sign("k", entry()).startswith(f"{endpoint}/b.c/k?")


def test_clients_get_the_public_endpoint_and_the_service_reads_from_its_own():
    signer = S3Signer(
        "bkt",
        credentials=KEYS,
        endpoint_url="http://10.0.0.5:9000",
        public_endpoint_url="https://objects.example.com",
    )

    assert signer.links(NOW, 60).sign("k", entry()).startswith("https://objects.example.com/bkt/k?")
    origin = signer.origin("k", entry(), NOW)
    assert origin.url.startswith("http://10.0.0.5:9000/bkt/k?")
    assert query(origin.url)["X-Amz-Expires"] == "300"


def test_a_link_lives_no_longer_than_the_credentials():
    end = NOW + timedelta(minutes=20, seconds=0.7)
    signer = S3Signer("bkt", credentials=lambda _: Credentials("A", "s", "t", end))

    links = signer.links(NOW, 3600)
    asked = query(links.sign("k", entry()))

    assert links.expires <= end
    signed_at = datetime.strptime(asked["X-Amz-Date"], "%Y%m%dT%H%M%S%z")
    assert links.expires == signed_at + timedelta(seconds=int(asked["X-Amz-Expires"]))


def test_credentials_with_less_than_five_minutes_left_sign_nothing():
    end = NOW + timedelta(seconds=299)
    signer = S3Signer("bkt", credentials=lambda _: Credentials("A", "s", "t", end))

    with pytest.raises(CredentialsUnavailable):
        signer.links(NOW, 60)
    with pytest.raises(CredentialsUnavailable):
        signer.origin("k", entry(), NOW)


def test_the_key_of_a_day_is_not_used_on_the_next_or_for_other_credentials():
    current = Credentials("A", "one")
    signer = S3Signer("bkt", credentials=lambda _: current)

    def fresh(now):
        return S3Signer("bkt", credentials=lambda _: current).links(now, 60).sign("k", entry())

    for now in (NOW, NOW + timedelta(days=1), NOW):
        assert fresh(now) == signer.links(now, 60).sign("k", entry())
    current = Credentials("A", "two")
    assert fresh(NOW) == signer.links(NOW, 60).sign("k", entry())


def test_links_of_one_answer_stay_with_their_credentials_when_those_change():
    current = Credentials("OLD", "one")
    signer = S3Signer("bkt", credentials=lambda _: current)
    links = signer.links(NOW, 60)
    before = links.sign("k", entry())

    current = Credentials("NEW", "two")

    assert before == links.sign("k", entry())
    assert "NEW" in signer.links(NOW, 60).sign("k", entry())


@pytest.mark.parametrize(
    ("bucket", "options"),
    [
        ("b/ucket", {}),
        ("", {}),
        ("b@evil.example", {}),
        ("express--use1-az4--x-s3", {}),
        ("bkt", {"region": "eu.evil.example/"}),
        ("bkt", {"endpoint_url": "ftp://h"}),
        ("bkt", {"endpoint_url": "https://user:pass@h"}),
        ("bkt", {"endpoint_url": "https://h?x=1"}),
        ("bkt", {"endpoint_url": "https://"}),
    ],
)
def test_what_cannot_be_addressed_is_refused_when_the_signer_is_made(bucket, options):
    with pytest.raises(ValueError, match="name|region|endpoint"):
        S3Signer(bucket, credentials=KEYS, **options)


def test_secrets_do_not_show():
    credentials = Credentials("AKID", "hush-hush", "to-ken")

    assert "AKID" in repr(credentials)
    assert "hush" not in repr(credentials)
    assert "to-ken" not in repr(credentials)


def a_profile(tmp_path, monkeypatch, document):
    """A profile whose credentials come from a process, which also counts how often it runs."""
    answer = tmp_path / "answer.json"
    answer.write_text(json.dumps(document))
    script = tmp_path / "process.py"
    script.write_text(
        "import pathlib\n"
        f"runs = pathlib.Path({str(tmp_path / 'runs')!r})\n"
        "runs.write_text((runs.read_text() if runs.exists() else '') + 'x')\n"
        f"print(pathlib.Path({str(answer)!r}).read_text())\n"
    )
    config = tmp_path / "config"
    config.write_text(f"[profile models]\ncredential_process = {sys.executable} {script}\n")
    monkeypatch.setenv("AWS_CONFIG_FILE", str(config))
    return answer, lambda: len((tmp_path / "runs").read_text())


def test_the_chain_of_boto3_is_asked_once_and_again_at_half_life(tmp_path, monkeypatch):
    # botocore itself looks at the clock, so the story plays around the real time.
    now = datetime.now(timezone.utc).replace(microsecond=0)
    document = {
        "Version": 1,
        "AccessKeyId": "FIRST",
        "SecretAccessKey": "s",
        "SessionToken": "t",
        "Expiration": (now + timedelta(hours=2)).isoformat(),
    }
    answer, runs = a_profile(tmp_path, monkeypatch, document)
    chain = chain_credentials("models")

    first = chain(now)
    assert first == Credentials("FIRST", "s", "t", now + timedelta(hours=2))
    assert chain(now + timedelta(minutes=59)) == first
    assert runs() == 1

    answer.write_text(json.dumps(document | {"AccessKeyId": "SECOND"}))
    assert chain(now + timedelta(minutes=61)).access_key_id == "SECOND"
    assert runs() == 2


def test_a_chain_that_breaks_keeps_the_old_credentials_until_their_last_minutes(
    tmp_path, monkeypatch
):
    now = datetime.now(timezone.utc).replace(microsecond=0)
    document = {
        "Version": 1,
        "AccessKeyId": "FIRST",
        "SecretAccessKey": "s",
        "SessionToken": "t",
        "Expiration": (now + timedelta(hours=2)).isoformat(),
    }
    answer, runs = a_profile(tmp_path, monkeypatch, document)
    chain = chain_credentials("models")
    chain(now)
    answer.write_text("the secret is hush-hush")

    for minutes in (61, 61.5, 114):
        assert chain(now + timedelta(minutes=minutes)).access_key_id == "FIRST"
    assert runs() == 3
    with pytest.raises(CredentialsUnavailable) as caught:
        chain(now + timedelta(minutes=116))
    assert "models" in caught.value.detail
    assert "hush" not in caught.value.detail


@pytest.mark.parametrize("profile", [None, "unheard-of"])
def test_a_chain_without_credentials_is_unavailable_and_not_a_crash(profile):
    with pytest.raises(CredentialsUnavailable):
        chain_credentials(profile)(NOW)


def test_boto3_is_not_loaded_for_keys_of_the_configuration():
    import subprocess

    code = (
        "import sys, registry.storage.s3 as s3\n"
        "from datetime import datetime, timezone\n"
        "signer = s3.S3Signer('bkt', credentials=s3.static_credentials('a', 'b'))\n"
        "signer.links(datetime.now(timezone.utc), 60)\n"
        "sys.exit(any(name in sys.modules for name in ('boto3', 'botocore')))\n"
    )

    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
