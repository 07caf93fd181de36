"""S3 as SeaweedFS speaks it: versions, session tokens, buckets in the path or in the host's name.

It lets a signature with a wrong region pass, so that JuiceFS gives a second opinion.
"""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from servers import s3
from servers.process import HOST, executable, free_ports, running

_KEYS = s3.Keys("AKIATEST0000000MAIN1", "testsecretkey/0000000000000000000000000+")
_ROLE = "arn:aws:iam::role/reader"
_DOMAIN = "s3.localhost"
_ALL = "arn:aws:s3:::*"

_IDENTITIES = {
    "identities": [
        {
            "name": "admin",
            "credentials": [
                {"accessKey": _KEYS.access_key_id, "secretKey": _KEYS.secret_access_key}
            ],
            "actions": ["Admin", "Read", "Write", "List", "Tagging"],
        }
    ]
}


def _statement(**terms: object) -> dict[str, object]:
    return {"Version": "2012-10-17", "Statement": [{"Effect": "Allow", **terms}]}


_SESSIONS = {
    "sts": {
        "issuer": "tests",
        "signingKey": "dGVzdC1zaWduaW5nLWtleS0zMi1jaGFyYWN0ZXJzLWxvbmc=",
        "tokenDuration": "1h",
        "maxSessionLength": "12h",
    },
    "policy": {"defaultEffect": "Deny", "storeType": "memory"},
    "policies": [
        {
            "name": "read",
            "document": _statement(Action=["s3:GetObject"], Resource=[_ALL, f"{_ALL}/*"]),
        }
    ],
    "roles": [
        {
            "roleName": "reader",
            "roleArn": _ROLE,
            "trustPolicy": _statement(Principal="*", Action=["sts:AssumeRole"]),
            "attachedPolicies": ["read"],
        }
    ],
}


_PORTS = [
    *("s3.port", "s3.port.grpc", "master.port", "master.port.grpc", "filer.port"),
    *("filer.port.grpc", "volume.port", "volume.port.grpc", "admin.port", "admin.port.grpc"),
]


@dataclass(frozen=True)
class SeaweedFS(s3.Server):
    """A running server. `domain_url` is for virtual-host style; resolve `*.localhost` yourself."""

    domain_url: str

    def session(self) -> s3.Keys:
        """Temporary keys of a role that may read, with the session token that goes with them."""
        with s3.connect(self.endpoint_url, self.keys, "sts") as sts:
            answer = sts.assume_role(RoleArn=_ROLE, RoleSessionName="test")["Credentials"]
        return s3.Keys(answer["AccessKeyId"], answer["SecretAccessKey"], answer["SessionToken"])


@contextmanager
def start(directory: Path) -> Iterator[SeaweedFS]:
    """Starts one process that is master, volume server, filer and S3 gateway."""
    weed = executable("weed")
    (directory / "s3.json").write_text(json.dumps(_IDENTITIES))
    (directory / "iam.json").write_text(json.dumps(_SESSIONS))
    (directory / "data").mkdir()
    ports = dict(zip(_PORTS, free_ports(len(_PORTS)), strict=True))
    command = [
        *(weed, "mini", f"-dir={directory / 'data'}", f"-ip={HOST}", f"-ip.bind={HOST}"),
        *("-admin.ui=false", "-webdav=false", "-s3.port.iceberg=0", "-s3.port.lance=0"),
        *(f"-s3.config={directory / 's3.json'}", f"-s3.iam.config={directory / 'iam.json'}"),
        f"-s3.domainName={_DOMAIN}",
        *(f"-{name}={port}" for name, port in ports.items()),
    ]
    host, log = f"{HOST}:{ports['s3.port']}", directory / "seaweedfs.log"
    with s3.connect(f"http://{host}", _KEYS) as client:
        domain = f"http://{_DOMAIN}:{ports['s3.port']}"
        server = SeaweedFS(f"http://{host}", _KEYS, client, domain)
        # Health is reported before there is a volume to write to; a bucket is then there already.
        with running(command, server.probe, log=log):
            yield server
