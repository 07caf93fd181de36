"""A Git directory of this machine that somebody else keeps: read where it is, never written to.

Whoever works in a clone asks for what is there, not for what its origin has by now. A mirror of it
would have to copy it first, which Git refuses for shallow clones and for those of another account.
"""

from collections.abc import Callable
from pathlib import Path
from typing import BinaryIO, NoReturn

from registry import gto
from registry.repository.commands import Commands, GitFailed
from registry.repository.mirror import State, TagChange, digest_of, parse_tag, read_tags
from registry.repository.origin import Origin


class InPlace:
    """Stands for a Mirror whose origin is itself: each state is what is there at that moment.

    `clock` gives Unix time.
    """

    def __init__(self, git_dir: Path, clock: Callable[[], float]) -> None:
        self.commands = Commands(git_dir, Origin(str(git_dir), "file"))
        self._clock = clock
        self._seen: tuple[str, list[str]] = ("", [])

    def open_lock(self) -> BinaryIO:
        """A lock that nobody else takes: there is nothing to write. Raises OSError."""
        return open(self.commands.git_dir / "HEAD", "rb")

    def mark(self) -> None:
        """There is none: whoever asks looks again."""

    def state(self) -> State | None:
        """What is there now; None when it cannot be read, which `update` says why."""
        now = self._clock()
        try:
            lines = list(read_tags(self.commands))
        except GitFailed:
            return None
        digest = digest_of("\n".join(lines).encode())
        self._seen = digest, lines
        return State(str(self.commands.git_dir), digest, digest, now, now)

    def changes(self) -> tuple[TagChange, ...]:
        """Nobody remembers what the tags were before."""
        return ()

    def tags(self, state: State) -> list[gto.Tag] | None:
        """The tags of the last state; None for an earlier one."""
        digest, lines = self._seen
        return [parse_tag(line) for line in lines] if digest == state.tags else None

    def look(self, limit: float) -> bytes:
        """The refs that are there. Raises GitFailed."""
        return self.commands.read("for-each-ref", limit=limit)

    def update(self, *_: object) -> NoReturn:
        """There is nothing to fetch: raises GitFailed, which says why it cannot be read."""
        list(read_tags(self.commands))
        raise GitFailed("it changes faster than it can be read")
