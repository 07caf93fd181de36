"""Rate limits: how often a token may ask."""

import math
import threading
from collections.abc import Callable
from dataclasses import dataclass

from cachetools import LRUCache

_WINDOW = 60.0
_TOKENS = 10_000


@dataclass(frozen=True)
class Quota:
    """What is left to a token: `remaining` of `limit` requests, all of them again after `reset`
    seconds. `wait` is how many seconds too early the request came; 0 when it may go on.
    """

    limit: int
    remaining: int
    reset: int
    wait: int


class RateLimit:
    """Counts the requests of every token, for this process alone. Safe to share between threads.

    A token gains `per_minute` requests a minute, evenly, and can save up as many (GCRA: all that is
    kept of a token is the moment at which it will have them all again). `clock` gives seconds.
    """

    def __init__(self, per_minute: int, clock: Callable[[], float]) -> None:
        self.per_minute = per_minute
        self._interval = _WINDOW / per_minute
        self._clock = clock
        self._lock = threading.Lock()
        self._full_at: LRUCache[str, float] = LRUCache(_TOKENS)

    def take(self, token_id: str) -> Quota:
        """Counts one request of the token, unless it came too early."""
        now = self._clock()
        with self._lock:
            # A clock that was set back must not lock anybody out for longer than a window.
            full_at = min(max(self._full_at.get(token_id, now), now), now + _WINDOW)
            early = full_at + self._interval - now - _WINDOW
            if early <= 1e-9:
                full_at += self._interval
            self._full_at[token_id] = full_at
        remaining = int((_WINDOW - (full_at - now)) / self._interval + 1e-9)
        wait = max(1, math.ceil(early)) if early > 1e-9 else 0
        return Quota(self.per_minute, max(0, remaining), math.ceil(full_at - now), wait)
