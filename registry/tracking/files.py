"""The files of runs and of logged models: a path -> the object that has its bytes.

Where objects lie, and how bytes become one, is not known here: `registry.storage.keeping`. To
delete a file is to forget its path, for its object may be that of many others.
"""

import json

import sqlalchemy as sa

from registry.domain import RelPath
from registry.errors import (
    InvalidRequest,
    LoggedFileInTheWay,
    LoggedFileNotFound,
    LoggedModelNotFound,
    RunDeleted,
    RunNotFound,
)
from registry.tracking import pages
from registry.tracking.records import Listed, LoggedFile, Owner, Page
from registry.tracking.schema import experiments, files, models, runs
from registry.tracking.store import Store

LONGEST = 2000
"""Bytes of a path: as long a one fits into the index of every database."""
_BATCH = 1000
_NEXT = "\x01"
"""Behind a path comes no other one before this: no path holds a control character."""


class Files:
    """All logged files of the database.

    Whatever takes an owner raises RunNotFound or LoggedModelNotFound, also for an owner in another
    experiment, in one whose artifacts are kept elsewhere, and for a logged model that was deleted.
    """

    def __init__(self, store: Store) -> None:
        self._store = store
        insert = store.upsert(files)
        changed = {name: insert.excluded[name] for name in ("md5", "size")}
        self._put = insert.on_conflict_do_update(index_elements=["owner", "path"], set_=changed)

    def check(self, owner: Owner, path: RelPath) -> None:
        """Raises what `put` would raise now."""
        with self._store.reading() as connection:
            self._require(connection, owner, writes=True)
            self._refuse(connection, owner, path)

    def put(self, owner: Owner, file: LoggedFile) -> None:
        """Writes a file, also over one of the same path.

        Raises RunDeleted, LoggedFileInTheWay, or InvalidRequest for a path that is too long.
        """
        with self._store.writing() as connection:
            self._require(connection, owner, writes=True)
            self._refuse(connection, owner, file.path)
            connection.execute(self._put, {"owner": owner.id, **file._asdict()})

    def get(self, owner: Owner, path: RelPath) -> LoggedFile:
        """The file. Raises LoggedFileNotFound."""
        with self._store.reading() as connection:
            self._require(connection, owner)
            query = sa.select(files).where(files.c.owner == owner.id, files.c.path == path)
            row = connection.execute(query).one_or_none()
            if row is None:
                raise LoggedFileNotFound(path, f"{owner.kind} {owner.id}")
            return LoggedFile(path, row.md5, row.size)

    def list(
        self, owner: Owner, directory: RelPath, limit: int | None = None, page: str = ""
    ) -> Page[Listed]:
        """What a directory holds, one level of it. Nothing if there is no such directory.

        Raises InvalidRequest.
        """
        asked = pages.question("files", owner.id, directory)
        start = pages.place(asked, page, [str])[0] if page else ""
        found: list[tuple[Listed, str]] = []
        with self._store.reading() as connection:
            self._require(connection, owner)
            query = sa.select(files.c.path, files.c.size).where(_below(owner, directory))
            query = query.order_by(files.c.path).limit(_BATCH)
            while limit is None or len(found) <= limit:
                rows = connection.execute(query.where(files.c.path >= start)).all()
                for path, size in rows:
                    if path >= start:  # and not in a directory that was listed already
                        item, start = _listed(directory, path, size)
                        found.append((item, start))
                if len(rows) < _BATCH:
                    break
        following = ""
        if limit is not None and len(found) > limit:
            following = pages.token(asked, [found[limit - 1][1]])
        return Page([item for item, _ in found[:limit]], following)

    def delete(self, owner: Owner, path: RelPath) -> None:
        """Forgets a file, or a directory with all that is in it. Raises LoggedFileNotFound."""
        with self._store.writing() as connection:
            self._require(connection, owner)
            itself = sa.and_(files.c.owner == owner.id, files.c.path == path)
            done = connection.execute(sa.delete(files).where(itself | _below(owner, path)))
            if not done.rowcount:
                raise LoggedFileNotFound(path, f"{owner.kind} {owner.id}")

    def manifest(self, owner: Owner, directory: RelPath = RelPath.ROOT) -> bytes:
        """What DVC writes about a directory: the bytes of its `.dir` object.

        Raises LoggedFileNotFound where there is no such directory.
        """
        with self._store.reading() as connection:
            self._require(connection, owner)
            query = sa.select(files.c.path, files.c.md5).where(_below(owner, directory))
            rows = connection.execute(query.order_by(files.c.path)).all()
        if not rows:
            raise LoggedFileNotFound(directory, f"{owner.kind} {owner.id}")
        listed = [
            {"md5": md5, "relpath": RelPath(path).relative_to(directory)} for path, md5 in rows
        ]
        return json.dumps(listed).encode()

    def _require(self, connection: sa.Connection, owner: Owner, *, writes: bool = False) -> None:
        """Raises what the class says, and RunDeleted if something is to be written.

        In a transaction that keeps others from writing to the same owner: what was looked at stays.
        """
        table = runs if owner.kind == "run" else models
        hidden = sa.or_(table.c.deleted, experiments.c.deleted)
        query = (
            sa.select(table.c.number, table.c.deleted, hidden.label("hidden"))
            .join(experiments, experiments.c.id == table.c.experiment)
            .where(
                table.c.id == owner.id,
                table.c.experiment == owner.experiment,
                experiments.c.artifact_location.is_(None),
            )
        )
        if writes:
            query = query.with_for_update(key_share=True, of=table)
        row = connection.execute(query).one_or_none()
        if owner.kind == "model":
            if row is None or row.deleted or (writes and row.hidden):
                raise LoggedModelNotFound(owner.id)
        elif row is None:
            raise RunNotFound(owner.id)
        elif writes and row.hidden:
            raise RunDeleted(owner.id)

    def _refuse(self, connection: sa.Connection, owner: Owner, path: RelPath) -> None:
        above = [directory for directory in path.ancestors() if directory]
        if len(path.encode()) > LONGEST:
            raise InvalidRequest("path", f"exceeds the maximum length of {LONGEST} bytes")
        in_the_way = sa.or_(
            sa.and_(files.c.owner == owner.id, files.c.path.in_(above)), _below(owner, path)
        )
        query = sa.select(files.c.path).where(in_the_way).limit(1)
        taken = connection.execute(query).scalar_one_or_none()
        if taken is not None:
            raise LoggedFileInTheWay(path, taken)


def _below(owner: Owner, directory: RelPath) -> "sa.ColumnElement[bool]":
    """What lies in a directory, at any depth."""
    mine = files.c.owner == owner.id
    if not directory:
        return mine
    return sa.and_(mine, files.c.path > f"{directory}/", files.c.path < _behind(directory))


def _behind(directory: str) -> str:
    """What comes behind all that lies in a directory: the character after the slash is 0."""
    return f"{directory}0"


def _listed(directory: RelPath, path: str, size: int) -> tuple[Listed, str]:
    """The name in a directory that a path begins with, and where the next one is."""
    name, deeper, _ = RelPath(path).relative_to(directory).partition("/")
    whole = directory / RelPath(name)
    if deeper:
        return Listed(whole, None), _behind(whole)
    return Listed(whole, size), whole + _NEXT
