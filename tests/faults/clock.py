"""The clock of a service, to be set wrong while it runs."""

import time
from collections.abc import Mapping
from pathlib import Path

_SITE = """\
import time

def _ahead(true_time=time.time):
    with open({file!r}) as file:
        return true_time() + float(file.read())

time.time = _ahead
"""


class Clock:
    """What a Python process that was started with `environ` takes for Unix time: ours, and `ahead`
    seconds. It waits as long as ever, and all other processes keep the true time.

    Python reads `sitecustomize` before anything else. libfaketime would do for any program, but
    where it leaves the monotonic clock alone, `time.sleep` fails under it (0.9.10).
    """

    def __init__(self, directory: Path, ahead: int = 0) -> None:
        directory.mkdir()
        self._file = directory / "ahead"
        self.set(ahead)
        (directory / "sitecustomize.py").write_text(_SITE.format(file=str(self._file)))
        self.environ: Mapping[str, str] = {"PYTHONPATH": str(directory)}

    def __call__(self) -> float:
        """Unix time, as the process sees it."""
        return time.time() + self.ahead

    def set(self, ahead: int) -> None:
        """From now on, the clock is so many seconds ahead of ours."""
        self.ahead = ahead
        written = self._file.with_suffix(".new")
        written.write_text(str(ahead))
        written.replace(self._file)
