"""Whoever runs a client: where they work, what they keep, which service and keys are theirs.

A client has no configuration file of its own. What it needs is in the environment already, for DVC
and for the stores, and is read here, once.
"""

import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import platformdirs


@dataclass(frozen=True)
class User:
    """The environment of a client.

    `directory` is where they work, `cache` where mirrors and manifests are kept, which can be
    deleted at any time. `service` and `token` say which registry answers, if any does. Of DVC's own
    configuration files, `dvc_configs`, the last counts. What begins with `s3_` and `azure_` is what
    the libraries of the stores read from the environment. `proxies` and `ca_bundle` are as curl,
    requests and DVC have them, the proxies by scheme, with "all" and "no".
    """

    directory: Path
    cache: Path
    service: str | None = None
    token: str | None = field(default=None, repr=False)
    dvc_configs: tuple[Path, ...] = ()
    s3_endpoint: str | None = None
    s3_region: str | None = None
    s3_profile: str | None = None
    azure_connection_string: str | None = field(default=None, repr=False)
    azure_account: str | None = None
    proxies: Mapping[str, str] = field(default_factory=dict, repr=False)
    ca_bundle: str | None = None

    @classmethod
    def load(cls, environ: Mapping[str, str] = os.environ) -> "User":
        """As the environment says. An empty variable counts as one that is not set."""

        def first(*names: str) -> str | None:
            return next((environ[name] for name in names if environ.get(name)), None)

        cache = first("REGISTRY_CACHE_DIR") or platformdirs.user_cache_dir("git-model-registry")
        theirs = first("DVC_GLOBAL_CONFIG_DIR") or platformdirs.user_config_dir("dvc", "iterative")
        every = first("DVC_SYSTEM_CONFIG_DIR") or platformdirs.site_config_dir("dvc", "iterative")
        return cls(
            directory=Path.cwd(),
            cache=Path(cache).absolute(),
            service=first("REGISTRY_URL", "DVC_STUDIO_URL"),
            token=(first("REGISTRY_TOKEN", "DVC_STUDIO_TOKEN") or "").strip() or None,
            dvc_configs=(Path(every, "config"), Path(theirs, "config")),
            s3_endpoint=first("AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT_URL"),
            s3_region=first("AWS_REGION", "AWS_DEFAULT_REGION"),
            s3_profile=first("AWS_PROFILE"),
            azure_connection_string=first("AZURE_STORAGE_CONNECTION_STRING"),
            azure_account=first("AZURE_STORAGE_ACCOUNT_NAME", "AZURE_STORAGE_ACCOUNT"),
            proxies=_proxies(environ),
            ca_bundle=first("REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE"),
        )


def _proxies(environ: Mapping[str, str]) -> dict[str, str]:
    # HTTP_PROXY in capitals is what a CGI script finds a header of a request in: curl ignores it.
    found = {}
    for scheme in ("http", "https", "all", "no"):
        capitals = "" if scheme == "http" else environ.get(f"{scheme.upper()}_PROXY", "")
        value = environ.get(f"{scheme}_proxy", capitals)
        if value:
            found[scheme] = value
    return found
