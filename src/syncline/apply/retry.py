"""Waiting before the next try: exponential, with full jitter.

Method: M. Brooker, "Exponential Backoff And Jitter" (AWS Architecture Blog, 2015).
"""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass
from threading import Event
from typing import TypeVar

from syncline.errors import Policy, SynclineError, policy

__all__ = ["Backoff", "persist"]

T = TypeVar("T")


@dataclass
class Backoff:
    """Delays in seconds: uniform between 0 and ``base * 2**tries``, at most ``longest``."""

    base: float
    longest: float
    tries: int = 0

    def next(self) -> float:
        """The next delay."""
        bound = min(self.longest, self.base * 2 ** min(self.tries, 30))
        self.tries += 1
        return random.uniform(0, bound)

    def reset(self) -> None:
        """The last try worked."""
        self.tries = 0


def persist(act: Callable[[], T], backoff: Backoff, stop: Event, tell: Callable[[SynclineError | None], None]) -> T:
    """Run ``act`` until it works. ``tell`` hears each error that is retried, and None once after it worked again.

    Raises:
        SynclineError: an error whose policy is not to retry, or the last one when ``stop`` is set.
    """
    failed = False
    while True:
        try:
            result = act()
        except SynclineError as error:
            if policy(error) is not Policy.RETRY:
                raise
            failed = True
            tell(error)
            if stop.wait(backoff.next()):
                raise
            continue
        backoff.reset()
        if failed:
            tell(None)
        return result
