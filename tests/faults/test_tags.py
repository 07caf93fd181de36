"""What happens to tags and history at the origin, by force or by accident."""

import json
from collections.abc import Iterator

import gitserver
import pytest
from gitrepo import GitRepository

from faults.observer import Answer, Observer, until
from faults.origins import copy_of, model, publish

pytestmark = pytest.mark.servers

NAMES = ("stage", "version", "follow", "deleted", "nested", "rewritten", "broken", "odd")


@pytest.fixture(scope="module")
def origins(tmp_path_factory) -> dict[str, GitRepository]:
    """An origin for each test."""
    directory = tmp_path_factory.mktemp("origins")
    first = model(directory / "first.git")
    return {name: copy_of(first, directory / f"{name}.git") for name in NAMES}


@pytest.fixture(scope="module")
def server(origins) -> Iterator[gitserver.HttpGit]:
    with gitserver.serve_http(origins["odd"].path.parent) as server:
        yield server


@pytest.fixture(scope="module")
def watched(serve_all, origins, server) -> Observer:
    own = {
        "follow": {"tag_policy": "follow"},
        "odd": {"url": f"{server.url}/odd.git"},
    }
    return serve_all(
        {name: (origin, own.get(name, {})) for name, origin in origins.items()},
        settings={"audit": "required"},
    )


@pytest.fixture
def now(watched):
    """What is answered to who wants a look at the origin right now."""

    def ask(repository: str, **query: str) -> Answer:
        watched.note(repository)
        answer = watched.ask(repository, max_age="0", **query)
        assert not answer.is_stale
        return answer

    return ask


def test_a_stage_tag_that_is_moved_by_force_has_a_new_holder(origins, now) -> None:
    origin = origins["stage"]
    first = now("stage", stage="prod").revision
    newer = publish(origin, "2")
    origin.tag("m#prod#1", newer)

    assert (first, newer) == (origin.git("rev-parse", "main^"), origin.head())
    assert now("stage", stage="prod").revision == newer
    assert now("stage", version="v1.0.0").revision == first


def test_a_version_goes_on_meaning_what_it_meant_when_its_tag_is_moved_by_force(
    origins, now, watched
) -> None:
    origin, first = origins["version"], origins["version"].head()
    links = now("version", version="v1.0.0").links
    other = origin.commit({"unrelated": "x"}, orphan=True)
    origin.tag("m@v1.0.0", other)
    origin.tag("m#prod#1", other)
    origin.git("reflog", "expire", "--expire=now", "--all")
    origin.git("gc", "--quiet", "--prune=now")
    kept = now("version", version="v1.0.0")
    changed = json.loads(watched.service.command("tags", "--changed", "--json"))
    records = until(lambda: [one for one in audit(watched) if one["decision"] == "moved"])

    assert (kept.revision, kept.links.keys()) == (first, links.keys())
    assert first not in origin.git("rev-list", "--all").split()
    listed = [one for one in changed if one["repository"] == "version"]
    assert [(one["tag"], one["event"]) for one in listed] == [("m@v1.0.0", "moved")]
    assert [(one["kept"], one["origin"]) for one in listed] == [(first, other)]
    assert [(one["repository"], one["selector"]) for one in records] == [("version", "m@v1.0.0")]
    assert [(one["revision"], one["origin"]) for one in records] == [(first, other)]


def test_a_version_follows_where_the_operator_wants_it_to(origins, now) -> None:
    origin = origins["follow"]
    before = now("follow", version="v1.0.0").revision
    newer = publish(origin, "2")
    origin.tag("m@v1.0.0", newer)

    assert before != newer
    assert now("follow", version="v1.0.0").revision == newer


def test_a_deleted_version_is_gone_and_comes_back_as_what_it_was(origins, now, watched) -> None:
    origin, first = origins["deleted"], origins["deleted"].head()
    assert now("deleted", version="v1.0.0").revision == first
    origin.delete_tag("m@v1.0.0")
    gone = [now("deleted", version="v1.0.0"), now("deleted")]
    origin.tag("m@v1.0.0", publish(origin, "2"))
    back = now("deleted", version="v1.0.0")
    events = [one["decision"] for one in audit(watched) if one["repository"] == "deleted"]

    assert [answer.status for answer in gone] == [404, 404]
    assert back.revision == first
    assert [event for event in events if event not in ("granted", "refused")] == [
        "deleted", "moved"
    ]  # fmt: skip


def test_a_tag_may_become_a_directory_of_tags_and_back(origins, now) -> None:
    origin = origins["nested"]
    for name, other in (("x", "x/y"), ("x/y", "x"), ("x", "x/y/z")):
        origin.tag(name)
        newer = publish(origin, name)
        origin.tag("m#prod#1", newer)
        assert now("nested", stage="prod").revision == newer
        origin.delete_tag(name)
        origin.tag(other)
        newer = publish(origin, other)
        origin.tag("m#prod#1", newer)
        assert now("nested", stage="prod").revision == newer
        origin.delete_tag(other)


def test_tags_outlive_a_history_that_is_rewritten_and_a_default_branch_that_is_gone(
    origins, now
) -> None:
    origin, first = origins["rewritten"], origins["rewritten"].head()
    files = now("rewritten", stage="prod").links.keys()
    origin.commit({"other": "x"}, orphan=True)
    rewritten = now("rewritten", stage="prod")
    origin.git("update-ref", "-d", "refs/heads/main")
    deleted = now("rewritten", stage="prod")

    assert [answer.revision for answer in (rewritten, deleted)] == [first, first]
    assert [answer.links.keys() for answer in (rewritten, deleted)] == [files, files]


def test_a_ref_with_broken_objects_keeps_no_other_from_being_seen(origins, now, watched) -> None:
    origin = origins["broken"]
    assert now("broken", stage="prod").status == 200
    bomb(origin, "m@v6.6.6")
    origin.git("update-ref", "refs/heads/evil", "refs/tags/m@v6.6.6^{commit}")
    newer = publish(origin, "2")
    origin.tag("m#prod#1", newer)
    origin.tag("m@v2.0.0", newer)
    origin.delete_tag("m@v1.0.0")
    stage, version = now("broken", stage="prod"), now("broken")

    assert (stage.revision, version.tag) == (newer, "m@v2.0.0")
    assert now("broken", version="v6.6.6").status == 404
    assert now("broken", version="v1.0.0").status == 404
    assert b"'refs/tags/m@v6.6.6' is left out" in watched.service.log.read_bytes()


def test_a_name_that_is_no_name_keeps_no_other_from_being_seen(origins, now, server) -> None:
    """Git makes no such refs: the answers of the origin are changed on their way."""
    origin = origins["odd"]
    for odd in (b"od..d/names", b"-oddities.d", b"od*d/naming", b"od^d/naming", b"odd\x7fnamings"):
        assert now("odd", stage="prod").status == 200
        plain = "odd/na/ming"
        assert len(plain) == len(odd)
        origin.tag(plain)
        server.forged = (plain.encode(), odd)
        newer = publish(origin, repr(odd))
        origin.tag("m#prod#1", newer)
        assert now("odd", stage="prod").revision == newer, odd
        server.forged = None


def bomb(origin: GitRepository, tag: str) -> None:
    """A tag of a commit that Git itself refuses to take from anybody."""
    blob = origin.git("hash-object", "-w", "--stdin", given="x")
    given = b"100644 .git\0" + bytes.fromhex(blob)
    tree = origin.git("hash-object", "-t", "tree", "-w", "--stdin", "--literally", given=given)
    origin.tag(tag, origin.git("commit-tree", tree, given="hostile"))


def audit(watched: Observer) -> list[dict[str, str]]:
    """Every row of the audit log."""
    lines = watched.service.command("audit", "show", "--json").splitlines()
    return [json.loads(line) for line in lines]
