"""What every server that speaks S3 can be asked for."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import boto3
from botocore.config import Config

REGION = "us-east-1"


@dataclass(frozen=True)
class Keys:
    """What signs a request."""

    access_key_id: str
    secret_access_key: str = field(repr=False)
    session_token: str | None = field(default=None, repr=False)


@contextmanager
def connect(endpoint_url: str, keys: Keys, service: str = "s3") -> Iterator[Any]:
    """A client of boto3, which speaks plain HTTP to one server."""
    client = boto3.session.Session().client(
        service,
        region_name=REGION,
        endpoint_url=endpoint_url,
        aws_access_key_id=keys.access_key_id,
        aws_secret_access_key=keys.secret_access_key,
        config=Config(
            connect_timeout=2,
            read_timeout=10,
            retries={"total_max_attempts": 1},
            s3={"addressing_style": "path"},
        ),
    )
    try:
        yield client
    finally:
        client.close()


@dataclass(frozen=True)
class Server:
    """A running server in the region `REGION`; `client` is boto3's, and `keys` open everything."""

    endpoint_url: str
    keys: Keys
    client: Any = field(repr=False)

    def create_bucket(self, bucket: str, *, versioned: bool = False) -> None:
        """Creates a bucket, which may be there already."""
        if bucket not in [known["Name"] for known in self.client.list_buckets()["Buckets"]]:
            self.client.create_bucket(Bucket=bucket)
        if versioned:
            self.client.put_bucket_versioning(
                Bucket=bucket, VersioningConfiguration={"Status": "Enabled"}
            )

    def put(self, bucket: str, key: str, data: bytes) -> str | None:
        """Stores an object. The id of its version, where the bucket keeps versions."""
        answer = self.client.put_object(Bucket=bucket, Key=key, Body=data)
        version: str | None = answer.get("VersionId")
        return version

    def get(self, bucket: str, key: str) -> bytes:
        """The bytes of an object."""
        data: bytes = self.client.get_object(Bucket=bucket, Key=key)["Body"].read()
        return data

    def probe(self) -> None:
        """Stores an object, as the tests will do; raises until that works."""
        self.create_bucket("probe")
        self.put("probe", "probe", b"1")
