"""Azure links: the same bytes as Azure's own library, read-only, and never wider than one blob."""

import hmac
import subprocess
import sys
from base64 import b64encode
from datetime import datetime, timedelta, timezone
from urllib.parse import parse_qs, quote, urlsplit

import pytest
from azure.core.exceptions import ClientAuthenticationError
from azure.storage.blob import BlobClient, UserDelegationKey
from azure.storage.blob._shared_access_signature import BlobSharedAccessSignature
from hypothesis import given, settings
from hypothesis import strategies as st

from registry.domain import Entry, RelPath
from registry.errors import CredentialsUnavailable
from registry.storage.azure import SERVICE_VERSION, AccountKey, AzureSigner, DelegationKey

NOW = datetime(2025, 3, 4, 5, 6, 7, 890_123, tzinfo=timezone.utc)
ACCOUNT_KEY = b64encode(bytes(range(64))).decode()
DELEGATION = DelegationKey(
    value=bytes(range(32)),
    object_id="11111111-2222-3333-4444-555555555555",
    tenant_id="66666666-7777-8888-9999-000000000000",
    start="2025-03-04T00:00:00Z",
    expiry="2025-03-05T00:00:00Z",
    service="b",
    version=SERVICE_VERSION,
)
blobs = st.one_of(
    st.text("abc/ #%+é~()!*'&=?:@,;$|\"<>^`{}[]\\.-_ü😀", min_size=1),
    st.text(st.characters(exclude_categories=["Cs", "Cc"]), min_size=1),
    st.from_regex(r"files/md5/[0-9a-f]{2}/[0-9a-f]{30}(\.dir)?", fullmatch=True),
)
versions = st.none() | st.just("2024-05-06T07:08:09.1234567Z")
endpoints = st.none() | st.sampled_from(
    ["http://127.0.0.1:10000/acct", "https://blobs.example.com", "https://h.example:8443/"]
)


def entry(key="blob", version=None):
    return Entry(RelPath("file"), key, version_id=version)


def with_key(endpoint=None, public_endpoint=None):
    return AzureSigner.from_account_key(
        "models",
        account_name="acct",
        account_key=ACCOUNT_KEY,
        endpoint=endpoint,
        public_endpoint=public_endpoint,
    )


def with_delegation(expiry=DELEGATION.expiry):
    from dataclasses import replace

    key = replace(DELEGATION, expiry=expiry)
    return AzureSigner("models", account_name="acct", key=lambda _now: key)


def asked_of_azure(blob, version, lifetime, endpoint, keep=None):
    """Azure's own SAS at our version of the rule, and the text that it signed."""
    delegation = UserDelegationKey()
    delegation.signed_oid = DELEGATION.object_id
    delegation.signed_tid = DELEGATION.tenant_id
    delegation.signed_start = DELEGATION.start
    delegation.signed_expiry = DELEGATION.expiry
    delegation.signed_service = DELEGATION.service
    delegation.signed_version = DELEGATION.version
    delegation.value = b64encode(DELEGATION.value).decode()
    keys = {"account_key": ACCOUNT_KEY} if keep is None else {"user_delegation_key": delegation}
    library = BlobSharedAccessSignature("acct", **keys)
    library.x_ms_version = SERVICE_VERSION
    start = NOW.replace(microsecond=0)
    return library.generate_blob(
        "models",
        blob,
        version_id=version,
        permission="r",
        start=start - timedelta(minutes=5),
        expiry=start + timedelta(seconds=lifetime),
        protocol="https,http" if (endpoint or "").startswith("http:") else "https",
        sts_hook=keep.append if keep is not None else None,
    )


def query(link):
    return {name: values[0] for name, values in parse_qs(urlsplit(link).query).items()}


@settings(max_examples=300)
@given(blobs, versions, st.integers(1, 604_800), endpoints)
def test_a_link_is_what_azures_library_signs(blob, version, lifetime, endpoint):
    expected = asked_of_azure(blob, version, lifetime, endpoint)
    if version:
        # The library leaves the version to be added to the URL, and repeats it as a snapshot.
        expected = expected.replace(f"&snapshot={quote(version)}", "").replace(
            "&sig=", f"&versionid={quote(version)}&sig="
        )

    link = with_key(endpoint).links(NOW, lifetime).sign(blob, entry(blob, version))

    assert expected == link.partition("?")[2]


@settings(max_examples=200)
@given(blobs, versions, st.integers(1, 60_000))
def test_a_delegated_link_is_what_azures_library_signs(blob, version, lifetime):
    signed = []
    expected = asked_of_azure(blob, version, lifetime, None, keep=signed)
    # The library signs by a later version of the rule, with two more identities before the
    # address and two more lines after the encryption scope. All are empty here.
    lines = signed[0].split("\n")
    assert lines[13:15] == ["", ""]
    assert lines[21:23] == ["", ""]
    text = "\n".join(lines[:13] + lines[15:21] + lines[23:])
    signature = b64encode(hmac.digest(DELEGATION.value, text.encode(), "sha256")).decode()

    link = with_delegation().links(NOW, lifetime).sign(blob, entry(blob, version))

    ours, theirs = query(link), query("?" + expected)
    assert signature == ours.pop("sig")
    assert version == ours.pop("versionid", None)
    theirs.pop("sig")
    theirs.pop("snapshot", None)
    assert theirs == ours


@settings(max_examples=200)
@given(blobs, endpoints)
def test_the_address_is_the_one_azures_library_reads_from(blob, endpoint):
    account = endpoint or "https://acct.blob.core.windows.net"
    expected = BlobClient(account, "models", blob).url

    link = with_key(endpoint).links(NOW, 60).sign(blob, entry(blob))

    assert expected == link.partition("?")[0]


def test_a_link_allows_to_read_one_blob_over_tls_and_nothing_else():
    asked = query(with_key().links(NOW, 3600).sign("m/blob", entry()))

    assert set(asked) == {"st", "se", "sp", "spr", "sv", "sr", "sig"}
    assert (asked["sp"], asked["sr"], asked["spr"]) == ("r", "b", "https")
    assert asked["st"] == "2025-03-04T05:01:07Z"
    assert asked["se"] == "2025-03-04T06:06:07Z"


def test_clients_get_the_public_endpoint_and_the_service_reads_from_its_own():
    signer = with_key("http://127.0.0.1:10000/acct", "https://blobs.example.com")

    link = signer.links(NOW, 3600).sign("b", entry())
    origin = signer.origin("b", entry(), NOW)

    assert link.startswith("https://blobs.example.com/models/b?")
    assert query(link)["spr"] == "https"
    assert origin.url.startswith("http://127.0.0.1:10000/acct/models/b?")
    assert query(origin.url)["spr"] == "https,http"
    assert query(origin.url)["se"] == "2025-03-04T05:11:07Z"


def test_a_link_lives_no_longer_than_its_delegation_key():
    links = with_delegation("2025-03-04T05:20:00Z").links(NOW, 3600)

    assert links.expires == datetime(2025, 3, 4, 5, 20, tzinfo=timezone.utc)
    assert query(links.sign("b", entry()))["se"] == "2025-03-04T05:20:00Z"


def test_a_delegation_key_with_less_than_five_minutes_left_signs_nothing():
    with pytest.raises(CredentialsUnavailable):
        with_delegation("2025-03-04T05:11:00Z").links(NOW, 60)


def test_an_identity_that_azure_does_not_know_is_unavailable_and_not_a_crash():
    class Stranger:
        def get_token(self, *scopes, **options):
            raise ClientAuthenticationError("the secret is hush-hush")

    signer = AzureSigner.from_default_credential(
        "models", account_name="acct", credential=Stranger()
    )

    with pytest.raises(CredentialsUnavailable) as caught:
        signer.links(NOW, 60)
    assert "acct.blob.core.windows.net" in caught.value.detail
    assert "hush" not in caught.value.detail


@pytest.mark.parametrize(
    ("text", "begins"),
    [
        (
            f"DefaultEndpointsProtocol=https;AccountName=acct;AccountKey={ACCOUNT_KEY};"
            "EndpointSuffix=core.chinacloudapi.cn",
            "https://acct.blob.core.chinacloudapi.cn/models/b?",
        ),
        (
            f" accountname=acct ; ACCOUNTKEY={ACCOUNT_KEY};",
            "https://acct.blob.core.windows.net/models/b?",
        ),
        (
            f"AccountName=acct;AccountKey={ACCOUNT_KEY};"
            "BlobEndpoint=http://127.0.0.1:10000/acct;DefaultEndpointsProtocol=http",
            "http://127.0.0.1:10000/acct/models/b?",
        ),
        ("UseDevelopmentStorage=true", "http://127.0.0.1:10000/devstoreaccount1/models/b?"),
    ],
)
def test_a_connection_string_says_account_key_and_endpoint(text, begins):
    signer = AzureSigner.from_connection_string("models", text)

    assert signer.links(NOW, 60).sign("b", entry()).startswith(begins)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "hush-hush",
        "AccountName=acct",
        "AccountName=acct;AccountKey=hush-hush",
        "BlobEndpoint=https://acct.blob.core.windows.net;SharedAccessSignature=sv=1&sig=hush-hush",
        f"AccountName=acct;AccountKey={ACCOUNT_KEY};BlobEndpoint=https://h/?sig=hush-hush",
        f"AccountName=ac/ct;AccountKey={ACCOUNT_KEY}",
    ],
)
def test_a_connection_string_that_cannot_sign_is_refused_without_quoting_it(text):
    with pytest.raises(ValueError, match=r"\w") as caught:
        AzureSigner.from_connection_string("models", text)
    assert "hush" not in str(caught.value)


@pytest.mark.parametrize("container", ["a/b", "", "../x", "Up"])
def test_what_is_not_the_name_of_a_container_is_refused(container):
    with pytest.raises(ValueError, match="container"):
        AzureSigner.from_account_key(container, account_name="acct", account_key=ACCOUNT_KEY)


def test_secrets_do_not_show():
    assert "value" not in repr(AccountKey.parse(ACCOUNT_KEY))
    assert "value" not in repr(DELEGATION)


def test_the_azure_libraries_are_not_loaded_for_an_account_key():
    code = (
        "import sys, registry.storage.azure as azure\n"
        "from datetime import datetime, timezone\n"
        f"signer = azure.AzureSigner.from_account_key('models', account_name='acct',\n"
        f"    account_key={ACCOUNT_KEY!r})\n"
        "signer.links(datetime.now(timezone.utc), 60)\n"
        "sys.exit(any(name.split('.')[0] == 'azure' for name in sys.modules))\n"
    )

    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
