"""What is known of the stores without asking them: whether they answer, and what time it is there.

A store compares the time in a signed link with its own clock, and refuses what was signed more than
some minutes away from it. Every answer says the store's time (`Date`), and with it whether the
links that are made here are any good there. Where nothing is read for long, `Stores.watch` asks.
"""

import threading
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from email.utils import parsedate_to_datetime

from registry.errors import ClockSkewed

WARNED = 60.0
"""Seconds by which our clock may differ from a store's before anybody is told."""
REFUSED = 300.0
"""Seconds beyond which nothing is signed any more: the links would be refused, or end too late."""
PERIOD = 60.0
"""Seconds between two looks at the clock of a store that nothing is read from."""
_PAUSE = 1.0


@dataclass(frozen=True)
class Store:
    """A server that keeps objects: the scheme and host at which this service reaches it.

    `timed` says that it compares the time in a link with its own clock.
    """

    url: str
    timed: bool


class Stores:
    """The last that was seen of every store. One for the whole process; safe to share.

    `clock` gives Unix time as this service believes it, and `steady` seconds that nobody sets:
    when our clock is set right, or wrong, that is known at once and not after the next look.
    """

    def __init__(
        self,
        stores: Iterable[Store],
        clock: Callable[[], float] = time.time,
        steady: Callable[[], float] = time.monotonic,
    ) -> None:
        """Of other stores than these nothing is kept."""
        self._timed: dict[str, bool] = {}
        for store in stores:
            self._timed[store.url] = store.timed or self._timed.get(store.url, False)
        self._clock = clock
        self._steady = steady
        self._problems: dict[str, str] = {}
        self._times: dict[str, float] = {}
        self._hurry = threading.Event()
        self._closed = threading.Event()

    def answered(self, url: str, headers: Mapping[str, str]) -> None:
        """Takes note of an answer of the store at `url`."""
        if url not in self._timed:
            return
        self._problems.pop(url, None)
        try:
            # What a cache on the way kept has the time at which it was made.
            date = None if "Age" in headers else parsedate_to_datetime(headers["Date"]).timestamp()
        except (KeyError, ValueError, OverflowError):
            return
        if date is not None:
            self._times[url] = date - self._steady()

    def failed(self, url: str, problem: str) -> None:
        """Takes note that the store at `url` did not answer, or not as it should."""
        if url in self._timed:
            self._problems[url] = problem

    def problem(self, url: str) -> str | None:
        """What the store failed with when it was last asked; None if it did not, or never was."""
        return self._problems.get(url)

    def ahead(self, url: str) -> float | None:
        """Seconds by which our clock is ahead of the store's. None if that does not matter to the
        store, or it was never asked.
        """
        there = self._times.get(url) if self._timed.get(url) else None
        return None if there is None else self._clock() - (there + self._steady())

    def furthest(self) -> float:
        """Seconds by which our clock differs from that of the store that is the furthest off."""
        return max(self._differences(), default=0.0)

    def skewed(self) -> bool:
        """Whether our clock differs too much from every clock that is known: it is ours, then."""
        return min(self._differences(), default=0.0) > REFUSED

    def _differences(self) -> list[float]:
        return [abs(ahead) for url in self._timed if (ahead := self.ahead(url)) is not None]

    def require(self, url: str, location: str) -> None:
        """Raises ClockSkewed if links to the location are of no use at its store."""
        ahead = self.ahead(url)
        if ahead is not None and abs(ahead) > REFUSED:
            self._hurry.set()
            raise ClockSkewed(location, round(ahead))

    def watch(self, greet: Callable[[str], None]) -> None:
        """From now on, asks every store for its time once a minute, in a thread of its own.

        `greet(url)` reports to `answered` or `failed`.
        """
        timed = [url for url, timed in self._timed.items() if timed]
        if timed:
            run = threading.Thread(target=self._run, args=(timed, greet), daemon=True)
            run.name = "stores"
            run.start()

    def close(self) -> None:
        """Ends the watch."""
        self._closed.set()
        self._hurry.set()

    def _run(self, urls: list[str], greet: Callable[[str], None]) -> None:
        while not self._closed.is_set():
            for url in urls:
                greet(url)
            self._closed.wait(_PAUSE)  # however many requests are refused meanwhile
            self._hurry.wait(PERIOD - _PAUSE)
            self._hurry.clear()
