"""A Git directory of this machine that somebody else keeps: read where it is, never written to.

Whoever works in a clone asks for what is there, not for what its origin has by now. A mirror of it
would have to copy it first, which Git refuses for shallow clones and for those of another account.
"""

from collections.abc import Callable
from pathlib import Path
from typing import BinaryIO, NoReturn

from registry.repository.commands import Commands, GitFailed
from registry.repository.mirror import LISTING, LOOK_LIMIT, State, TagChange, digest_of
from registry.repository.objects import READ_LIMIT
from registry.repository.origin import Origin


class InPlace:
    """Stands for a Mirror whose origin is itself: each state is what is there at that moment.

    `clock` gives Unix time.
    """

    def __init__(self, git_dir: Path, clock: Callable[[], float]) -> None:
        self.commands = Commands(git_dir, Origin(str(git_dir), "file"))
        self._clock = clock
        self._seen: tuple[str, bytes] = ("", b"")

    def tracks(self, path: str) -> bool:
        """Whether the work tree has the path from a commit. Raises GitFailed."""
        return bool(self.commands.read("ls-files", "-z", "--", path, limit=READ_LIMIT))

    def open_lock(self) -> BinaryIO:
        """A lock that nobody else takes: there is nothing to write. Raises OSError."""
        return open(self.commands.git_dir / "HEAD", "rb")

    def mark(self) -> None:
        """There is none: whoever asks looks again."""

    def state(self) -> State | None:
        """What is there now; None when it cannot be read, which `update` says why."""
        now = self._clock()
        try:
            listing = self.look(LOOK_LIMIT)
        except GitFailed:
            return None
        digest = digest_of(listing)
        self._seen = digest, listing
        return State(str(self.commands.git_dir), digest, digest, now, now)

    def changes(self) -> tuple[TagChange, ...]:
        """Nobody remembers what the tags were before."""
        return ()

    def refs(self, state: State) -> bytes | None:
        """The refs of the last state; None for an earlier one."""
        digest, listing = self._seen
        return listing if digest == state.tags else None

    def look(self, limit: float) -> bytes:
        """The refs that are there. Raises GitFailed."""
        return self.commands.read(*LISTING, limit=limit)

    def update(self, *_: object) -> NoReturn:
        """There is nothing to fetch: raises GitFailed, which says why it cannot be read."""
        self.look(LOOK_LIMIT)
        raise GitFailed("it changes faster than it can be read")
