"""GTO's tags: what they mean, and which commit a version, a stage or the latest version is."""

import re
from functools import cmp_to_key
from typing import NamedTuple

import pytest
import semver
from hypothesis import example, given
from hypothesis import strategies as st

from registry.domain import ArtifactName, RelPath, Revision, Selector
from registry.errors import ArtifactNotFound, RegistryError, StageNotFound, VersionNotFound
from registry.gto import Action, Event, Index, Resolution, Tag, precedence

C1, C2, C3 = (Revision(digit * 40) for digit in "123")
NOT_FOUND = None


def tags(*spelled):
    """`"m@v1.0.0 1"` is an annotated tag of the first commit, one second after the one before."""
    return [tag(one, time) for time, one in enumerate(spelled, 1)]


def tag(spelled, time, annotated=True):
    name, commit = spelled.split()
    return Tag(name, Revision(commit * 40), time, annotated)


def wanted(version="", stage="", name="m"):
    return Selector.parse(name, version, stage)


def commit(found, **selector):
    """The revision of what is found, or None when there is no such thing."""
    try:
        return Index(found).resolve(wanted(**selector)).revision
    except (VersionNotFound, StageNotFound):
        return NOT_FOUND


def problem(found, **selector):
    with pytest.raises((ArtifactNotFound, VersionNotFound, StageNotFound)) as caught:
        Index(found).resolve(wanted(**selector))
    return caught.value.problem


GRAMMAR = {
    "m@v1.0.0": Event("m", Action.REGISTER, "v1.0.0"),
    "m@v1.0.0#4": Event("m", Action.REGISTER, "v1.0.0", 4),
    "m@v1.0.0-rc.1+b.7": Event("m", Action.REGISTER, "v1.0.0-rc.1+b.7"),
    "a/b=m@v1.0.0": Event("a/b=m", Action.REGISTER, "v1.0.0"),
    "release/m@v7.0.0": Event("release/m", Action.REGISTER, "v7.0.0"),
    "m@v1.0.0!": Event("m", Action.DEREGISTER, "v1.0.0"),
    "m@v1.0.0!#2": Event("m", Action.DEREGISTER, "v1.0.0", 2),
    "m#prod": Event("m", Action.ASSIGN, "prod"),
    "m#prod#3": Event("m", Action.ASSIGN, "prod", 3),
    "m#prod!": Event("m", Action.UNASSIGN, "prod"),
    "m#prod!#4": Event("m", Action.UNASSIGN, "prod", 4),
    "m#2": Event("m", Action.ASSIGN, "2"),
    "m#1#2": Event("m", Action.ASSIGN, "1", 2),
    "m#eu/prod": Event("m", Action.ASSIGN, "eu/prod"),
    "m#deprecated!": Event("m", Action.UNASSIGN, "deprecated"),
    "m@deprecated": Event("m", Action.DEPRECATE),
    "m@deprecated#5": Event("m", Action.DEPRECATE, "", 5),
}


@pytest.mark.parametrize("name", GRAMMAR)
def test_a_tag_of_gto_means_one_event(name):
    assert Event.parse(name) == GRAMMAR[name]


@pytest.mark.parametrize("name", GRAMMAR)
def test_an_event_is_spelled_as_its_tag(name):
    assert str(GRAMMAR[name]) == name


@pytest.mark.parametrize(
    "name",
    [
        "m@v1.0", "m@1.0.0", "m@V1.0.0", "m@v01.0.0", "m@v1.0.0-rc.01", "m@v1.0.0-", "m@v1.0.0+",
        "m@latest", "m@deprecated!", "m@created", "m@created#1", "m.x@v1.0.0", "-m@v1.0.0",
        "m-@v1.0.0", "m#prod-", "m#pr.od", "m#", "m#prod!!", "a=b=m@v1.0.0", "=m@v1.0.0",
        "a/b=@v1.0.0", "m@v1.0.0#", "m@v1.0.0#x", "m@v1.0.0#1#2", "m@v1.0.0\n", "m#prod\n",
        "m@v1.0.0 ", "m", "v1.0.0", "", "é@v1.0.0", "m@v\u0661.0.0", "m#prod#\u0661",
        "m@v1.0.0#" + "1" * 300, "m" * 256 + "@v1.0.0",
    ],
)  # fmt: skip
def test_other_names_mean_nothing(name):
    assert Event.parse(name) is None


@given(
    st.builds(
        Event,
        st.from_regex(
            r"(?:[a-zA-Z0-9_./-]{1,9}=)?[a-zA-Z0-9](?:[a-z/_-]{0,9}[a-z])?", fullmatch=True
        ),
        st.sampled_from([Action.ASSIGN, Action.UNASSIGN]),
        st.from_regex(r"[a-zA-Z0-9](?:[a-zA-Z0-9/_-]{0,9}[a-zA-Z0-9])?", fullmatch=True),
        st.none() | st.integers(0, 10**20),
    )
    | st.builds(
        Event,
        st.from_regex(r"(?:[a-zA-Z0-9_./-]{1,9}=)?[a-zA-Z0-9]", fullmatch=True),
        st.sampled_from([Action.REGISTER, Action.DEREGISTER]),
        st.builds("v{}.{}.{}".format, *[st.integers(0, 10**9)] * 3),
        st.none() | st.integers(0, 10**20),
    )
)
def test_every_event_can_be_spelled_and_read_back(event):
    assert Event.parse(str(event)) == event


@given(st.from_regex(r"[am/=.-]{0,5}[#@][av0-9.!#+-]{0,9}\n?", fullmatch=True) | st.text())
def test_whatever_is_read_can_be_spelled(name):
    event = Event.parse(name)

    assert event is None or Event.parse(str(event)) == event


V1, V2 = "m@v1.0.0 1", "m@v2.0.0 2"

# Rows of "where the oracles disagree": tags in the order of time, what is asked for, the answer.
CHOSEN = [
    (
        "the stage goes back to an older version",
        "m@v1.0.0 1, m@v2.0.0 2, m#prod#1 2, m#prod#2 1",
        "m#prod",
        C1,
    ),
    (
        "the only assignment is taken back",
        "m@v1.0.0 1, m#prod#1 1, m#prod!#2 1",
        "m#prod",
        NOT_FOUND,
    ),
    (
        "the newer assignment is taken back: the older resurfaces",
        "m@v1.0.0 1, m@v2.0.0 2, m#prod#1 1, m#prod#2 2, m#prod!#3 2",
        "m#prod",
        C1,
    ),
    (
        "the older assignment is taken back",
        "m@v1.0.0 1, m@v2.0.0 2, m#prod#1 1, m#prod#2 2, m#prod!#3 1",
        "m#prod",
        C2,
    ),
    ("the latest version is deregistered", "m@v1.0.0 1, m@v2.0.0 2, m@v2.0.0! 2", "m", C1),
    (
        "a deregistered version is asked for",
        "m@v1.0.0 1, m@v2.0.0 2, m@v2.0.0! 2",
        "m@v2.0.0",
        NOT_FOUND,
    ),
    (
        "deregistering frees the stage for an older version",
        "m@v1.0.0 1, m@v2.0.0 2, m#prod#1 1, m#prod#2 2, m@v2.0.0! 2",
        "m#prod",
        C1,
    ),
    (
        "a deregistration by hand on another commit counts",
        "m@v1.0.0 1, m@v1.0.0! 3",
        "m@v1.0.0",
        NOT_FOUND,
    ),
    (
        "an unassignment on another commit does not count",
        "m@v1.0.0 1, m#prod#1 1, m#prod!#2 3",
        "m#prod",
        C1,
    ),
    (
        "a version is registered again elsewhere",
        "m@v1.0.0 1, m@v1.0.0! 1, m@v1.0.0#3 2",
        "m@v1.0.0",
        C2,
    ),
    ("a version is registered twice: the newest", "m@v1.0.0 1, m@v1.0.0#2 2", "m@v1.0.0", C2),
    ("two versions on one commit", "m@v1.0.0 1, m@v1.0.1 1, m#prod#1 1", "m#prod", C1),
    ("nothing is registered", "m#prod#1 2", "m", NOT_FOUND),
    ("a commit without a version is in the stage", "m#prod#1 2", "m#prod", C2),
    (
        "a commit without a version follows a version",
        "m@v1.0.0 1, m#prod#1 1, m#prod#2 2",
        "m#prod",
        C2,
    ),
    ("only a deprecation", "m@deprecated 1", "m", NOT_FOUND),
    ("deprecated: no latest", "m@v1.0.0 1, m#prod#1 1, m@deprecated 1", "m", NOT_FOUND),
    ("deprecated: no stages", "m@v1.0.0 1, m#prod#1 1, m@deprecated 1", "m#prod", NOT_FOUND),
    ("deprecated: its versions stay", "m@v1.0.0 1, m#prod#1 1, m@deprecated 1", "m@v1.0.0", C1),
    ("a later event ends the deprecation", "m@v1.0.0 1, m@deprecated 1, m@v2.0.0 2", "m", C2),
    ("a `created` tag is ignored", "m@v1.0.0 1, x@created 2, m@created 2", "m", C1),
]


@pytest.mark.parametrize(("why", "spelled", "asked", "answer"), CHOSEN)
def test_where_gto_and_dvc_disagree_one_answer_is_chosen(why, spelled, asked, answer):
    name, version, stage = re.fullmatch(r"([^@#]+)@?([^#]*)#?(.*)", asked).groups()

    assert commit(tags(*spelled.split(", ")), name=name, version=version, stage=stage) == answer


class TestTies:
    """Tags of the same second."""

    @staticmethod
    def at_once(*spelled):
        return [tag(one, 7) for one in spelled]

    @pytest.mark.parametrize("counters", [(1, 2), (9, 10)])
    def test_the_counter_decides_as_a_number(self, counters):
        found = self.at_once(*(f"m#prod#{n} {c}" for n, c in zip(counters, "12", strict=True)))

        assert commit(found, stage="prod") == C2

    def test_time_counts_before_the_counter(self):
        assert commit([tag("m#prod#2 1", 1), tag("m#prod#1 2", 2)], stage="prod") == C2

    def test_a_removal_comes_after_what_it_removes(self):
        assert commit(self.at_once("m@v1.0.0! 1", "m@v1.0.0 1"), version="v1.0.0") is NOT_FOUND
        assert commit(self.at_once("m#prod! 1", "m#prod 1"), stage="prod") is NOT_FOUND

    def test_the_order_of_the_tags_given_does_not_matter(self):
        found = self.at_once("m#prod#1 1", "m#prod#2 2", "m@v1.0.0 1", "m@v1.0.0#3 3")

        assert commit(found, stage="prod") == commit(found[::-1], stage="prod") == C2
        assert commit(found) == commit(found[::-1]) == C3


class TestVersions:
    """Registered versions, and the latest of them."""

    def test_one_version_is_found_by_its_name_and_as_the_latest(self):
        answer = Resolution(C1, "v1.0.0", "m@v1.0.0", False)
        index = Index(tags(V1))

        assert index.resolve(wanted()) == answer
        assert index.resolve(wanted(version="v1.0.0")) == answer
        assert index.resolve(wanted(version="latest")) == answer

    def test_the_latest_is_the_greatest_and_not_the_newest(self):
        assert commit(tags("m@v2.0.0 1", "m@v1.9.0 2", "m@v1.10.0 3")) == C1

    def test_pre_releases_count(self):
        assert commit(tags(V1, "m@v1.0.0-rc.10 2", "m@v1.1.0-rc.1 3")) == C3

    def test_build_metadata_does_not_count_but_the_newest_tag_does(self):
        found = tags("m@v1.0.0+b 1", "m@v1.0.0 2", "m@v1.0.0+a 3")

        assert commit(found) == C3
        assert commit(found, version="v1.0.0+b") == C1
        assert commit(found, version="v1.0.0") == C2

    def test_the_version_of_a_stage_is_the_greatest_on_its_commit(self):
        found = tags("m@v1.0.1 1", V1, V2, "m#prod#1 1")

        assert Index(found).resolve(wanted(stage="prod")) == Resolution(
            C1, "v1.0.1", "m#prod#1", False
        )

    def test_a_stage_may_hold_a_commit_without_a_version(self):
        assert Index(tags(V1, "m#prod#1 2")).resolve(wanted(stage="prod")).version is None

    def test_a_commit_that_lost_one_of_its_versions_stays_in_the_stage(self):
        found = tags(V1, "m@v1.0.1 1", "m#prod#1 1", "m@v1.0.1! 1")

        assert Index(found).resolve(wanted(stage="prod")).version == "v1.0.0"

    def test_a_commit_whose_version_moved_on_stays_in_the_stage_without_it(self):
        found = tags(V1, "m#prod#1 1", "m@v1.0.0#2 2")

        assert Index(found).resolve(wanted(stage="prod")) == Resolution(C1, None, "m#prod#1", False)

    def test_stages_have_the_names_that_they_have(self):
        found = tags(V1, V2, "m#2 1", "m#eu/prod#3 2")

        assert commit(found, stage="2") == C1
        assert commit(found, stage="eu/prod") == C2
        assert commit(found, stage="Eu/prod") is NOT_FOUND

    def test_what_is_deprecated_says_so(self):
        found = Index(tags(V1, "m@deprecated 1")).resolve(wanted(version="v1.0.0"))

        assert found == Resolution(C1, "v1.0.0", "m@v1.0.0", True)


class TestTagsThatDoNotCount:
    """Lightweight tags, and tags of what is not a commit."""

    def test_lightweight_tags_are_ignored(self):
        found = [*tags(V1), tag("m@v2.0.0 2", 5, False), tag("m#prod 2", 6, False)]

        assert commit(found) == C1
        assert "m@v2.0.0 is lightweight" in problem(found, version="v2.0.0")
        assert "m#prod is lightweight" in problem(found, stage="prod")

    def test_an_artifact_with_lightweight_tags_only_has_no_versions(self):
        assert "lightweight" in problem([tag("m@v2.0.0 2", 5, False)])

    def test_tags_of_no_commit_are_ignored(self):
        found = [*tags(V1), Tag("m@v2.0.0", None, 9, True)]

        assert commit(found) == C1
        assert "points to no commit" in problem(found, version="v2.0.0")

    def test_a_tag_without_a_time_is_the_oldest(self):
        assert commit([*tags(V1), tag("m@v1.0.0#2 2", 0)], version="v1.0.0") == C1


class TestProblems:
    """What a person reads who asked for something that is not there."""

    def test_an_artifact_without_tags(self):
        assert problem(tags(V1), name="nope") == "no tag registers it"
        assert problem(tags("n@v1 1", "n@created 1"), name="n") == "no tag registers it"

    def test_names_are_matched_as_they_are(self):
        for name in ("M", "a:m", "m/m"):
            assert problem(tags(V1), name=name) == "no tag registers it"

    def test_a_version_without_its_v(self):
        assert "did you mean v1.0.0" in problem(tags(V1), version="1.0.0")

    def test_a_version_that_was_never_registered(self):
        assert problem(tags(V1, V2), version="v3.0.0") == "registered are v2.0.0, v1.0.0"

    def test_many_versions_are_not_listed(self):
        found = tags(*(f"m@v1.{n}.0 1" for n in range(50)))

        assert (
            problem(found, version="v3.0.0") == "50 versions are registered, the latest is v1.49.0"
        )

    def test_a_deregistered_version_names_the_tag(self):
        assert "deregistered by the tag m@v1.0.0!" in problem(
            tags(V1, "m@v1.0.0! 1"), version="v1.0.0"
        )

    def test_no_versions(self):
        assert problem(tags("m#prod#1 1")) == "no versions are registered"
        assert problem(tags("m#prod#1 1"), version="v1.0.0") == "no versions are registered"

    def test_stages(self):
        found = tags(V1, "m#prod#1 1", "m#dev#2 1", "m#dev!#3 1")

        assert problem(found, stage="Prod") == "its stages are prod"
        assert problem(found, stage="dev") == "it was unassigned by the tag m#dev!#3"
        assert problem(tags(V1), stage="dev") == "nothing is assigned to any stage"
        gone = tags(V1, "m#prod#1 1", "m@v1.0.0! 1")
        assert problem(gone, stage="prod") == "what the tag m#prod#1 assigned was deregistered"

    def test_deprecation(self):
        found = tags(V1, "m#prod#1 1", "m@deprecated 1")

        assert "deprecated" in problem(found)
        assert "deprecated" in problem(found, stage="prod")


class TestIndex:
    """All artifacts of a repository."""

    def test_lists_the_artifacts_that_can_be_asked_for(self):
        index = Index(
            tags(V1, "a/b=m#prod 1", "z@deprecated 1", "v1.0.0 1", "x@created 1", "m@v1 1",
                 "sub/dvc.yaml=m@v1.0.0 1", "a//b=m@v1.0.0 1", "/abs=m@v1.0.0 1")
        )  # fmt: skip

        assert [str(name) for name in index.artifacts()] == ["m", "z", "a/b:m"]

    def test_artifacts_of_one_name_in_two_directories_are_two(self):
        found = tags(V1, "a/b=m@v1.0.0 2")

        assert commit(found) == C1
        assert commit(found, name="a/b:m") == C2
        assert commit(found, name="a/b/dvc.yaml:m") == C2

    def test_a_history_knows_what_is_active(self):
        history = Index(
            tags(V1, V2, "m@v3.0.0 3", "m@v3.0.0! 3", "m#prod#1 2", "m#dev#2 3")
        ).history(ArtifactName(RelPath.ROOT, "m"))

        assert history.versions == ("v2.0.0", "v1.0.0")
        assert history.stages == ("prod",)

    def test_a_history_is_folded_once(self):
        index = Index(tags(V1))
        name = ArtifactName(RelPath.ROOT, "m")

        assert index.history(name) is index.history(name)


identifiers = st.from_regex(
    r"(?:0|[1-9][0-9]{0,2}|[0-9]{0,2}[a-cA-C-][a-c0-9-]{0,2})", fullmatch=True
)
semvers = st.builds(
    lambda core, pre, build: (
        "v" + ".".join(map(str, core)) + (f"-{'.'.join(pre)}" if pre else "")
        + (f"+{'.'.join(build)}" if build else "")
    ),
    st.tuples(*[st.sampled_from([0, 1, 2, 10])] * 3),
    st.lists(identifiers, max_size=3),
    st.lists(identifiers, max_size=2),
)  # fmt: skip


@given(semvers, semvers)
def test_precedence_is_that_of_semver(one, other):
    def sign(left, right):
        return (left > right) - (left < right)

    expected = semver.Version.parse(one[1:]).compare(other[1:])

    assert sign(precedence(one), precedence(other)) == expected


@given(semvers)
def test_every_semver_can_be_registered(version):
    assert commit(tags(f"m@{version} 1"), version=version) == C1


# The model: what the rules say, read word by word, with no regard to speed.


class Told(NamedTuple):
    """What a tag says, in the order in which tags are believed."""

    order: tuple
    version: str
    stage: str
    removal: bool
    revision: str

    @classmethod
    def by(cls, one):
        pattern = r"m(?:@(v[^!#]+|deprecated)|#([^!#]+))(!?)(?:#(\d+))?"
        version, stage, removal, counter = re.fullmatch(pattern, one.name).groups()
        order = (one.time, int(counter or 0), bool(removal), one.name)
        return cls(order, version, stage, bool(removal), one.revision)


class Model:
    """Knows the rules for annotated tags of `m`."""

    def __init__(self, found):
        self.events = sorted(map(Told.by, found))
        names = {told.version for told in self.events} - {None, "deprecated"}
        newest = {name: self.events_of(version=name)[-1] for name in names}
        self.active = {name: told for name, told in newest.items() if not told.removal}

    def events_of(self, **fields):
        return [
            told
            for told in self.events
            if all(getattr(told, field) == value for field, value in fields.items())
        ]

    def greatest(self, names):
        def compare(one, other):
            left, right = (semver.Version.parse(name[1:]) for name in (one, other))
            newer = self.active[one].order > self.active[other].order
            return left.compare(right) or (1 if newer else -1)

        return max(names, key=cmp_to_key(compare), default=None)

    def stands(self, told):
        """Whether the version was not deregistered since."""
        removals = self.events_of(version=told.version, removal=True)
        return not any(removal.order > told.order for removal in removals)

    def holds(self, revision):
        registrations = [
            told
            for told in self.events_of(revision=revision, removal=False)
            if told.version not in (None, "deprecated")
        ]
        return not registrations or any(map(self.stands, registrations))

    def version(self, version):
        return (self.active[version].revision, version) if version in self.active else None

    def latest(self):
        return self.version(self.greatest(self.active))

    def stage(self, stage):
        newest = [self.events_of(stage=stage, revision=revision)[-1:] for revision in (C1, C2, C3)]
        holding = [told for [told] in filter(None, newest) if not told.removal]
        chosen = max((told for told in holding if self.holds(told.revision)), default=None)
        if chosen is None:
            return None
        here = [name for name in self.active if self.active[name].revision == chosen.revision]
        return chosen.revision, self.greatest(here)

    def answer(self, version, stage):
        if version:
            return self.version(version)
        if self.events and self.events[-1].version == "deprecated":
            return None
        return self.stage(stage) if stage else self.latest()


names = st.sampled_from(
    [
        f"m{what}{counter}"
        for what in ("@v1.0.0", "@v1.0.0!", "@v1.0.0+b", "@v2.0.0-rc.1", "@v2.0.0", "@v2.0.0!",
                     "#prod", "#prod!", "#dev", "#dev!", "@deprecated")
        for counter in ("", "#1", "#2", "#10")
    ]
)  # fmt: skip
repositories = st.lists(
    st.builds(Tag, names, st.sampled_from([C1, C2, C3]), st.integers(0, 6), st.just(True)),
    max_size=12,
    unique_by=lambda one: one.name,
)


@given(
    repositories,
    st.sampled_from(["", "v1.0.0", "v1.0.0+b", "v2.0.0"]),
    st.sampled_from(["", "prod"]),
)
def test_an_explanation_names_the_tag_that_the_answer_names_and_no_other(found, version, stage):
    selector = wanted(version, "" if version else stage)
    verdicts = Index(found).history(selector.artifact).explain(selector.version, selector.stage)
    try:
        decisive = [Index(found).resolve(selector).tag]
    except RegistryError:
        decisive = []

    assert [verdict.tag for verdict in verdicts if verdict.won] == decisive
    assert all(verdict.reason for verdict in verdicts)
    assert len({verdict.tag for verdict in verdicts}) == len(verdicts)


@given(
    repositories,
    st.sampled_from(["", "v1.0.0", "v1.0.0+b", "v2.0.0"]),
    st.sampled_from(["", "prod"]),
)
@example([], "", "")
def test_histories_follow_the_rules_word_by_word(found, version, stage):
    stage = "" if version else stage
    try:
        answer = Index(found).resolve(wanted(version, stage))
    except RegistryError:
        chosen = None
    else:
        chosen = (answer.revision, answer.version)

    assert chosen == Model(found).answer(version, stage)


def test_a_hundred_thousand_tags_are_only_grouped_until_they_are_asked_for():
    found = [
        Tag(f"m{n % 50_000}@v1.{n // 50_000}.0", C1 if n < 50_000 else C2, n, True)
        for n in range(100_000)
    ]
    index = Index(found)

    assert index.resolve(wanted(name="m7")).revision == C2
    assert len(index.artifacts()) == 50_000
