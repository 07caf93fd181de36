"""Processes that look at an origin at the same time, or die while they do.

    python -m faults.looker      a line of JSON -> another process, whose id is printed

The line has the arguments of `look`. What a process finds is in the file `found`, unless it died.
"""

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import closing, contextmanager, suppress
from itertools import count
from pathlib import Path
from typing import IO

from registry.domain import Selector
from registry.errors import RegistryError
from registry.repository import Repository
from registry.repository.lanes import Lanes

_STEPS = ("open", "os.", "shutil.", "subprocess.")


def look(url: str, mirror: str, now: float, found: str, last_step: int = 0) -> None:
    """Looks at the origin, and writes down what it finds, and after how many steps.

    A step is whatever Python does with files or processes, as its audit hooks tell. With
    `last_step`, the process kills itself as it is about to take that one.
    """
    taken, is_counting = 0, True

    def count_steps(event: str, _: object) -> None:
        nonlocal taken
        if is_counting and event.startswith(_STEPS):
            taken += 1
            if taken == last_step:
                os.kill(os.getpid(), signal.SIGKILL)

    with closing(Lanes()) as lanes:
        repository = Repository("r", url, Path(mirror), lanes=lanes, clock=lambda: now)
        sys.addaudithook(count_steps)
        try:
            snapshot = repository.snapshot(0, wait=60)
            told = snapshot.index.resolve(Selector.parse("m", stage="prod")).revision
        except RegistryError as error:
            told = repr(error)
        is_counting = False
        repository.close()
    Path(f"{found}.tmp").write_text(json.dumps([told, taken]))
    Path(f"{found}.tmp").rename(found)


class Lookers:
    """Starts such processes, each in a moment: what they import is there already."""

    def __init__(self, directory: Path, parent: "subprocess.Popen[str]") -> None:
        self._directory = directory
        self._parent = parent
        self._numbers = count()

    def start(self, url: str, mirror: Path, now: float, last_step: int = 0) -> "Looker":
        """One more process."""
        found = self._directory / f"found-{next(self._numbers)}"
        asked = [url, str(mirror), now, str(found), last_step]
        stdin, stdout = _pipe(self._parent.stdin), _pipe(self._parent.stdout)
        stdin.write(json.dumps(asked) + "\n")
        stdin.flush()
        return Looker(int(stdout.readline()), found)


class Looker:
    """A process that looks; `found` is where it writes down what it found."""

    def __init__(self, pid: int, found: Path) -> None:
        self.pid = pid
        self._found = found

    def kill(self) -> None:
        """Ends it at once; the Git it started goes on."""
        with suppress(ProcessLookupError):
            os.kill(self.pid, signal.SIGKILL)

    @property
    def is_over(self) -> bool:
        """Whether it ended, one way or another."""
        try:
            os.kill(self.pid, 0)
        except ProcessLookupError:
            return True
        return False

    @property
    def revision(self) -> str | None:
        """What it found; None if it died, or has not yet."""
        return self._read()[0]

    @property
    def steps(self) -> int:
        """How many it took."""
        return self._read()[1]

    def _read(self) -> tuple[str | None, int]:
        if not self._found.exists():
            return None, 0
        revision, steps = json.loads(self._found.read_text())
        return revision, steps


@contextmanager
def lookers(directory: Path) -> Iterator[Lookers]:
    """Starts processes until the block ends; by then they should have ended."""
    directory.mkdir(parents=True, exist_ok=True)
    path = os.pathsep.join([str(Path(__file__).parent.parent), str(Path(__file__).parents[2])])
    with subprocess.Popen(
        [sys.executable, "-m", "faults.looker"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": path},
    ) as parent:
        yield Lookers(directory, parent)
        _pipe(parent.stdin).close()


def _pipe(pipe: IO[str] | None) -> IO[str]:
    assert pipe
    return pipe


def _main() -> None:
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # nobody asks how they ended
    for line in sys.stdin:
        pid = os.fork()
        if pid == 0:
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)
            look(*json.loads(line))
            os._exit(0)
        sys.stdout.write(f"{pid}\n")
        sys.stdout.flush()


if __name__ == "__main__":
    _main()
