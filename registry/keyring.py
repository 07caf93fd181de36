"""The stores that a user reaches with their own keys, when no service stands between.

A repository says in which bucket its objects are, and nothing more: where a signature, a token or a
password is sent to is the user's word alone. It comes from the environment, from the chains of the
stores' own libraries, or from DVC's configuration files that are in no repository (ADR 9).
"""

from base64 import b64encode
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING

from registry.domain import Entry, StorageUrl
from registry.dvc import config as dvc_config
from registry.dvc.config import Config
from registry.errors import InvalidMetadata, RegistryError, RemoteUnusable
from registry.storage import Grants, Links, Location, Origin, Signer
from registry.storage.http import HttpSigner
from registry.storage.stores import Store
from registry.user import User

if TYPE_CHECKING:  # nobody waits for a kind of store that is not theirs
    from registry.storage.azure import AzureSigner
    from registry.storage.s3 import S3Signer

_KEPT = frozenset(
    {
        *("url", "endpointurl", "region", "profile"),
        *("access_key_id", "secret_access_key", "session_token"),
        *("account_name", "account_key", "connection_string", "user", "password"),
    }
)
"""The options of a remote that count in the user's own files."""
_NAMED = frozenset({"url", "version_aware", "worktree", "endpointurl", "account_name"})
"""Those that are looked at in the repository's: to say what it says, not to do it."""

Options = Mapping[str, str]


@dataclass(frozen=True)
class Keyring:
    """The access of `user`. `committed` are the DVC configurations of the repository, `own` the
    files of the user, of which the last counts. `local`: the repository is on the user's machine,
    so that it may speak of directories there.
    """

    user: User
    committed: tuple[Config, ...]
    own: tuple[Path, ...]
    local: bool

    @classmethod
    def of(
        cls, user: User, committed: Iterable[bytes], own: Iterable[Path], *, local: bool
    ) -> "Keyring":
        """From the bytes of every `.dvc/config` of a revision: a broken one says nothing."""
        read = []
        for data in committed:
            with suppress(InvalidMetadata):
                read.append(dvc_config.parse(data, ".dvc/config", _NAMED))
        return cls(user, tuple(read), tuple(own), local)

    def grants(self) -> Grants:
        """Every store, with what opens it. Raises InvalidMetadata for a broken file of the user."""
        sections: dict[str, dict[str, str]] = {}
        for file in self.own:
            for name, options in _read(file).options.items():
                sections.setdefault(name, {}).update(_given(options))
        signers: dict[tuple[str | None, str, str], Signer] = {}

        def location(url: StorageUrl) -> Location:
            remote = self._remote(url, sections)
            # A directory or a web server is read below the place itself, a bucket as a whole.
            whole = url.authority if url.scheme in ("s3", "azure") else str(url)
            key = (remote.name, url.scheme, whole)
            if key not in signers:
                try:
                    signers[key] = self._signer(url, remote)
                except ValueError as error:
                    raise RemoteUnusable(remote.name, str(error)) from None
            return Location(url, ("*",), signers[key])

        return Grants((), location)

    def _remote(self, url: StorageUrl, sections: Mapping[str, Options]) -> "_Remote":
        """The remote that holds the URL: one that the user gives a URL, or else the repository."""
        for name, options in sections.items():
            with suppress(KeyError, ValueError):
                if StorageUrl.parse(options["url"]).contains(url):
                    return _Remote(name, {}, options, is_own=True)
        for config in self.committed:
            for name, written in config.options.items():
                with suppress(RegistryError):  # one of a kind that nothing can read
                    if config.remote(name).url.contains(url):
                        own = sections.get(name, {})
                        ours = {} if "url" in own else own
                        return _Remote(name, _given(written), ours)
        return _Remote(None, {}, {})

    def _signer(self, url: StorageUrl, remote: "_Remote") -> Signer:
        """What opens the store. Raises ValueError, and RemoteUnusable with what could be done."""
        match url.scheme:
            case "s3":
                return self._s3(url, remote)
            case "azure":
                return self._azure(url, remote)
            case "file":
                if self.local or remote.is_own:
                    return _files(url)
                raise RemoteUnusable(remote.name, "it is a directory of another machine")
            case "http" | "https":
                if "user" not in remote.own:
                    return HttpSigner(url)
                if remote.is_own:
                    return _web(url, remote.own["user"], remote.own.get("password", ""))
                raise remote.unconfirmed(str(url), "url")
            case scheme:
                raise RemoteUnusable(remote.name, f"only a service reads {scheme} remotes")

    def _s3(self, url: StorageUrl, remote: "_Remote") -> "S3Signer":
        from registry.storage import s3  # noqa: PLC0415

        own, user = remote.own, self.user
        endpoint = own.get("endpointurl") or user.s3_endpoint
        if not endpoint and "endpointurl" in remote.committed:
            where = remote.committed["endpointurl"]
            raise remote.unconfirmed(where, "endpointurl", "AWS_ENDPOINT_URL_S3")
        profile, key = own.get("profile") or user.s3_profile, own.get("access_key_id")
        if key:
            secret, token = own.get("secret_access_key", ""), own.get("session_token")
            credentials = s3.static_credentials(key, secret, token)
        else:
            credentials = s3.chain_credentials(profile)
        region = own.get("region") or user.s3_region or s3.chain_region(profile) or "us-east-1"
        return s3.S3Signer(
            url.authority, credentials=credentials, region=region, endpoint_url=endpoint
        )

    def _azure(self, url: StorageUrl, remote: "_Remote") -> "AzureSigner":
        from registry.storage.azure import AzureSigner  # noqa: PLC0415

        own, container = remote.own, url.authority
        connection = own.get("connection_string") or self.user.azure_connection_string
        if connection:
            return AzureSigner.from_connection_string(container, connection)
        account = own.get("account_name") or self.user.azure_account
        if not account:
            where = remote.committed.get("account_name", "an account")
            raise remote.unconfirmed(where, "account_name", "AZURE_STORAGE_ACCOUNT_NAME")
        if "account_key" in own:
            key = own["account_key"]
            return AzureSigner.from_account_key(container, account_name=account, account_key=key)
        return AzureSigner.from_default_credential(container, account_name=account)


@dataclass(frozen=True)
class _Remote:
    """What the repository says of a remote, and what the user does. `is_own`: they name its URL."""

    name: str | None
    committed: Options
    own: Options
    is_own: bool = False

    def unconfirmed(self, value: str, key: str, variable: str = "") -> RemoteUnusable:
        """The user's word is wanted before anything of theirs is sent where the repository says."""
        shown = f"{value[:200]!r}"
        option = f"`dvc remote modify --global {self.name or 'NAME'} {key} {shown}`"
        either = f"set {variable}={shown} or run {option}" if variable else f"run {option}"
        problem = f"only the repository says that it is at {shown}: if you trust that, {either}"
        return RemoteUnusable(self.name, problem)


class _Reads:
    """What can be read here, and not by a link. Takes part in `registry.storage.Signer`."""

    def __init__(self, store: Store | None, read: Callable[[str, Entry, datetime], Origin]) -> None:
        self.store = store
        self.origin = read

    def links(self, now: datetime, lifetime: int) -> Links:  # noqa: ARG002 the protocol's
        """Raises RemoteUnusable."""
        raise RemoteUnusable(None, "it can be read here, but no link to it can be given away")


def _files(url: StorageUrl) -> Signer:
    root = Path("/", url.path)
    return _Reads(None, lambda path, _, __: Origin(f"file:///{path}", root=root))


def _web(url: StorageUrl, username: str, password: str) -> Signer:
    plain = HttpSigner(url)
    basic = b64encode(f"{username}:{password}".encode()).decode()
    headers = {"Authorization": f"Basic {basic}"}
    return _Reads(
        plain.store,
        lambda path, entry, now: Origin(plain.origin(path, entry, now).url, headers),
    )


def _given(options: Mapping[str, str | None]) -> dict[str, str]:
    return {key: value for key, value in options.items() if value}


def _read(file: Path) -> Config:
    """A configuration file of the user's, which need not be there. Raises InvalidMetadata."""
    try:
        data = file.read_bytes()
    except FileNotFoundError:
        return Config()
    except OSError as error:
        raise InvalidMetadata(str(file), error.strerror or "cannot be read") from None
    return dvc_config.parse(data, str(file), _KEPT)
