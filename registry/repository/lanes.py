"""Who looks at the origins: a bounded number of threads, in lanes that do not wait for each other.

    well    repositories whose origin answered in a moment when it was last looked at
    new     those that were never seen: a clone takes as long as it takes
    slow    those that took long the last time, or failed

An origin that begins to hang holds up a thread of the first lane once, for BRISK seconds; a
thousand repositories that are cloned hold up nobody who is known.
"""

import os
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from enum import Enum
from typing import ParamSpec

BRISK = 5.0
"""Seconds that a look at an origin may take that is well, whatever it finds."""

Given = ParamSpec("Given")


class Lane(Enum):
    """Whom a repository waits behind."""

    WELL = "well"
    NEW = "new"
    SLOW = "slow"


_WIDTHS = {Lane.WELL: 16, Lane.NEW: min(4, max(2, os.cpu_count() or 1)), Lane.SLOW: 4}
"""How many repositories are looked at at the same time. Clones of what is near keep processors busy
that others want, and more of them at once are done no sooner.
"""


class Lanes:
    """The threads of one process for all its repositories. Starts them when they are needed.

    `seats` is how many requests may wait at the same time for what is new or slow: the others of
    the server's 16 threads are for who asks for something else.
    """

    def __init__(self, seats: int = 12) -> None:
        self._executors = {
            lane: ThreadPoolExecutor(width, thread_name_prefix=f"fetch-{lane.value}")
            for lane, width in _WIDTHS.items()
        }
        self._seats = threading.Semaphore(seats)

    def submit(
        self, lane: Lane, job: Callable[Given, None], *args: Given.args, **kwargs: Given.kwargs
    ) -> "Future[None]":
        """Runs a job when it is its turn in the lane. Raises RuntimeError after `close`."""
        return self._executors[lane].submit(job, *args, **kwargs)

    @contextmanager
    def seat(self, lane: Lane) -> Iterator[bool]:
        """Whether there is room to wait for a job in the lane; it is kept until the block ends."""
        if lane is Lane.WELL:
            yield True
            return
        seated = self._seats.acquire(blocking=False)
        try:
            yield seated
        finally:
            if seated:
                self._seats.release()

    def close(self) -> None:
        """Waits for what is running, and runs nothing more."""
        for executor in self._executors.values():
            executor.shutdown(cancel_futures=True)
