"""Files that a client sends to the store itself, in parts: whole objects, or nothing at all."""

import hashlib
import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from uuid import uuid4

import pytest
import urllib3
from servers import s3

from registry.domain import StorageUrl
from registry.errors import InvalidRequest
from registry.storage.bucket import Bucket, pieces
from registry.storage.keeping import PART
from registry.storage.parts import LIFETIME, Parts
from registry.storage.s3 import S3Signer, static_credentials

pytestmark = pytest.mark.servers

NAME = "sent"
ABOUT = "run 1 model.bin"
LEAST = 5 << 20
"""Bytes: S3 takes no smaller part, but for the last."""
DATA = (os.urandom(LEAST), os.urandom(LEAST), b"the end")
WHOLE = b"".join(DATA)


@dataclass(frozen=True)
class Place:
    """A new prefix in a bucket of a real store, and somebody who sends parts to it."""

    server: s3.Server
    prefix: str
    make: Callable[..., Parts]
    pool: urllib3.PoolManager

    def send(self, links: list[str]) -> list[tuple[int, str]]:
        """Sends everything, as a client that has nothing but the links."""
        sent = []
        for number, (link, data) in enumerate(zip(links, DATA, strict=True), 1):
            answer = self.pool.request("PUT", link, body=data)
            assert answer.status == 200, answer.data
            sent.append((number, answer.headers["ETag"]))
        return sent

    def keys(self) -> list[str]:
        """Whatever lies there."""
        found = self.server.client.list_objects_v2(Bucket=NAME, Prefix=f"{self.prefix}/")
        return sorted(it["Key"][len(self.prefix) + 1 :] for it in found.get("Contents", ()))

    def begun(self) -> int:
        """How many uploads are under way."""
        found = self.server.client.list_multipart_uploads(Bucket=NAME, Prefix=self.prefix)
        return len(found.get("Uploads", ()))


@pytest.fixture(params=["seaweedfs", "juicefs"])
def place(request: pytest.FixtureRequest) -> Place:
    """Each store that is there."""
    server: s3.Server = request.getfixturevalue(request.param)
    server.create_bucket(NAME)
    prefix = f"p{uuid4().hex}/q &+"
    keys = static_credentials(server.keys.access_key_id, server.keys.secret_access_key)
    signer = S3Signer(NAME, credentials=keys, endpoint_url=server.endpoint_url)

    def make(ahead: int = 0, **options: int) -> Parts:
        url = StorageUrl("s3", NAME, prefix)
        return Parts(Bucket(url, signer, lambda: time.time() + ahead), ["a key"], **options)

    return Place(server, prefix, make, urllib3.PoolManager(retries=False))


@pytest.mark.parametrize("part", [PART, 1 << 30, 5 << 30])
@pytest.mark.parametrize(
    "size", [1, PART + 1, 5 << 30, (5 << 30) + 1, 10_000 * PART, 10_000 * PART + 1, 5 << 40]
)
def test_an_object_of_any_size_has_parts_that_s3_takes(part: int, size: int) -> None:
    """No more than 10,000 of 5 GiB, and of 5 MiB at least."""
    parts = list(pieces(size, part))

    assert 1 <= len(parts) <= 10_000
    assert all(LEAST <= length <= 5 << 30 for _, length in parts[:-1])
    assert 1 <= parts[-1][1] <= 5 << 30
    end = 0
    for start, length in parts:
        assert start == end
        end = start + length
    assert end == size


def key(data: bytes) -> str:
    md5 = hashlib.md5(data).hexdigest()
    return f"files/md5/{md5[:2]}/{md5[2:]}"


@pytest.mark.parametrize("copied", [1 << 30, LEAST])
def test_parts_become_an_object_named_by_its_md5(place: Place, copied: int) -> None:
    """Copied by the store in one request, or in several."""
    begun = place.make().begin(ABOUT, len(DATA))
    sent = place.send(begun.links)
    kept = place.make(copied=copied).finish(ABOUT, begun.id, sent)

    assert kept == (hashlib.md5(WHOLE).hexdigest(), len(WHOLE))
    assert place.keys() == [key(WHOLE)]
    assert place.server.get(NAME, f"{place.prefix}/{key(WHOLE)}") == WHOLE
    assert place.begun() == 0


def test_what_was_put_together_is_finished_by_whoever_is_asked_again(place: Place) -> None:
    """The process that read it was killed."""
    parts = place.make()
    begun = parts.begin(ABOUT, len(DATA))
    sent = place.send(begun.links)
    path, upload = parts._opened(ABOUT, begun.id)
    listed = [{"PartNumber": number, "ETag": tag} for number, tag in sent]
    place.server.client.complete_multipart_upload(
        Bucket=NAME, Key=path, UploadId=upload, MultipartUpload={"Parts": listed}
    )

    assert place.make().finish(ABOUT, begun.id, sent).size == len(WHOLE)
    assert place.keys() == [key(WHOLE)]
    with pytest.raises(InvalidRequest):
        parts.finish(ABOUT, begun.id, sent)


def test_nobody_writes_to_an_object_once_it_was_read(place: Place) -> None:
    parts = place.make()
    begun = parts.begin(ABOUT, len(DATA))
    parts.finish(ABOUT, begun.id, place.send(begun.links))

    answer = place.pool.request("PUT", begun.links[0], body=b"other")

    assert answer.status >= 400
    assert place.keys() == [key(WHOLE)]
    assert place.server.get(NAME, f"{place.prefix}/{key(WHOLE)}") == WHOLE


def test_an_id_is_good_for_the_file_that_it_was_given_for(place: Place) -> None:
    parts = place.make()
    begun = parts.begin(ABOUT, len(DATA))
    sent = place.send(begun.links)
    for about, upload in (("run 1 other", begun.id), (ABOUT, begun.id[:-2] + "xx"), (ABOUT, "x")):
        with pytest.raises(InvalidRequest):
            parts.finish(about, upload, sent)
        with pytest.raises(InvalidRequest):
            parts.abandon(about, upload)
    for wrong in ([], [(1, "<x>")], [*sent[:2], (3, '"00000000000000000000000000000000"')]):
        with pytest.raises(InvalidRequest):
            parts.finish(ABOUT, begun.id, wrong)

    assert parts.finish(ABOUT, begun.id, sent).size == len(WHOLE)


@pytest.mark.parametrize("place", ["seaweedfs"], indirect=True)  # JuiceFS takes them
def test_whoever_sends_parts_that_are_too_small_is_told_of_what_size_they_are(place: Place) -> None:
    parts = place.make()
    begun = parts.begin(ABOUT, 2)
    sent = []
    for number, link in enumerate(begun.links, 1):
        sent.append((number, place.pool.request("PUT", link, body=b"x").headers["ETag"]))

    with pytest.raises(InvalidRequest) as refused:
        parts.finish(ABOUT, begun.id, sent)
    assert "5 MiB" in refused.value.problem


def test_an_upload_that_is_abandoned_leaves_nothing(place: Place) -> None:
    parts = place.make()
    begun = parts.begin(ABOUT, len(DATA))
    sent = place.send(begun.links)
    parts.abandon(ABOUT, begun.id)
    parts.abandon(ABOUT, begun.id)

    assert (place.keys(), place.begun()) == ([], 0)
    with pytest.raises(InvalidRequest):
        parts.finish(ABOUT, begun.id, sent)


def test_an_upload_that_nobody_finishes_is_removed_after_a_day(place: Place) -> None:
    first, second = place.make().begin(ABOUT, 3), place.make().begin("other", 3)
    sent = place.send(first.links)
    path, upload = place.make()._opened(ABOUT, first.id)
    listed = [{"PartNumber": number, "ETag": tag} for number, tag in sent]
    place.server.client.complete_multipart_upload(
        Bucket=NAME, Key=path, UploadId=upload, MultipartUpload={"Parts": listed}
    )
    place.server.client.put_object(Bucket=NAME, Key=f"{place.prefix}/.parts/mine", Body=b"")
    place.make(ahead=80_000)._sweep(place.make(ahead=80_000 - 86_400)._bucket.now)
    assert (len(place.keys()), place.begun()) == (2, 1)

    # By the clock of the store they are new; by ours, a day has gone.
    parts = place.make()
    parts._sweep(place.make(ahead=60)._bucket.now)

    assert (place.keys(), place.begun()) == ([".parts/mine"], 0)
    with pytest.raises(InvalidRequest):
        parts.finish("other", second.id, [(1, "x")])
    assert LIFETIME < 86_400
