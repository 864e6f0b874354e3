"""What a target has done so far, and how fresh it is. One writer (its worker), any number of readers."""

from __future__ import annotations

import threading
import time
from collections import deque
from typing import Any

import numpy as np

__all__ = ["Progress"]

_KEPT_LATENCIES = 200_000
_RATE_WINDOW_S = 5.0


class Progress:
    """Counters of one target, and commit-to-visible latencies (milliseconds, a value per source transaction)."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._latencies: deque[np.ndarray[Any, Any]] = deque()
        self._kept = 0
        self._recent: deque[tuple[float, int]] = deque()
        self.rows = 0
        self.works = 0
        self.healed = 0
        self.parked = 0
        self.overruled = 0
        self.last_commit_us = 0
        self._even_s = 0.0
        self.state = "starting"
        self.message = ""

    def applied(self, rows: int, commit_times_us: np.ndarray[Any, Any]) -> None:
        """Note one durable work and the commit times of the transactions that it made visible."""
        now = time.time()
        with self._lock:
            self.rows += rows
            self.works += 1
            self._recent.append((time.monotonic(), rows))
            while self._recent and self._recent[0][0] < time.monotonic() - _RATE_WINDOW_S:
                self._recent.popleft()
            if len(commit_times_us):
                self.last_commit_us = int(commit_times_us.max())
                self._latencies.append(now * 1e3 - commit_times_us / 1e3)
                self._kept += len(commit_times_us)
            while self._kept > _KEPT_LATENCIES:
                self._kept -= len(self._latencies.popleft())

    def lag_s(self, *, behind: bool) -> float:
        """Seconds since the commit at the source that was made visible last, or since it was seen that nothing was left
        to be made visible; 0 where nothing is (not ``behind``), and before the first. An idle source goes on with
        entries that hold no rows, and so is behind for a moment now and then."""
        now = time.time()
        if not behind:
            self._even_s = now
        return max(0.0, now - max(self.last_commit_us / 1e6, self._even_s)) if self.last_commit_us else 0.0

    def rate(self) -> float:
        """Rows a second over the last five seconds."""
        with self._lock:
            since = time.monotonic() - _RATE_WINDOW_S
            rows = sum(r for t, r in self._recent if t >= since)
            return rows / _RATE_WINDOW_S

    def latency_ms(self) -> dict[str, float]:
        """``p50_ms``, ``p95_ms`` and ``p99_ms`` from commit at the source to visible at the target."""
        with self._lock:
            if not self._latencies:
                return {"p50_ms": 0.0, "p95_ms": 0.0, "p99_ms": 0.0}
            values = np.concatenate(list(self._latencies))
        p50, p95, p99 = np.percentile(values, [50, 95, 99])
        return {"p50_ms": round(float(p50), 2), "p95_ms": round(float(p95), 2), "p99_ms": round(float(p99), 2)}

    def reset_latencies(self) -> None:
        """Forget what was measured so far."""
        with self._lock:
            self._latencies.clear()
            self._kept = 0
