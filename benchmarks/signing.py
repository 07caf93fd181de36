"""Links a second: ours beside botocore's and Azure's own, in one run, as ratios.

    python -m benchmarks.signing

Each figure is the median of several rounds in which both sides alternate, so that a machine that
gets slower in the middle slows both. The outputs are compared before anything is timed.
"""

import base64
import statistics
import time
from collections.abc import Callable
from datetime import datetime, timedelta, timezone
from unittest import mock

import botocore.auth
import botocore.config
import botocore.session
from azure.storage.blob import BlobSasPermissions, generate_blob_sas

from registry.domain import Entry, RelPath
from registry.storage.azure import AzureSigner
from registry.storage.s3 import S3Signer, static_credentials

ROUNDS, LINKS, LIFETIME = 7, 2000, 3600
KEY = "files/md5/8e/790992eed47d33b14b1f7b7247c251"
ENTRY = Entry(RelPath("model.pkl"), KEY, "8e790992eed47d33b14b1f7b7247c251")
NOW = datetime(2026, 1, 2, 3, 4, 5, tzinfo=timezone.utc)


def s3() -> tuple[Callable[[], str], Callable[[], str]]:
    """One GET link: ours within an answer, and botocore's."""
    signer = S3Signer(
        "team-models", region="eu-west-1", credentials=static_credentials("AKIAEXAMPLE", "secret")
    )
    sign = signer.links(NOW, LIFETIME).sign
    session = botocore.session.Session()
    session.set_credentials("AKIAEXAMPLE", "secret")
    config = botocore.config.Config(signature_version="s3v4", s3={"addressing_style": "virtual"})
    client = session.create_client("s3", region_name="eu-west-1", config=config)

    def theirs() -> str:
        link: str = client.generate_presigned_url(
            "get_object", Params={"Bucket": "team-models", "Key": f"dvc/{KEY}"}, ExpiresIn=LIFETIME
        )
        return link

    with mock.patch.object(botocore.auth, "get_current_datetime", return_value=NOW, create=True):
        same = sign(f"dvc/{KEY}", ENTRY) == theirs()
    print(f"S3: the outputs {'agree' if same else 'DIFFER'} at a frozen time")
    return lambda: sign(f"dvc/{KEY}", ENTRY), theirs


def azure() -> tuple[Callable[[], str], Callable[[], str]]:
    """One blob SAS: ours within an answer, and that of Azure's library."""
    key = base64.b64encode(b"k" * 64).decode()
    signer = AzureSigner.from_account_key("models", account_name="acct", account_key=key)
    sign = signer.links(NOW, LIFETIME).sign

    def theirs() -> str:
        return generate_blob_sas(
            "acct",
            "models",
            f"dvc/{KEY}",
            account_key=key,
            permission=BlobSasPermissions(read=True),
            start=NOW - timedelta(minutes=5),
            expiry=NOW + timedelta(seconds=LIFETIME),
            protocol="https",
        )

    return lambda: sign(f"dvc/{KEY}", ENTRY), theirs


def seconds(call: Callable[[], str]) -> float:
    """Wall time of one call, over LINKS of them."""
    start = time.perf_counter()
    for _ in range(LINKS):
        call()
    return (time.perf_counter() - start) / LINKS


def main() -> None:
    """Prints a row for each store."""
    for name, (ours, theirs) in {"S3": s3(), "Azure": azure()}.items():
        pairs = [(seconds(ours), seconds(theirs)) for _ in range(ROUNDS)]
        ratio = statistics.median(b / a for a, b in pairs)
        mine = statistics.median(a for a, _ in pairs)
        print(f"{name}: {mine * 1e6:.1f} us a link, {ratio:.1f} times faster than the library")


if __name__ == "__main__":
    main()
