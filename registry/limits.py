"""Rate limits: how often a token may ask, and an address may fail to get one."""

import math
import threading
from collections.abc import Callable
from dataclasses import dataclass

from cachetools import LRUCache

_WINDOW = 60.0
_KEYS = 10_000


@dataclass(frozen=True)
class Quota:
    """What is left to a key: `remaining` of `limit` requests, all of them again after `reset`
    seconds. `wait` is how many seconds too early the request came; 0 when it may go on.
    """

    limit: int
    remaining: int
    reset: int
    wait: int


class RateLimit:
    """Counts what every key does, such as the requests of a token, for this process alone. Safe
    to share between threads.

    A key gains `per_minute` requests a minute, evenly, and can save up as many (GCRA: all that is
    kept of a key is the moment at which it will have them all again). `clock` gives seconds.
    """

    def __init__(self, per_minute: int, clock: Callable[[], float]) -> None:
        self.per_minute = per_minute
        self._interval = _WINDOW / per_minute
        self._clock = clock
        self._lock = threading.Lock()
        self._full_at: LRUCache[str, float] = LRUCache(_KEYS)

    def take(self, key: str) -> Quota:
        """Counts one request of the key, unless it came too early."""
        now = self._clock()
        with self._lock:
            # A clock that was set back must not lock anybody out for longer than a window.
            full_at = min(max(self._full_at.get(key, now), now), now + _WINDOW)
            early = full_at + self._interval - now - _WINDOW
            if early <= 1e-9:
                full_at += self._interval
            self._full_at[key] = full_at
        remaining = int((_WINDOW - (full_at - now)) / self._interval + 1e-9)
        wait = max(1, math.ceil(early)) if early > 1e-9 else 0
        return Quota(self.per_minute, max(0, remaining), math.ceil(full_at - now), wait)

    def give_back(self, key: str) -> None:
        """Takes back one request that was counted: it was of a kind that is not limited."""
        with self._lock:
            if key in self._full_at:
                self._full_at[key] -= self._interval
